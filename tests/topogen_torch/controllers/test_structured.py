"""Pruning whole neurons: which go, by dense arithmetic, and what shrinking makes of it."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError


def perceptron(seed=0, density=0.7):
    torch.manual_seed(seed)
    return tt.sparse_mlp(
        tg.generate(tg.ErdosRenyi(sizes=[8, 10, 6, 4], density=density), rng=seed), dtype=torch.float64
    )


def weights_of(model):
    return [layer.to_scipy().toarray() for layer in model if isinstance(layer, tt.SparseLinear)]


@given(st.integers(1, 10).map(lambda tenth: tenth / 10), st.integers(0, 50))
def test_neurons_of_the_largest_norm_keep_everything(density, seed):
    model = perceptron(seed)
    expected = weights_of(model)
    kept = []
    for before, behind in zip(expected, expected[1:], strict=False):
        norms = np.sqrt((before**2).sum(0) + (behind**2).sum(1))
        count = max(1, round(round(density * 10) * len(norms) / 10))
        kept.append(np.sort(np.argsort(-norms, kind="stable")[:count]))
    for k, stay in enumerate(kept):
        gone = np.setdiff1d(np.arange(expected[k].shape[1]), stay)
        expected[k][:, gone] = expected[k + 1][gone] = 0
    prune = tt.PruneNeurons(model, density=density)
    assert prune.step()
    assert not prune.step()
    for found, wanted in zip(weights_of(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    small = tt.shrink(model)
    x = torch.randn(9, 8, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    assert all(layer.out_features <= len(stay) for layer, stay in zip(small[:-1:2], kept, strict=True))


def test_channels_flattened_features_and_optimizer_state_go_together():
    torch.manual_seed(0)
    model = nn.Sequential(
        tt.SparseConv2d([np.ones((1, 6))] * 4, 2), nn.ReLU(), tt.SparseConv2d(np.ones((6, 4)), 2), nn.Flatten(),
        tt.SparseLinear(np.ones((36, 3))),
    ).double()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(5, 1, 5, 5, dtype=torch.float64)
    model(x).square().sum().backward()
    optimizer.step()
    dense = [model[0].to_conv().weight, model[2].to_conv().weight]
    norms = dense[0].square().sum((1, 2, 3)) + dense[1].square().sum((0, 2, 3))
    tt.PruneNeurons(model, optimizer, density=0.5).step()
    assert model[4].nnz == 18 * 3
    assert sorted(set(model[4].pattern.nonzero()[0] // 9)) == sorted(set(model[2].pattern.nonzero()[1]))
    small = tt.shrink(model)
    assert (small[0].out_channels, small[2].out_channels, small[4].in_features) == (3, 2, 18)
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    stay = norms.argsort(descending=True)[:3].sort().values
    torch.testing.assert_close(small[0].to_conv().weight, dense[0][stay])
    assert optimizer.state[model[2].values]["exp_avg"].shape == model[2].values.shape == (6, 2, 2)


def test_blocks_go_whole():
    torch.manual_seed(0)
    model = nn.Sequential(tt.BlockSparseLinear(np.ones((2, 4)), 2), nn.ReLU(), tt.SparseLinear(np.ones((8, 3))))
    norms = model[0].to_scipy().toarray().__pow__(2).sum(0) + model[2].to_scipy().toarray().__pow__(2).sum(1)
    before = model[0].to_scipy().toarray()
    tt.PruneNeurons(model, density=0.5).step()
    best = np.sort(np.argsort(-np.sqrt(norms).reshape(4, 2).mean(1))[:2])
    expected = np.zeros((4, 4, 2), np.float32)
    expected[:, best] = before.reshape(4, 4, 2)[:, best]
    np.testing.assert_array_equal(model[0].to_scipy().toarray(), expected.reshape(4, 8))
    assert tt.shrink(model)[0].out_features == 4


def test_scores_may_be_a_function_or_given_and_layers_have_settings_of_their_own():
    model, twin = perceptron(), perceptron()
    tt.PruneNeurons(
        model,
        density=0.5,
        score=lambda before, behind: -before.fan_in().double(),
        groups=[{"layers": "0", "density": 1.0}],
    ).step()
    scores = {"0": torch.arange(10), "2": -twin[2].fan_in()}
    tt.PruneNeurons(twin, density=0.5, score=scores).step()
    assert (model[2].fan_in() > 0).sum() == 3
    assert torch.equal(model[2].fan_in() > 0, twin[2].fan_in() > 0)
    assert torch.equal(twin[0].fan_in() > 0, torch.arange(10) >= 5)
    assert (model[0].fan_in() > 0).all()


def test_it_resumes_and_does_not_prune_again():
    model = perceptron()
    prune = tt.PruneNeurons(model, density=0.5)
    prune.step()
    state = copy.deepcopy(prune.state_dict())
    again = tt.PruneNeurons(model, density=0.5)
    again.load_state_dict(state)
    assert not again.step()


def test_nan_changes_nothing():
    model = perceptron()
    with torch.no_grad():
        model[0].values[0] = float("nan")
    before = [layer.nnz for layer in model[::2]]
    with pytest.raises(TopogenError, match=r"^PruneNeurons changes nothing at step 1: \d+ of 10 scores by norm in"):
        tt.PruneNeurons(model, density=0.5).step()
    assert [layer.nnz for layer in model[::2]] == before


REFUSED = {
    "density": (
        lambda: tt.PruneNeurons(perceptron(), density=0),
        "The 'density' parameter of PruneNeurons must be a finite number in (0, 1]. Got 0.",
    ),
    "score": (
        lambda: tt.PruneNeurons(perceptron(), density=0.5, score="size"),
        "The 'score' parameter of PruneNeurons must be 'norm'. Got 'size'.",
    ),
    "no score": (
        lambda: tt.PruneNeurons(perceptron(), density=0.5, score=3),
        "The 'score' parameter of PruneNeurons must be 'norm', a callable or a mapping. Got 3.",
    ),
    "density of a group": (
        lambda: tt.PruneNeurons(perceptron(), density=0.5, groups=[{"layers": "0", "density": 2.0}]),
        "The 'density' parameter of PruneNeurons must be a finite number in (0, 1]. Got 2.0.",
    ),
    "score of a group": (
        lambda: tt.PruneNeurons(perceptron(), density=0.5, groups=[{"layers": "0", "score": "size"}]),
        "The 'score' parameter of PruneNeurons must be 'norm'. Got 'size'.",
    ),
    "nothing hidden": (
        lambda: tt.PruneNeurons(nn.Sequential(tt.SparseLinear(np.eye(3)), nn.Softmax(-1)), density=0.5),
        "The 'model' parameter of PruneNeurons must have neurons between two sparse layers of which the one is all "
        "that the other feeds. Got none among '0'.",
    ),
    "scores of a layer": (
        lambda: tt.PruneNeurons(perceptron(), density=0.5, score={"2": torch.ones(6)}).step(),
        "The 'score' parameter must have scores for layer '0'. Got ['2'].",
    ),
    "shape of scores": (
        lambda: tt.PruneNeurons(perceptron(), density=0.5, score=lambda before, behind: torch.ones(3)).step(),
        "The 'score' parameter must give one number for each neuron behind '0', shape (10,). Got shape (3,).",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()
