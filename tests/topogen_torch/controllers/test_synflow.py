"""Iterated synaptic flow: the published algorithm on dense masks, exact numbers, and the guard."""

import logging
import re

import numpy as np
import pytest
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError


def model_of(sizes=(12, 9, 7, 5), seed=0):
    torch.manual_seed(seed)
    return tt.sparse_mlp(tg.generate(tg.Dense(sizes=sizes)), bias=False)


def layers_of(model):
    return [module for module in model if isinstance(module, tt.SparseLinear)]


def published(model, density, rounds):
    """Algorithm 1 on dense matrices: the masks after the last round."""
    weights = [np.abs(layer.to_scipy().toarray().astype(np.float64)) for layer in layers_of(model)]
    masks = [np.ones(weight.shape) for weight in weights]
    total = sum(weight.size for weight in weights)
    for number in range(1, rounds + 1):
        now = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
        scores = []
        for k, weight in enumerate(now):
            arriving, leaving = np.ones(now[0].shape[0]), np.ones(now[-1].shape[1])
            for before in now[:k]:
                arriving = arriving @ before
            for after in reversed(now[k + 1 :]):
                leaving = after @ leaving
            scores.append(arriving[:, None] * weight * leaving)
        joint = np.concatenate([np.where(m > 0, s, -1).ravel() for s, m in zip(scores, masks, strict=True)])
        keep = np.zeros(total)
        keep[np.argsort(-joint, kind="stable")[: round(total * density ** (number / rounds))]] = 1
        borders = np.cumsum([weight.size for weight in weights])[:-1]
        masks = [part.reshape(mask.shape) for part, mask in zip(np.split(keep, borders), masks, strict=True)]
    return masks


# Below 0.15 chains are left, whose flows are equal to rounding; in one round the first layer would collapse there.
@pytest.mark.parametrize(
    ("density", "rounds"), [(0.5, 1), (0.3, 1), (0.5, 10), (0.15, 10), (0.5, 100), (0.3, 100), (0.15, 100)]
)
def test_it_is_the_published_algorithm(density, rounds):
    model = model_of()
    expected = published(model, density, rounds)
    before = [layer.to_scipy().toarray() for layer in layers_of(model)]
    prune = tt.SynFlow(model, input_shape=[12], density=density, rounds=rounds)
    assert prune.step()
    assert not prune.step()
    for layer, mask, weight in zip(layers_of(model), expected, before, strict=True):
        np.testing.assert_array_equal(layer.pattern.toarray(), mask > 0)
        np.testing.assert_array_equal(layer.to_scipy().toarray(), weight * mask)
    assert sum(layer.nnz for layer in layers_of(model)) == round(density * (12 * 9 + 9 * 7 + 7 * 5))


def test_rounds_keep_paths_where_one_round_does_not():
    """Theorem 3 of the paper: down to one path a layer keeps its connections, and what is left is connected."""
    model = model_of()
    tt.SynFlow(model, input_shape=[12], density=3 / 206, rounds=206).step()
    assert [layer.nnz for layer in layers_of(model)] == [1, 1, 1]
    product = np.linalg.multi_dot([layer.pattern.toarray().astype(int) for layer in layers_of(model)])
    assert product.sum() == 1


