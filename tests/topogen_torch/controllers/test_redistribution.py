"""SNFS and the rules that move connections between layers: exact totals, shares by hand, windows, refusals."""

import io
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError
from topogen_torch._rewire import places_of
from topogen_torch.controllers.redistribution import mean_gradient, mean_momentum, shared_out


def model_of(*, density=0.3, seed=0, sizes=(12, 9, 5)):
    torch.manual_seed(seed)
    return tt.sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=list(sizes), density=density), rng=seed), dtype=torch.float64)


def layers_of(model):
    return [module for module in model if isinstance(module, tt.SparseLinear)]


def momentum(model, lr=0.01):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def batch(step):
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(model, optimizer, ctl, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        model(batch(step)).square().sum(1).mean().backward()
        optimizer.step()
        ctl.step()


cases = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 20)), min_size=1, max_size=6)


@given(cases, st.data())
def test_shares_add_up_fit_and_are_fair(rows, data):
    """Nobody has more than fits; of those with room left, shares per weight are equal but for rounding."""
    shares, capacities = zip(*rows, strict=True)
    total = data.draw(st.integers(0, sum(capacities)))
    counts = shared_out(total, shares, capacities)
    assert sum(counts) == total
    assert all(0 <= count <= room for count, room in zip(counts, capacities, strict=True))
    open_ones = [k for k in range(len(rows)) if counts[k] < capacities[k] - 1 and shares[k] > 0]
    for a in open_ones:
        for b in range(len(rows)):
            if shares[b]:  # who is full may have less than who has room, in proportion, never more
                assert Fraction(counts[b] - 1) / Fraction(shares[b]) <= Fraction(counts[a] + 1) / Fraction(shares[a])


@pytest.mark.parametrize(
    ("total", "shares", "capacities", "counts"),
    [
        (10, [1, 3, 1], [99, 99, 99], [2, 6, 2]),
        (10, [1, 1, 1], [99, 99, 99], [4, 3, 3]),
        (10, [1, 8, 1], [99, 4, 99], [3, 4, 3]),
        (10, [0, 0], [4, 16], [2, 8]),
        (6, [0, 1], [8, 4], [2, 4]),
        (0, [1, 0], [0, 0], [0, 0]),
    ],
)
def test_shares_by_hand(total, shares, capacities, counts):
    assert shared_out(total, shares, capacities) == counts


def test_means_by_hand():
    layer = tt.SparseLinear(np.ones((1, 3)), bias=False, dtype=torch.float64)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    for sign in (1, -1):
        sgd.zero_grad()
        (layer(x) * torch.tensor([1.0, 2.0, 6.0]) * sign).sum().backward()
        sgd.step()
    assert mean_gradient(layer, None) == pytest.approx((2 + 4 + 12) / 3)
    assert mean_momentum(layer, sgd) == pytest.approx(0.1 * (2 + 4 + 12) / 3)
    adam = torch.optim.Adam(layer.parameters(), lr=0.0)
    adam.step()
    assert mean_momentum(layer, adam) == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-6)
    lion = torch.optim.SGD(layer.parameters(), lr=0.0)
    lion.state[layer.values] = {"exp_avg": torch.tensor([1.0, -2.0, 3.0])}
    assert mean_momentum(layer, lion) == 2.0
    empty = tt.SparseLinear(np.zeros((2, 3)), bias=False)
    empty.values.grad = torch.zeros(0)
    assert mean_gradient(empty, None) == 0.0


