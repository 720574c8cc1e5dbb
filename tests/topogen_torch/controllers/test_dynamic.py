"""SET and RigL: the worked example, exact numbers, gradients of what does not exist, refusals, and resuming."""

import copy
import io
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError
from topogen_torch.controllers import _absent
from topogen_torch.controllers.growth import at_random

W = torch.tensor([[0.5, 0, -0.2, 0], [0, 0.1, 0, -0.8], [0.9, 0, 0.3, 0], [0, -0.4, 0, 0.05]])
G = torch.tensor(
    [[0.10, 0.90, 0.20, 0.30], [0.85, 0.80, 0.15, 0.05], [0.01, 0.40, 0.02, 0.60], [0.70, 0.03, 0.25, 0.50]]
)


def worked_layer():
    layer = tt.SparseLinear(sp.csr_array(W.numpy()), bias=False)
    with torch.no_grad():
        layer.values.copy_(W[W != 0])
    return layer


def model_of(*, density=0.3, seed=0):
    torch.manual_seed(seed)
    net = tg.generate(tg.ErdosRenyi(sizes=[12, 9, 5], density=density), rng=seed)
    return tt.sparse_mlp(net, dtype=torch.float64)


def train(model, optimizer, ctl, steps, start=0):
    changed = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().sum(1).mean().backward()
        optimizer.step()
        changed.append(ctl.step())
    return changed


@pytest.mark.parametrize(
    ("fraction", "dropped", "grown"),
    [(0.3, [(1, 1), (3, 3)], [(0, 1), (1, 0)]), (0.4, [(0, 2), (3, 3)], [(0, 1), (1, 0)])],
)
def test_rigl_worked_example(fraction, dropped, grown):
    """k = 2: (3,3) and (1,1) go. k = 3: (0,2) goes as well, and (1,1), chosen again, keeps value and state."""
    layer = worked_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    ctl = tt.RigL(nn.Sequential(layer), optimizer, end_step=9, update_every=1, drop_fraction=lambda step: fraction)
    layer(torch.eye(4)).backward(G)
    optimizer.step()
    before = layer.pattern.toarray()
    assert ctl.step()
    after = layer.pattern.toarray()
    assert list(map(tuple, np.argwhere(before & ~after).tolist())) == dropped
    assert list(map(tuple, np.argwhere(after & ~before).tolist())) == grown
    momentum = np.zeros((4, 4), np.float32)
    momentum[layer.pattern.nonzero()] = optimizer.state[layer.values]["momentum_buffer"]
    kept = before & after
    np.testing.assert_array_equal(layer.to_scipy().toarray()[kept], W.numpy()[kept])
    np.testing.assert_array_equal(momentum[kept], G.numpy()[kept])
    for place in grown:
        assert layer.to_scipy().toarray()[place] == 0


def test_set_worked_example():
    """P = 5, N = 3, zeta = 0.3: one positive weight goes, 0.05 at (3,3), and no negative one."""
    layer = worked_layer()
    ctl = tt.SET(nn.Sequential(layer), None, rng=0, update_every=1)
    assert ctl.step()
    after = layer.pattern.toarray()
    assert layer.nnz == 8
    assert (after | (W.numpy() == 0))[W.numpy() != 0].sum() >= 7
    ctl.finish()
    assert layer.nnz == 7


