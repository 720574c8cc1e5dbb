"""Rewiring: survivors keep everything bit for bit, newcomers start at nothing, and it is all or nothing."""

import os
import re
import signal

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch import _passes, _rewire
from topogen_torch._rewire import Rewiring, places_of, rewire

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "momentum foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adam fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, 0.1, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "unknown": lambda p: Unknown(p),
}


class Unknown(torch.optim.Optimizer):
    """An optimizer that nobody has seen, with state under names that nobody knows."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["steps"] = state.get("steps", 0) + 1
                state["sum of cubes"] = state.get("sum of cubes", torch.zeros_like(p)) + p.grad**3
                p -= 0.1 * state["sum of cubes"]


def trained(pattern, make, steps=3):
    torch.manual_seed(0)
    layer = tt.SparseLinear(pattern, dtype=torch.float64)
    optimizer = make(layer.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(7, pattern.shape[0], dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


def on_places(layer, tensor):
    """Return a tensor of one number a connection as {place: number}."""
    return dict(zip(places_of(layer).tolist(), tensor.detach().tolist(), strict=True))


def snapshot(layer, optimizer):
    state = {name: t for name, t in optimizer.state[layer.values].items() if torch.is_tensor(t) and t.ndim}
    parts = {"values": layer.values, "gradient": layer.values.grad, **state}
    return {name: on_places(layer, tensor) for name, tensor in parts.items()}


masks = st.integers(1, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((9, 6)) < 0.4)


@given(masks, masks, st.sampled_from(sorted(OPTIMIZERS)))
def test_state_follows_the_connections(before, after, name):
    layer, optimizer = trained(sp.csr_array(before), OPTIMIZERS[name])
    parameter, old = layer.values, snapshot(layer, optimizer)
    rewire([Rewiring(layer, np.flatnonzero(after))], [optimizer])
    assert layer.values is parameter
    np.testing.assert_array_equal(layer.pattern.toarray(), after)
    assert set(snapshot(layer, optimizer)) == set(old)
    for part, found in snapshot(layer, optimizer).items():
        assert found == {place: old[part].get(place, 0.0) for place in np.flatnonzero(after)}, part
    x = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    dense = layer.to_linear()
    torch.testing.assert_close(layer(x), dense(x))
    optimizer.zero_grad()
    layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, dense.weight.grad.t()[torch.from_numpy(after)])
    optimizer.step()
    state = tt.SparseLinear(sp.csr_array(before), dtype=torch.float64)
    state.load_state_dict(layer.state_dict())
    assert torch.equal(state(x), layer(x))


@given(masks, masks, masks)
def test_an_exchange_is_what_a_search_finds(before, gone, after):
    """Drop some, grow others: among them some that were just dropped, which keep everything."""
    layer = tt.SparseLinear(sp.csr_array(before), dtype=torch.float64)
    now = places_of(layer)
    dropped = np.random.default_rng(0).permutation(np.flatnonzero(gone.ravel()[now]))
    grown = np.setdiff1d(np.flatnonzero(after), np.delete(now, dropped))
    found = Rewiring.exchanging(layer, now, dropped, grown)
    plain = Rewiring(layer, np.sort(np.concatenate([np.delete(now, dropped), grown])))
    np.testing.assert_array_equal(found.places, plain.places)
    np.testing.assert_array_equal(found.origins, plain.origins_in(now))
    assert set(np.setdiff1d(found.places, now)) <= set(found.grown) <= set(found.places)
    kept = Rewiring.keeping(layer, gone.ravel()[now])
    np.testing.assert_array_equal(kept.origins, Rewiring(layer, now[gone.ravel()[now]]).origins_in(now))


@pytest.mark.parametrize(
    "grown", [[1], [2, 2], [3, 2], [-1, 2], [2, 9], [0, 1, 2]], ids=["stays", "twice", "falls", "below", "above", "one"]
)
def test_what_cannot_grow_is_no_exchange(grown):
    """Of the places 0, 1 and 5 of nine the first goes."""
    layer = tt.SparseLinear(sp.csr_array(([1, 1, 1], ([0, 0, 1], [0, 1, 2])), shape=(3, 3)))
    now = places_of(layer)
    assert Rewiring.exchanging(layer, now, np.array([0]), np.array(grown)) is None
    assert Rewiring.exchanging(layer, now, np.array([0]), np.array([0, 2])).places.tolist() == [0, 1, 2, 5]


def test_what_keeps_its_number_keeps_its_memory():
    """Graphs that were captured know addresses."""
    before = np.zeros((4, 4), bool)
    before[0] = True
    layer, optimizer = trained(sp.csr_array(before), OPTIMIZERS["adam"])
    addresses = [layer.values.data_ptr(), *(t.data_ptr() for t in optimizer.state[layer.values].values())]
    rewire([Rewiring(layer, np.array([1, 2, 3, 9]))], [optimizer])
    assert addresses == [layer.values.data_ptr(), *(t.data_ptr() for t in optimizer.state[layer.values].values())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loss_that_is_still_held_does_no_harm(dtype):
    """A training loop holds the last loss, and with it a graph, until the next one is there."""
    layer = tt.SparseLinear(np.ones((4, 3)), dtype=dtype)
    loss = layer(torch.ones(2, 4, dtype=dtype)).sum()
    loss.backward()
    for places in ([0, 5, 7], [1, 2, 3, 4, 5]):
        rewire([Rewiring(layer, np.array(places))])
        later = layer(torch.ones(2, 4, dtype=dtype)).sum()
        layer.zero_grad()
        later.backward()
        assert layer.values.grad.tolist() == [2.0] * len(places)
    layer.load_state_dict(tt.SparseLinear(np.eye(4, 3), dtype=dtype).state_dict())
    layer(torch.ones(2, 4, dtype=dtype)).sum().backward()
    assert layer.values.grad.tolist() == [2.0] * 3


@pytest.mark.parametrize(("size", "kind"), [(46_340, np.int32), (46_341, np.int64)])
def test_places_may_be_more_than_short_ints_can_number(size, kind):
    """46,340 squared is just below 2^31."""
    last = size - 1
    layer = tt.SparseLinear(sp.csr_array(([1.0, 1.0], ([0, last], [0, last])), shape=(size, size)), bias=False)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([2.0, 3.0]))
    now = places_of(layer)
    assert now.dtype == kind
    assert now.tolist() == [0, size * size - 1]
    grown = np.array([1, size * size - 2])
    rewiring = Rewiring.exchanging(layer, now, np.array([True, False]), grown)
    assert rewiring.places.tolist() == [1, size * size - 2, size * size - 1]
    rewire([rewiring])
    found = layer.to_scipy().tocoo()
    assert list(zip(*found.coords, found.data, strict=True)) == [(0, 1, 0), (last, last - 1, 0), (last, last, 3)]
    assert Rewiring.exchanging(layer, places_of(layer), np.array([0]), np.array([size * size])) is None


def shared_with_the_gradient(layer, state):
    state["shared"] = layer.values.grad


def shared_with_the_values(layer, state):
    state["shared"] = layer.values.detach()  # what .to(float64) returns, too


def shared_by_two_names(layer, state):
    state["shared"] = state["more"] = torch.arange(1.0, 7.0, dtype=torch.float64)


@pytest.mark.parametrize("share", [shared_with_the_gradient, shared_with_the_values, shared_by_two_names])
@pytest.mark.parametrize("newcomers", [None, torch.tensor([7.0, 8.0])], ids=["zero", "given"])
def test_what_shares_memory_is_moved_once(share, newcomers):
    """As many connections before and after, so that everything could stay where it is."""
    layer = tt.SparseLinear(np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0]]), bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer.values.grad = torch.arange(1.0, 7.0, dtype=torch.float64) * 10
    share(layer, optimizer.state[layer.values])
    state = optimizer.state[layer.values]
    tensors = {"values": layer.values.detach(), "gradient": layer.values.grad, **state}
    before = {name: tensor.tolist() for name, tensor in tensors.items()}
    rewire([Rewiring(layer, np.array([0, 2, 3, 5, 6, 7]), newcomers)], [optimizer])
    new = [0.0, 0.0] if newcomers is None else newcomers.tolist()
    found = {"values": layer.values.detach(), "gradient": layer.values.grad, **state}
    for name, tensor in found.items():
        kept = [before[name][k] for k in (0, 2, 3, 5)]
        behind = tensor.tolist()[4:]
        assert tensor.tolist()[:4] == kept
        assert behind == new if name == "values" else behind in ([0.0, 0.0], new)


def test_gradients_of_two_layers_may_be_one_tensor():
    first, second = (tt.SparseLinear(np.ones((2, 3)), bias=False) for _ in range(2))
    ((first.values.view(-1) + second.values.view(-1)) * torch.arange(1.0, 7.0)).sum().backward()
    rewire([Rewiring(layer, np.array([0, 2, 3, 4])) for layer in (first, second)])
    rewire([Rewiring(layer, np.array([0, 1, 3, 5])) for layer in (first, second)])
    assert first.values.grad.tolist() == second.values.grad.tolist() == [1.0, 0.0, 4.0, 0.0]
    shared = torch.arange(1.0, 5.0)
    first.values.grad, other = shared, shared  # that of a parameter which stays as it is
    rewire([Rewiring(first, np.array([0, 1, 2, 3]))])
    assert first.values.grad.tolist() == [1.0, 2.0, 0.0, 3.0]
    assert other.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_values_may_be_tied():
    first, second = (tt.SparseLinear(np.ones((2, 3)), bias=False) for _ in range(2))
    second.values = first.values
    with torch.no_grad():
        first.values.copy_(torch.arange(1.0, 7.0))
    rewire([Rewiring(layer, np.array([0, 2, 3, 5])) for layer in (first, second)])
    with torch.no_grad():
        first.values.copy_(torch.arange(1.0, 5.0))
    rewire([Rewiring(layer, np.array([1, 2, 3, 5])) for layer in (first, second)])
    assert first.values.tolist() == second.values.tolist() == [0.0, 2.0, 3.0, 4.0]


def test_nothing_is_changed_where_a_pass_cannot_be_compiled(monkeypatch):
    layer, optimizer = trained(sp.csr_array(np.eye(3)), OPTIMIZERS["adam"])
    old, compiled = snapshot(layer, optimizer), _passes._compiled()

    class Full:
        def __getattr__(self, name):
            if name == "followed":
                raise OSError(28, "No space left on device")
            return getattr(compiled, name)

    monkeypatch.setattr(_passes, "_compiled", Full)
    with pytest.raises(OSError, match="No space left"):
        rewire([Rewiring(layer, np.array([0, 1, 5]))], [optimizer])
    monkeypatch.undo()
    assert snapshot(layer, optimizer) == old


def test_without_compiled_passes_nothing_moves_in_place(monkeypatch):
    """They would need memory while the layer is half changed."""
    monkeypatch.setattr(_passes, "_compiled", lambda: None)
    layer, optimizer = trained(sp.csr_array(np.eye(3)), OPTIMIZERS["adam"])
    moved = []
    monkeypatch.setattr(_rewire._Mover, "move", lambda self: moved.append(self))
    rewire([Rewiring(layer, np.array([0, 1, 5]))], [optimizer])
    assert not moved
    assert layer.values[1:].tolist() == [0.0, 0.0]


def test_newcomers_may_start_somewhere():
    layer = tt.SparseLinear(sp.csr_array(np.eye(3)), bias=False)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([1.0, 2.0, 3.0]))
    rewire([Rewiring(layer, np.array([0, 2, 7, 8]), torch.tensor([5.0, 6.0]))])
    np.testing.assert_array_equal(layer.to_scipy().toarray(), [[1, 0, 5], [0, 0, 0], [0, 6, 3]])


def test_nothing_is_changed_where_one_layer_cannot():
    first, optimizer = trained(sp.csr_array(np.eye(3)), OPTIMIZERS["adam"])
    second = tt.SparseLinear(sp.csr_array(np.eye(3)), dtype=torch.float64)
    lbfgs = torch.optim.LBFGS(second.parameters(), max_iter=2)

    def loss():
        lbfgs.zero_grad()
        value = second(torch.ones(2, 3, dtype=torch.float64)).square().sum()
        value.backward()
        return value

    lbfgs.step(loss)
    old = snapshot(first, optimizer)
    sentence = (
        "The optimizer of a rewired layer must keep state of the shape of its values, (3,), or single numbers. LBFGS"
    )
    with pytest.raises(SpecError, match=re.escape(sentence)):
        rewire([Rewiring(first, np.array([1])), Rewiring(second, np.array([1]))], [optimizer, lbfgs])
    assert snapshot(first, optimizer) == old
    assert second.nnz == 3


@pytest.mark.parametrize("places", [[0, 1, 5, 7], [0, 1, 5]], ids=["another number", "as many"])
def test_ctrl_c_waits_until_the_layer_is_whole(monkeypatch, places):
    layer, optimizer = trained(sp.csr_array(np.eye(3)), OPTIMIZERS["adam"])
    install, first = layer._install, float(layer.values.detach()[0])

    def interrupted(*buffers):
        os.kill(os.getpid(), signal.SIGINT)
        install(*buffers)

    monkeypatch.setattr(layer, "_install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewire([Rewiring(layer, np.array(places))], [optimizer])
    assert layer.nnz == len(layer.values) == len(places)
    assert layer.values.tolist() == [first] + [0.0] * (len(places) - 1)
    assert all(t.shape in ((len(places),), ()) for t in optimizer.state[layer.values].values())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_forgotten_state_tensor_is_caught(monkeypatch):
    """The law above can fail."""
    monkeypatch.setattr(_rewire, "_following", lambda state, values, optimizer: ["exp_avg"])
    before, after = np.eye(3, dtype=bool), np.eye(3, k=1, dtype=bool) | np.eye(3, dtype=bool)
    with pytest.raises((AssertionError, ValueError)):
        test_state_follows_the_connections.hypothesis.inner_test(before, after, "adam")
