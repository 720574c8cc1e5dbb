"""Proximal L1: the step itself, its fixed points against a closed form, and what becomes of zeros."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError


def single(values, **options):
    layer = tt.SparseLinear(np.eye(len(values)), bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.values.copy_(torch.as_tensor(values, dtype=torch.float64))
    return layer, torch.optim.SGD(layer.parameters(), **{"lr": 0.5} | options)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(0, 4), st.floats(0.01, 1))
def test_a_step_shrinks_each_weight_by_rate_times_strength(values, strength, rate):
    layer, optimizer = single(values, lr=rate)
    tt.ProximalL1(layer, optimizer, strength=strength).step()
    expected = [np.sign(w) * max(abs(w) - rate * strength, 0) for w in values]
    np.testing.assert_allclose(layer.values.detach().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_it_ends_where_the_lasso_has_its_minimum():
    """For an orthonormal design the lasso is known: every coefficient drawn towards 0 by the strength."""
    target = torch.tensor([3.0, -2.0, 0.4, -0.1, 0.0, 1.0], dtype=torch.float64)
    layer, optimizer = single(torch.randn(6), lr=0.1)
    shrink = tt.ProximalL1(layer, optimizer, strength=0.5, update_every=400)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (layer.values - target).square().sum()).backward()
        optimizer.step()
        shrink.step()
    assert layer.pattern.toarray().diagonal().tolist() == [True, True, False, False, False, True]
    torch.testing.assert_close(layer.values.detach(), torch.tensor([2.5, -1.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_with_adam_it_ends_at_the_same_minimum(amsgrad):
    """The metric scales step and threshold alike, so that fixed points do not depend on it."""
    target = torch.tensor([3.0, -2.0, 0.4, -0.1, 1.0], dtype=torch.float64)
    layer, _ = single(torch.full((5,), 0.3))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02, betas=(0.0, 0.9), amsgrad=amsgrad)
    shrink = tt.ProximalL1(layer, optimizer, strength=0.5, metric="adam", update_every=10**6)
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * (layer.values - target).square().sum()).backward()
        optimizer.step()
        shrink.step()
    expected = torch.tensor([2.5, -1.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(layer.values.detach(), expected, atol=1e-6, rtol=0)


def test_adams_threshold_by_hand():
    layer, _ = single([1.0, -1.0])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.5, 0.75), eps=0.5, weight_decay=0.0)
    shrink = tt.ProximalL1(layer, optimizer, strength=2.0, metric="adam")
    layer.values.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer.step()
    before = layer.values.detach().clone()
    shrink.step()
    moment = 0.25 * torch.tensor([9.0, 16.0], dtype=torch.float64) / (1 - 0.75)
    threshold = 0.1 * 2.0 / (moment.sqrt() + 0.5)
    torch.testing.assert_close(layer.values.detach(), before.sign() * (before.abs() - threshold))


def test_units_of_several_weights_shrink_as_a_whole_and_go_as_a_whole():
    layer = tt.BlockSparseLinear(np.ones((1, 3)), 2, bias=False, dtype=torch.float64)
    weights = torch.tensor([[[3.0, 0.0], [4.0, 0.0]], [[0.1, 0.0], [0.0, 0.2]], [[0.0, 0.0], [0.0, 0.0]]])
    with torch.no_grad():
        layer.values.copy_(weights)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    shrink = tt.ProximalL1(layer, optimizer, strength=1.0, update_every=2)
    assert not shrink.step()
    torch.testing.assert_close(layer.values[0].detach(), weights[0].double() * (1 - 0.5 * 2 / 5))
    assert not layer.values[1:].any()
    assert shrink.step()
    assert layer.block_pattern.toarray().tolist() == [[True, False, False]]


def test_zeros_go_at_updates_and_state_follows():
    layer, optimizer = single([2.0, 0.1, -3.0, 0.0], lr=0.1, momentum=0.9)
    optimizer.state[layer.values]["momentum_buffer"] = torch.arange(4.0, dtype=torch.float64)
    shrink = tt.ProximalL1(layer, optimizer, strength=1.0, update_every=3)
    assert [(shrink.step(), layer.nnz) for _ in range(4)] == [(False, 4), (False, 4), (True, 2), (False, 2)]
    assert optimizer.state[layer.values]["momentum_buffer"].tolist() == [0.0, 2.0]
    assert [shrink.step() for _ in range(2)] == [False, False]  # nothing to remove at step 6
    assert shrink.steps == 6
    again = tt.ProximalL1(layer, optimizer, strength=1.0, update_every=3)
    again.load_state_dict(shrink.state_dict())
    assert again.steps == 6


def test_strength_may_be_a_schedule_and_groups_have_their_own():
    model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[3, 3, 3])), bias=False, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    )
    ramp = tg.linear(initial=0.0, final=1.0, begin_step=0, end_step=4)
    shrink = tt.ProximalL1(model, optimizer, strength=ramp, groups=[{"layers": "2", "strength": 0.5}])
    shrink.step()
    shrink.step()
    assert model[0].values.tolist() == pytest.approx([1 - 0.1 * (0.25 + 0.5)] * 9)
    assert model[2].values.tolist() == pytest.approx([1 - 0.2 * 0.5 * 2] * 9)


@pytest.mark.parametrize(("strength", "shown"), [(-0.5, "-0.5"), (float("nan"), "nan")])
def test_a_strength_that_is_none_at_a_step_changes_nothing(strength, shown):
    model = nn.Sequential(tt.SparseLinear(np.ones((3, 3))), tt.SparseConv2d(np.ones((2, 2)), 3))
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), [p.detach().clone() for p in model.parameters()]
    groups = [{"layers": "1", "strength": lambda step: strength if step == 1 else 0.0}]
    shrink = tt.ProximalL1(model, optimizer, strength=1.0, groups=groups)
    message = f"The 'strength' parameter of ProximalL1 must be a finite number in [0, inf). Got {shown}."
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        shrink.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_nan_is_not_taken_for_zero(dtype):
    layer, optimizer = single([float("nan"), 0.01, 2.0])
    layer.to(dtype)
    assert tt.ProximalL1(layer, optimizer, strength=1.0, update_every=1).step()
    assert layer.values.isnan().tolist() == [True, False]


def test_what_cannot_be_is_refused():
    layer, optimizer = single([1.0, 2.0])
    for message, settings in {
        "The 'strength' parameter of ProximalL1 must be a finite number in [0, inf). Got -1.0.": {"strength": -1},
        "The 'update_every' parameter of ProximalL1 must be an int >= 1. Got 0.": {"update_every": 0},
        "The 'metric' parameter of ProximalL1 must be 'plain' or 'adam'. Got 'l2'.": {"metric": "l2"},
    }.items():
        with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
            tt.ProximalL1(layer, optimizer, **{"strength": 1.0} | settings)
    with pytest.raises(SpecError, match=r"The 'optimizer' parameter of ProximalL1 must be an Optimizer\. Got None\."):
        tt.ProximalL1(layer, None, strength=1.0)
    shrink = tt.ProximalL1(layer, optimizer, strength=1.0, metric="adam")
    message = (
        "The 'optimizer' parameter of ProximalL1 must keep second moments as Adam does where metric='adam', and must "
        "have made a step. Got SGD, with state [] for '(model)'."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        shrink.step()
    assert layer.values.tolist() == [1.0, 2.0]
    model = nn.Sequential(tt.SparseConv2d(np.ones((2, 2)), 3))
    message = (
        "The 'metric' parameter of ProximalL1 must be 'plain' for layers whose units have several weights. Got 'adam' "
        "for '0', a SparseConv2d."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        tt.ProximalL1(model, torch.optim.Adam(model.parameters()), strength=1.0, metric="adam")
