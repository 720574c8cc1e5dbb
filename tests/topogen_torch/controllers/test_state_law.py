"""The law of the optimizer's state, for every method and every optimizer, and the model against its dense twin.

After a step of a controller a connection that was there before has its value, its gradient and its state bit for bit;
one that was not starts with nothing; the layer computes what its dense twin computes, forward and backward.
"""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topogen_torch as tt
from topogen_torch import _rewire
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import places_of
from topogen_torch.controllers.redistribution import mean_gradient, mean_momentum


class Unknown(torch.optim.Optimizer):
    """An optimizer that nobody has seen, with state under names that nobody knows."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["steps"] = state.get("steps", 0) + 1
                state["sum of cubes"] = state.get("sum of cubes", torch.zeros_like(p)) + p.grad**3
                p -= 1e-3 * state["sum of cubes"].clamp(-99, 99)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=False),
    "momentum foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "momentum fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adam foreach": lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "adamax": lambda p: torch.optim.Adamax(p, 0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, 0.1, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "unknown": Unknown,
}

METHODS = {
    "OneShot": lambda m, o: tt.OneShot(m, o, density=0.2),
    "OneShot, global": lambda m, o: tt.OneShot(m, o, density=0.2, distribution="global"),
    "GradualMagnitude": lambda m, o: tt.GradualMagnitude(
        m, o, density=0.1, begin_step=0, end_step=4, update_every=1, distribution="erk"
    ),
    "Threshold": lambda m, o: tt.Threshold(m, o, quality=0.5, steps=[1, 2, 3]),
    "ProximalL1": lambda m, o: tt.ProximalL1(m, o, strength=0.3, update_every=1),
    "PruneNeurons": lambda m, o: tt.PruneNeurons(m, o, density=0.5),
    "LotteryTicket": lambda m, o: tt.LotteryTicket(
        m, o, rounds=3, round_steps=1, rewind="learning rate", optimizer_state="keep"
    ),
    "SynFlow": lambda m, o: tt.SynFlow(m, o, input_shape=[8], density=0.2, rounds=5, least=1),
    "SET": lambda m, o: tt.SET(m, o, rng=0, update_every=1, drop_fraction=0.5),
    "RigL": lambda m, o: tt.RigL(m, o, end_step=99, update_every=1, drop_fraction=0.5),
    "SNFS": lambda m, o: tt.SNFS(m, o, end_step=99, update_every=1, window=2, redistribute=mean_gradient),
}
IN_PLACE = ("ProximalL1",)  # which changes values before it changes the pattern


def model_of(seed):
    """Linear, blocks and linear again, each half full or so."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    masks = [sp.csr_array(rng.random(shape) < 0.5) for shape in ((8, 9), (3, 4), (12, 5))]
    parts = tt.SparseLinear(masks[0]), tt.BlockSparseLinear(masks[1], 3), tt.SparseLinear(masks[2])
    return nn.Sequential(parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2]).double()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, Patterned)]


def snapshot(model, optimizer):
    """For each layer and each of its tensors, the units by their places."""
    found = []
    for layer in layers_of(model):
        state = optimizer.state[layer.values].items()
        own = {name: entry for name, entry in state if torch.is_tensor(entry) and entry.shape == layer.values.shape}
        parts = {"values": layer.values, "gradient": layer.values.grad, **own}
        places = places_of(layer).tolist()
        found.append({name: dict(zip(places, t.detach().clone(), strict=True)) for name, t in parts.items()})
    return found


def dense_twin(model):
    return nn.Sequential(*(m.to_linear() if isinstance(m, Patterned) else m for m in model))


def check_law(method, optimizer_name, seed):
    model = model_of(seed)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    ctl = METHODS[method](model, optimizer)
    parameters, changes = [layer.values for layer in layers_of(model)], 0
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.randn(7, 8, dtype=torch.float64)).square().sum()
        loss.backward()
        optimizer.step()
        before = snapshot(model, optimizer)
        changes += ctl.step()
        after = snapshot(model, optimizer)
        for layer, old, new in zip(layers_of(model), before, after, strict=True):
            assert set(old) == set(new)
            for name in new:
                if name == "values" and method in IN_PLACE:
                    continue
                for place, entry in new[name].items():
                    assert torch.equal(entry, old[name].get(place, torch.zeros_like(entry))), (name, place)
            assert len(layer.values) == len(layer.indices)
        twin = dense_twin(model)
        x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        optimizer.zero_grad()
        mine, true = model(x), twin(y)
        torch.testing.assert_close(mine, true)
        mine.square().sum().backward()
        true.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        for layer, linear in zip(layers_of(model), (m for m in twin if isinstance(m, nn.Linear)), strict=True):
            expected = linear.weight.grad.t()
            if layer._unit:
                expected = expected.unflatten(0, (-1, 3)).unflatten(2, (-1, 3)).transpose(1, 2)
            torch.testing.assert_close(layer.values.grad, expected.flatten(0, 1)[torch.from_numpy(places_of(layer))])
            torch.testing.assert_close(layer.bias.grad, linear.bias.grad)
    assert changes
    assert all(layer.values is parameter for layer, parameter in zip(layers_of(model), parameters, strict=True))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=4)
@given(st.sampled_from(sorted(OPTIMIZERS)), st.integers(0, 10**6))
def test_state_follows_the_connections(method, optimizer, seed):
    check_law(method, optimizer, seed)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_with_every_method(method, optimizer):
    check_law(method, optimizer, 0)


def test_momentum_redistribution_keeps_the_law(monkeypatch):
    make = lambda m, o: tt.SNFS(m, o, end_step=99, update_every=1, redistribute=mean_momentum)  # noqa: E731
    monkeypatch.setitem(METHODS, "SNFS", make)
    for optimizer in ("momentum", "adam", "nadam"):
        check_law("SNFS", optimizer, 3)


@pytest.mark.parametrize("forgotten", ["exp_avg", "exp_avg_sq"])
def test_state_that_stays_behind_is_caught(forgotten, monkeypatch):
    """The law can fail: where the number of connections stays, state in its old slots has the right shape."""
    following = _rewire._following
    monkeypatch.setattr(_rewire, "_following", lambda *args: [n for n in following(*args) if n != forgotten])
    with pytest.raises(AssertionError):
        check_law("SET", "adam", 0)