@pytest.mark.parametrize("rule", [mean_momentum, mean_gradient, lambda layer, optimizer: layer.in_features])
@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_the_total_is_exact_and_follows_the_rule(rule, seed, fraction):
    model = model_of(seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ctl = tt.SNFS(model, optimizer, end_step=9, update_every=2, drop_fraction=lambda step: fraction, redistribute=rule)
    train(model, optimizer, ctl, 1)
    before = [layer.nnz for layer in layers_of(model)]
    seen = []
    ctl._redistribute = lambda layer, optimizer: seen.append(rule(layer, optimizer)) or seen[-1]
    train(model, optimizer, ctl, 1, start=1)
    dropped = [int(fraction * count) for count in before]
    kept = [count - own for count, own in zip(before, dropped, strict=True)]
    room = [108 - kept[0], 45 - kept[1]]
    gained = shared_out(sum(dropped), seen, room)
    assert [layer.nnz for layer in layers_of(model)] == [a + b for a, b in zip(kept, gained, strict=True)]
    assert len(seen) == 2
    train(model, optimizer, ctl, 6, start=2)
    assert sum(layer.nnz for layer in layers_of(model)) == sum(before)


def test_the_mean_is_of_what_was_there_before_anything_was_dropped():
    model = model_of()
    optimizer = momentum(model)
    ctl = tt.SNFS(model, optimizer, end_step=9, update_every=1)
    optimizer.zero_grad()
    model(batch(0)).square().sum(1).mean().backward()
    optimizer.step()
    means = [optimizer.state[layer.values]["momentum_buffer"].abs().mean().item() for layer in layers_of(model)]
    before = [layer.nnz for layer in layers_of(model)]
    fraction = 0.25 * (1 + math.cos(math.pi / 9))
    dropped = [int(fraction * count) for count in before]
    kept = [count - own for count, own in zip(before, dropped, strict=True)]
    ctl.step()
    gained = shared_out(sum(dropped), means, [108 - kept[0], 45 - kept[1]])
    assert [layer.nnz for layer in layers_of(model)] == [a + b for a, b in zip(kept, gained, strict=True)]


def test_set_and_rigl_redistribute_too():
    for make in (
        lambda m, o: tt.SET(m, o, rng=0, update_every=1, redistribute=mean_momentum),
        lambda m, o: tt.RigL(m, o, end_step=9, update_every=1, redistribute=mean_gradient),
    ):
        model = model_of()
        before = [layer.nnz for layer in layers_of(model)]
        optimizer = momentum(model)
        train(model, optimizer, make(model, optimizer), 4)
        after = [layer.nnz for layer in layers_of(model)]
        assert sum(after) == sum(before)
        assert after != before


def test_connections_stay_among_units_of_one_size():
    """Weights of blocks of 3 x 3 and single weights are two totals, each exact."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    blocks = [tt.BlockSparseLinear(rng.random((4, 4)) < 0.5, 3, dtype=torch.float64) for _ in range(2)]
    single = [tt.SparseLinear(rng.random((12, 12)) < 0.3, dtype=torch.float64) for _ in range(2)]
    model = torch.nn.Sequential(blocks[0], torch.nn.ReLU(), single[0], torch.nn.ReLU(), blocks[1], single[1])
    optimizer = momentum(model)
    counts = [sum(layer.nnz for layer in group) for group in (blocks, single)]
    more = (blocks[0], single[0])
    ctl = tt.SNFS(
        model, optimizer, end_step=99, update_every=1, redistribute=lambda layer, optimizer: 1 + (layer in more)
    )
    first = [layer.nnz for layer in (*blocks, *single)]
    train(model, optimizer, ctl, 2)
    assert counts == [sum(layer.nnz for layer in group) for group in (blocks, single)]
    assert all(a != b for a, b in zip(first, (layer.nnz for layer in (*blocks, *single)), strict=True))


def test_a_layer_may_run_empty_and_full():
    model = model_of(density=0.6)
    optimizer = momentum(model)
    first = layers_of(model)[0]
    ctl = tt.SNFS(
        model, optimizer, end_step=99, update_every=1, drop_fraction=lambda step: 0.99,
        redistribute=lambda layer, optimizer: float(layer is not first),
    )  # fmt: skip
    total = sum(layer.nnz for layer in layers_of(model))
    train(model, optimizer, ctl, 1)
    assert [layer.nnz for layer in layers_of(model)] == [total - 45, 45]
    ctl = tt.SNFS(
        model, optimizer, end_step=99, update_every=1, drop_fraction=lambda step: 0.99,
        redistribute=lambda layer, optimizer: float(layer is first),
    )  # fmt: skip
    train(model, optimizer, ctl, 1)
    assert [layer.nnz for layer in layers_of(model)] == [total - 1, 1]


@pytest.mark.parametrize("window", [1, 3])
def test_growth_is_by_the_running_gradient(window):
    """Against the dense twin's gradients at each step, summed with their weights."""
    model = model_of()
    optimizer = momentum(model)
    ctl = tt.SNFS(
        model, optimizer, end_step=99, update_every=5, window=window, redistribute=None, drop_fraction=lambda step: 0.4
    )
    history = []
    for step in range(5):
        dense = torch.nn.Sequential(*(m.to_linear() if isinstance(m, tt.SparseLinear) else m for m in model))
        dense(batch(step)).square().sum(1).mean().backward()
        history.append([m.weight.grad.t().numpy() for m in dense if isinstance(m, torch.nn.Linear)])
        optimizer.zero_grad()
        model(batch(step)).square().sum(1).mean().backward()
        optimizer.step()
        before = [(places_of(layer), layer.values.detach().abs().numpy().copy()) for layer in layers_of(model)]
        ctl.step()
    for k, (layer, (had, size)) in enumerate(zip(layers_of(model), before, strict=True)):
        running = sum(0.9**age * history[4 - age][k] for age in range(window))
        count = int(0.4 * len(had))
        kept = had[np.sort(np.argsort(-size, kind="stable")[: len(had) - count])]
        scores = np.abs(running).ravel()
        scores[kept] = -1
        expected = np.sort(np.concatenate([kept, np.argsort(-scores, kind="stable")[:count]]))
        np.testing.assert_array_equal(places_of(layer), expected)


@pytest.mark.parametrize("stopped", [3, 6, 7])
def test_a_run_resumed_within_a_window_is_the_uninterrupted_one(stopped):
    def fresh():
        model = model_of()
        optimizer = momentum(model)
        return model, optimizer, tt.SNFS(model, optimizer, end_step=99, update_every=4, window=3)

    def saved(parts):
        file = io.BytesIO()
        torch.save([part.state_dict() for part in parts], file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    whole, first, again = fresh(), fresh(), fresh()
    train(*whole, 13)
    train(*first, stopped)
    train(*again, 1)
    for part, state in zip(again, saved(first), strict=True):
        part.load_state_dict(state)
    train(*again, 13 - stopped, start=stopped)
    for mine, true in zip(layers_of(again[0]), layers_of(whole[0]), strict=True):
        assert torch.equal(mine.indices, true.indices)
        assert torch.equal(mine.values, true.values)
    assert bool(saved(first)[2]["tapes"]["0"]) == (stopped != 4)


def snfs(**settings):
    model = model_of()
    return tt.SNFS(model, momentum(model), **{"end_step": 9, "update_every": 1, **settings})


REFUSED = {
    "window": (lambda: snfs(window=0), "The 'window' parameter of SNFS must be an int >= 1. Got 0."),
    "momentum": (lambda: snfs(momentum=1.5), "The 'momentum' parameter of SNFS must be "),
    "rule": (
        lambda: snfs(redistribute=0.5),
        "The 'redistribute' parameter of SNFS must be None or a callable (layer, optimizer) -> number. Got 0.5.",
    ),
    "end_step": (lambda: snfs(end_step=0), "The 'end_step' parameter of SNFS must be an int >= 1. Got 0."),
    "negative": (
        lambda: step_of(snfs(redistribute=lambda layer, optimizer: -1.0)),
        "The 'redistribute' parameter of SNFS must return finite numbers >= 0. Got -1.0 for '0'.",
    ),
    "no momentum": (
        lambda: mean_momentum(model_of()[0], torch.optim.SGD(model_of().parameters(), lr=0.1)),
        "Redistribution by momentum needs an optimizer that keeps some, as SGD(momentum=0.9) and Adam do, and has made "
        "a step. Got SGD, with state []: mean_gradient does without.",
    ),
    "no optimizer": (lambda: mean_momentum(model_of()[0], None), "Redistribution by momentum needs an optimizer"),
    "no gradient": (
        lambda: mean_gradient(model_of()[0], None),
        "Redistribution by gradient needs the gradients of all controlled layers' values. Got none: call step() before",
    ),
}


def step_of(ctl):
    ctl.model(batch(0)).sum().backward()
    return ctl.step()


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()


def test_a_share_that_is_nan_changes_nothing():
    ctl = snfs(redistribute=lambda layer, optimizer: math.nan)
    before = [layer.pattern_hash.clone() for layer in layers_of(ctl.model)]
    sentence = "SNFS changes nothing at step 1: the share of layer '0' in the growth is NaN. A learning rate"
    with pytest.raises(TopogenError, match=re.escape(sentence)):
        step_of(ctl)
    assert all(map(torch.equal, before, (layer.pattern_hash for layer in layers_of(ctl.model))))