def test_what_a_round_removed_stays_away():
    """By hand, one connection a round: 0 -> 0 goes first, and is not chosen again when 1 -> 1 has no flow either."""
    ends = np.array([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    model = tt.sparse_mlp([np.eye(3), ends], bias=False)
    with torch.no_grad():
        model[0].values.copy_(torch.tensor([0.1, 1.0, 10.0]))
        model[2].values.copy_(torch.tensor([1.0, 0.5, 0.5, 1.0]))
    tt.SynFlow(model, input_shape=[3], density=3 / 21, rounds=40).step()
    assert model[0].pattern.toarray().diagonal().tolist() == [False, True, True]
    assert model[2].nnz == 1


def narrow():
    """A model whose middle layer has 100 connections of equal flow, so that all of them go together in one round."""
    model = tt.sparse_mlp([np.ones((2, 10)), np.ones((10, 10)), np.ones((10, 2))], bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    return model


def test_a_layer_that_would_collapse_is_refused_and_nothing_changes():
    model = narrow()
    prune = tt.SynFlow(model, input_shape=[2], density=40 / 140, rounds=1)
    message = (
        "SynFlow changes nothing: in round 1 of 1 layer '2' would lose all its connections. A higher density, or "
        "least=1, keeps it."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        prune.step()
    assert [layer.nnz for layer in layers_of(model)] == [20, 100, 20]


@pytest.mark.parametrize(("least", "rounds", "left"), [(1, 1, 40), (7, 3, 40), (1, 2, 10)])  # the last: in round 1 only
def test_a_layer_keeps_a_stated_minimum_and_it_is_said_once(least, rounds, left, caplog):
    model = narrow()
    with caplog.at_level(logging.WARNING, "topogen"):
        tt.SynFlow(model, input_shape=[2], density=left / 140, rounds=rounds, least=least).step()
    assert layers_of(model)[1].nnz >= least
    assert sum(layer.nnz for layer in layers_of(model)) == left
    assert [record.getMessage() for record in caplog.records] == [
        f"SynFlow leaves {least} of their connections to layers that would have kept fewer."
    ]


def test_a_minimum_that_is_not_needed_changes_nothing(caplog):
    plain, guarded = model_of(), model_of()
    with caplog.at_level(logging.WARNING, "topogen"):
        tt.SynFlow(plain, input_shape=[12], density=0.2, rounds=20).step()
        tt.SynFlow(guarded, input_shape=[12], density=0.2, rounds=20, least=2).step()
    assert not caplog.records
    for a, b in zip(layers_of(plain), layers_of(guarded), strict=True):
        assert torch.equal(a.pattern_hash, b.pattern_hash)


def test_layers_that_are_not_controlled_stay_whole():
    model = model_of()
    tt.SynFlow(model, input_shape=[12], density=0.2, layers=["0", "4"]).step()
    assert layers_of(model)[1].nnz == 63
    assert layers_of(model)[0].nnz + layers_of(model)[2].nnz == round(0.2 * (108 + 35))


def test_convolutions_and_blocks_lose_whole_units():
    torch.manual_seed(0)
    model = nn.Sequential(
        tt.SparseConv2d(np.ones((3, 8)), 3), nn.ReLU(), nn.Flatten(), tt.BlockSparseLinear(np.ones((18, 3)), 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tt.SynFlow(model, optimizer, input_shape=[3, 5, 5], density=0.25).step()
    assert model[0].indices.numel() + model[3].indices.numel() == round(0.25 * (24 + 54))
    assert model[0].values.shape[1:] == (3, 3)


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.7])
def test_units_of_several_sizes_share_one_budget_of_connections(density, least):
    torch.manual_seed(0)
    model = nn.Sequential(
        tt.SparseConv2d(np.ones((3, 8)), 3), nn.ReLU(), nn.Flatten(), tt.SparseLinear(np.ones((72, 12))),
        tt.BlockSparseLinear(np.ones((3, 3)), 4),
    )  # fmt: skip
    tt.SynFlow(model, input_shape=[3, 5, 5], density=density, rounds=10, least=least).step()
    layers = model[0], model[3], model[4]
    assert sum(layer.nnz for layer in layers) == round(density * (3 * 8 * 9 + 72 * 12 + 144))
    assert all(layer.indices.numel() >= max(least, 1) for layer in layers)


def test_a_state_is_restored_and_another_one_refused():
    model = model_of()
    prune = tt.SynFlow(model, input_shape=[12], density=0.5, rounds=2)
    prune.step()
    again = tt.SynFlow(model, input_shape=[12], density=0.5, rounds=2)
    again.load_state_dict(prune.state_dict())
    assert not again.step()
    with pytest.raises(SpecError, match="The state of SynFlow must be of the same settings"):
        tt.SynFlow(model, input_shape=[12], density=0.5, rounds=3).load_state_dict(prune.state_dict())


def test_what_cannot_be_is_refused():
    model = model_of()
    for message, settings in {
        "The 'density' parameter of SynFlow must be a finite number in (0, 1]. Got 0.": {"density": 0},
        "The 'rounds' parameter of SynFlow must be an int >= 1. Got 0.": {"rounds": 0},
        "The 'least' parameter of SynFlow must be an int >= 0. Got -1.": {"least": -1},
        "The 'input_shape' parameter of SynFlow must be a sequence of at least 1 ints >= 1. Got 12.": {
            "input_shape": 12
        },
        "The 'density' parameter of SynFlow must leave 1 of its connections to each layer, at least 0.0145631. "
        "Got 0.01.": {"density": 0.01},
        "The 'density' parameter of SynFlow must leave 40 of its connections to each layer, at least 0.558252. "
        "Got 0.5.": {"least": 40},
    }.items():
        with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
            tt.SynFlow(model, **{"input_shape": [12], "density": 0.5} | settings)
    tt.OneShot(model, density=0.2).step()
    message = (
        "The 'density' parameter of SynFlow must be at most that of the layers, 0.203883, since pruning adds nothing"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        tt.SynFlow(model, input_shape=[12], density=0.5)
    with torch.no_grad():
        model[0].values[0] = torch.inf
    with pytest.raises(TopogenError, match=r"SynFlow finds .* of layer '0' not finite"):
        tt.SynFlow(model, input_shape=[12], density=0.1).step()