def test_set_drops_on_both_sides():
    layer = tt.SparseLinear(np.ones((1, 8)), bias=False)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([0.1, 0.2, 0.3, 9.0, -0.01, -0.02, -5.0, -6.0]))
    tt.SET(nn.Sequential(layer), None, rng=0, update_every=1, drop_fraction=0.5).finish()
    np.testing.assert_allclose(layer.values.detach(), [0.3, 9.0, -5.0, -6.0])


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 0.9))
def test_the_number_of_connections_is_exact(seed, every, fraction):
    for make in (
        lambda m, o: tt.SET(m, o, rng=seed, update_every=every, drop_fraction=fraction),
        lambda m, o: tt.RigL(m, o, end_step=7, update_every=every, drop_fraction=fraction),
    ):
        model = model_of(seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        counts = [layer.nnz for layer in model if isinstance(layer, tt.SparseLinear)]
        ctl = make(model, optimizer)
        changed = train(model, optimizer, ctl, 8)
        assert counts == [layer.nnz for layer in model if isinstance(layer, tt.SparseLinear)]
        last = 7 if isinstance(ctl, tt.RigL) else 9
        assert changed == [step % every == 0 and step < last for step in range(1, 9)]


@pytest.mark.parametrize("chunk", [1, 40, 1 << 22])
def test_rigl_grows_where_the_dense_gradient_is_largest(chunk, monkeypatch):
    """Whatever the size of the chunks, and over several micro-batches: against autograd of the dense twin."""
    monkeypatch.setattr(_absent, "CHUNK", chunk)
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    ctl = tt.RigL(model, optimizer, end_step=10**6, update_every=2)
    x = torch.randn(6, 12, dtype=torch.float64)
    model(x).square().sum().backward()  # a step that is not due leaves nothing behind
    ctl.step()
    dense = nn.Sequential(*(m.to_linear() if isinstance(m, tt.SparseLinear) else copy.deepcopy(m) for m in model))
    weights = [m.to_scipy().toarray() for m in model if isinstance(m, tt.SparseLinear)]
    before = [w != 0 for w in weights]
    for part in x.chunk(2):
        model(part).square().sum().backward()
    dense(x).square().sum().backward()
    assert ctl.step()
    layers = [m for m in model if isinstance(m, tt.SparseLinear)]
    gradients = [m.weight.grad.t().abs().numpy() for m in dense if isinstance(m, nn.Linear)]
    for layer, weight, had, gradient in zip(layers, weights, before, gradients, strict=True):
        k = int(0.3 * had.sum() * (1 + np.cos(np.pi * 2 / 10**6)) / 2)
        kept = np.argsort(np.where(had, -np.abs(weight), 1).ravel(), kind="stable")[: had.sum() - k]
        candidates = gradient.ravel().astype(float)
        candidates[kept] = -1
        expected = np.sort(np.concatenate([kept, np.argsort(-candidates, kind="stable")[:k]]))
        np.testing.assert_array_equal(np.flatnonzero(layer.pattern.toarray()), expected)


def test_equal_gradients_go_to_the_first_places():
    layer = tt.SparseLinear(sp.csr_array(([1.0, 1.0, 1.0], ([2, 3, 3], [0, 0, 1])), shape=(4, 3)), bias=False)
    ctl = tt.RigL(nn.Sequential(layer), None, end_step=9, update_every=1, drop_fraction=lambda step: 0.99)
    layer(torch.ones(1, 4)).sum().backward()
    ctl.step()
    np.testing.assert_array_equal(np.argwhere(layer.pattern.toarray()), [[0, 0], [0, 1], [2, 0]])


def test_nothing_is_recorded_between_updates():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ctl = tt.RigL(model, optimizer, end_step=100, update_every=3)
    recording = []
    for _ in range(7):
        recording.append(bool(model[0]._forward_hooks))
        train(model, optimizer, ctl, 1)
    assert recording == [False, False, True] * 2 + [False]


def test_explored_and_survival():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ctl = tt.SET(model, optimizer, rng=0, update_every=1)
    ever = [m.pattern.toarray().copy() for m in model if isinstance(m, tt.SparseLinear)]
    first = [pattern.copy() for pattern in ever]
    for _ in range(5):
        train(model, optimizer, ctl, 1)
        now = [m.pattern.toarray() for m in model if isinstance(m, tt.SparseLinear)]
        ever = [a | b for a, b in zip(ever, now, strict=True)]
    assert list(ctl.explored().values()) == [pattern.mean() for pattern in ever]
    assert list(ctl.survival().values()) == [(a & b).sum() / a.sum() for a, b in zip(first, now, strict=True)]


def resumed(parts):
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("method", ["SET", "RigL"])
@pytest.mark.parametrize("stopped", [1, 4, 6])
def test_a_resumed_run_is_the_uninterrupted_one(method, stopped):
    def make(model, optimizer):
        if method == "SET":
            schedule = tg.cosine(initial=0.5, end_step=20)
            return tt.SET(model, optimizer, rng=np.random.SeedSequence([3, 4]), update_every=2, drop_fraction=schedule)
        return tt.RigL(model, optimizer, end_step=9, update_every=2)

    def fresh(seed):
        model = model_of(seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, make(model, optimizer)

    whole = fresh(0)
    train(*whole, 10)
    first = fresh(0)
    train(*first, stopped)
    again = fresh(0)
    train(*again, 3)  # the state must replace whatever is there
    for part, state in zip(again, resumed(first), strict=True):
        part.load_state_dict(state)
    train(*again, 10 - stopped, start=stopped)
    for mine, true in zip(resumed(again), resumed(whole), strict=True):
        assert_same(mine, true)


def assert_same(mine, true):
    if isinstance(true, torch.Tensor):
        assert torch.equal(mine, true)
    elif isinstance(true, dict):
        assert list(mine) == list(true)
        for key in true:
            assert_same(mine[key], true[key])
    elif isinstance(true, list):
        for a, b in zip(mine, true, strict=True):
            assert_same(a, b)
    else:
        assert mine == true


def test_nan_weights_change_nothing():
    model = model_of()
    ctl = tt.SET(model, None, rng=0, update_every=1)
    before = [m.pattern_hash.clone() for m in model if isinstance(m, tt.SparseLinear)]
    with torch.no_grad():
        model[2].values[3] = float("nan")
    sentence = "SET changes nothing at step 1: 1 of 14 scores by magnitude in layer '2' are NaN."
    with pytest.raises(TopogenError, match=re.escape(sentence)):
        ctl.step()
    assert all(map(torch.equal, before, (m.pattern_hash for m in model if isinstance(m, tt.SparseLinear))))


def test_nan_gradients_change_nothing():
    model = model_of()
    ctl = tt.RigL(model, None, end_step=9, update_every=1)
    model(torch.full((1, 12), float("nan"), dtype=torch.float64)).sum().backward()
    before = model[0].pattern_hash.clone()
    with pytest.raises(
        TopogenError, match=r"RigL changes nothing at step 1: \d+ of 108 scores by gradient in layer '0' are NaN"
    ):
        ctl.step()
    assert torch.equal(before, model[0].pattern_hash)


def test_growth_by_gradient_needs_a_backward_pass():
    model = model_of()
    with pytest.raises(TopogenError, match=r"^Growth by gradient needs a backward pass through every controlled layer"):
        tt.RigL(model, None, end_step=9, update_every=1).step()


def test_a_group_has_its_own_settings():
    model = model_of()
    ctl = tt.SET(model, None, rng=0, update_every=1, groups=[{"layers": "2", "drop_fraction": 0.0}])
    before = [m.pattern.toarray() for m in model if isinstance(m, tt.SparseLinear)]
    ctl.step()
    after = [m.pattern.toarray() for m in model if isinstance(m, tt.SparseLinear)]
    assert [bool((a == b).all()) for a, b in zip(before, after, strict=True)] == [False, True]


def test_only_the_layers_that_match_are_controlled():
    model = model_of()
    ctl = tt.SET(model, None, rng=0, update_every=1, layers="0")
    assert [target.name for target in ctl.targets] == ["0"]


def test_a_rule_of_growth_may_be_replaced_but_not_be_wrong():
    model = model_of()

    def first(request):
        assert request.kept.dtype == np.int64  # as is promised
        return np.setdiff1d(np.arange(200), request.kept)[: request.count][::-1]

    ctl = tt.SET(model, None, rng=0, update_every=1, layers="0", grow=first)
    count = model[0].nnz
    ctl.step()
    assert model[0].nnz == count
    wrong = tt.SET(model, None, rng=0, update_every=1, layers="0", grow=lambda request: request.kept[: request.count])
    sentence = r"The 'grow' parameter of SET must return (\d+) different empty places in \[0, 108\) for '0'. Got \1 "
    with pytest.raises(SpecError, match=sentence + r"different ones, \1 of them occupied and 0 outside\."):
        wrong.step()


REFUSED = {
    "no layers": (
        lambda: tt.SET(nn.Linear(3, 3), None, rng=0, update_every=1),
        "The 'model' parameter of SET must have sparse layers. Got none: topogen_torch.sparsify(model, density=1.0)",
    ),
    "glob": (
        lambda: tt.RigL(model_of(), None, end_step=9, layers="fc*"),
        "The 'layers' parameter of RigL must name sparse layers, '0', '2'. Got 'fc*', which matches none.",
    ),
    "group": (
        lambda: tt.RigL(model_of(), None, end_step=9, groups=[{"layers": "0", "fraction": 1}]),
        "The 'groups' parameter of RigL must have mappings of 'layers' and any of "
        "['drop_fraction', 'grow'], since the other settings are those of all layers. Got ['fraction', 'layers'].",
    ),
    "optimizer": (
        lambda: tt.RigL(model_of(), torch.optim.SGD(model_of()[0].parameters(), 0.1), end_step=9),
        "The 'optimizer' parameter of RigL must hold the values of every layer that it controls. "
        "It lacks those of '0', '2'.",
    ),
    "grow": (
        lambda: tt.RigL(model_of(), None, end_step=9, grow="gradient"),
        "The 'grow' parameter of RigL must be a callable (request) -> places. Got 'gradient'.",
    ),
    "fraction": (
        lambda: tt.RigL(model_of(), None, end_step=9, drop_fraction=1.0),
        "The 'drop_fraction' parameter of RigL must be a number in [0, 1), or a schedule of such. Got 1.0.",
    ),
    "rng": (
        lambda: tt.SET(model_of(), None, rng=None, update_every=1),
        "The 'rng' parameter of SET must be an int, a SeedSequence or a Generator. Got None.",
    ),
    "update_every": (
        lambda: tt.SET(model_of(), None, rng=0, update_every=0),
        "The 'update_every' parameter of SET must be an int >= 1. Got 0.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()


@pytest.mark.parametrize("fraction", [1.0, 1.5, -0.5, float("nan")])
@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_a_schedule_that_leaves_its_range_is_refused_at_that_step(method, fraction):
    model = model_of()
    settings = {"drop_fraction": lambda step: 0.5 if step < 2 else fraction, "update_every": 1}
    if method == "SET":
        ctl = tt.SET(model, None, rng=0, **settings)
    else:
        ctl = tt.RigL(model, None, rng=0, end_step=9, grow=at_random, **settings)
    assert ctl.step()
    before = [bytes(target.layer.pattern_hash.tolist()) for target in ctl.targets]
    sentence = (
        f"The 'drop_fraction' parameter of {method} must give numbers in [0, 1). Got {fraction} at step 2 for '0'."
    )
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        ctl.step()
    assert [bytes(target.layer.pattern_hash.tolist()) for target in ctl.targets] == before


def test_a_fraction_may_be_a_numpy_number():
    assert tt.SET(model_of(), None, rng=0, update_every=1, drop_fraction=np.float32(0.5)).step()


def test_a_pattern_changed_by_somebody_else_is_noticed():
    model = model_of()
    ctl = tt.SET(model, None, rng=0, update_every=5)
    model[0].load_state_dict(model_of(seed=1)[0].state_dict())
    with pytest.raises(
        SpecError, match=r"^SET must be the only one to change the layers .* The pattern of '0' was changed"
    ):
        ctl.step()


def test_foreign_states_are_refused():
    model, other = model_of(), model_of(seed=1)
    ctl = tt.SET(model, None, rng=0, update_every=5)
    state = ctl.state_dict()
    cases = {
        "must be whole. Got no 'count'": {k: v for k, v in state.items() if k != "count"},
        "must be of the same method, SET. Got RigL": {**state, "method": "RigL"},
        "must be of the same settings": tt.SET(model, None, rng=0, update_every=6).state_dict(),
        "must be of the layers ['0', '2']. Got ['0']": tt.SET(
            model, None, rng=0, update_every=5, layers="0"
        ).state_dict(),
        "must belong to the model's pattern in layer '0'": tt.SET(other, None, rng=0, update_every=5).state_dict(),
    }
    for sentence, foreign in cases.items():
        with pytest.raises(SpecError, match=re.escape(sentence)):
            ctl.load_state_dict(foreign)
    assert ctl.steps == 0
