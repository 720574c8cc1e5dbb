"""Pruning below a multiple of the standard deviation: Han's second step."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError


def model_of(seed=0):
    torch.manual_seed(seed)
    return tt.sparse_mlp(tg.generate(tg.Dense(sizes=[12, 9, 5])), dtype=torch.float64)


@given(st.integers(0, 99), st.floats(0, 2.5), st.integers(1, 3))
def test_what_stays_is_above_the_threshold(seed, quality, times):
    """Against numpy, several times: the deviation is that of the weights which are left."""
    model = model_of(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    prune = tt.Threshold(model, optimizer, quality=quality, steps=[2, 3, 5][:times])
    layers = [model[0], model[2]]
    changed = []
    for step in range(1, 7):
        before = [layer.to_scipy().toarray() for layer in layers]
        changed.append(prune.step())
        for layer, weight in zip(layers, before, strict=True):
            stored = weight[weight != 0]
            expected = weight if step not in [2, 3, 5][:times] or not stored.size else (
                weight * (np.abs(weight) >= quality * stored.std())
            )  # fmt: skip
            np.testing.assert_array_equal(layer.to_scipy().toarray(), expected)
    assert changed == [step in [2, 3, 5][:times] for step in range(1, 7)]


def test_blocks_go_by_their_mean_square():
    layer = tt.BlockSparseLinear(np.ones((1, 3)), 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([1.0, 3.0, 0.5]).view(3, 1, 1) * torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    spread = layer.values.detach().numpy().std()
    assert 0.5 < 0.5 * spread < 1
    tt.Threshold(torch.nn.Sequential(layer), quality=0.5, steps=[1]).step()
    assert layer.block_pattern.toarray().tolist() == [[True, True, False]]


def test_each_group_has_its_own_quality():
    model = model_of()
    tt.Threshold(model, quality=1.0, steps=[1], groups=[{"layers": "2", "quality": 0.0}]).step()
    assert model[0].nnz < 108
    assert model[2].nnz == 45


def test_the_quality_may_follow_the_step():
    model = model_of()
    prune = tt.Threshold(model, quality=lambda step: 0.0 if step == 1 else 99.0, steps=[1, 2])
    prune.step()
    assert model[0].nnz == 108
    prune.step()
    assert (model[0].nnz, model[2].nnz) == (0, 0)
    assert model(torch.ones(2, 12, dtype=torch.float64)).tolist() == [[0.0] * 5] * 2


def test_nan_weights_change_nothing():
    model = model_of()
    with torch.no_grad():
        model[2].values[1] = torch.nan
    with pytest.raises(TopogenError, match="Threshold changes nothing at step 1: 1 of 45 scores by magnitude"):
        tt.Threshold(model, quality=1.0, steps=[1]).step()
    assert model[0].nnz == 108


@pytest.mark.parametrize(("weight", "spread"), [(torch.inf, "nan"), (1e200, "inf")])
def test_weights_without_a_standard_deviation_change_nothing(weight, spread):
    """No weight is above NaN: without this the whole layer would go."""
    model = model_of()
    with torch.no_grad():
        model[2].values[1] = weight
    sentence = f"Threshold changes nothing at step 1: the standard deviation of the weights of layer '2' is {spread}."
    with pytest.raises(TopogenError, match=f"^{re.escape(sentence)}"):
        tt.Threshold(model, quality=1.0, steps=[1]).step()
    assert [model[0].nnz, model[2].nnz] == [108, 45]


REFUSED = {
    "order": (
        lambda: tt.Threshold(model_of(), quality=1.0, steps=[3, 3]),
        "The 'steps' parameter of Threshold must be rising. Got [3, 3].",
    ),
    "none": (lambda: tt.Threshold(model_of(), quality=1.0, steps=[]), "The 'steps' parameter of Threshold must "),
    "quality": (lambda: tt.Threshold(model_of(), quality=-1.0, steps=[1]), "The 'quality' parameter of Threshold must"),
    "group": (
        lambda: tt.Threshold(model_of(), quality=1.0, steps=[1], groups=[{"layers": "2", "steps": [2]}]),
        "The 'groups' parameter of Threshold must have mappings of 'layers' and any of ['quality'], since the other "
        "settings are those of all layers. Got ['layers', 'steps'].",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()
