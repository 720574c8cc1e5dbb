"""Every method on every kind of layer: exact numbers after every step, state that follows, and the dense result."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import topogen_torch as tt
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import places_of

RNG = np.random.default_rng(7)


def random(n_in, n_out, density=0.5):
    return sp.csr_array(RNG.random((n_in, n_out)) < density)


class First(nn.Module):
    """The first thing that a recurrent layer, or self-attention, returns."""

    def __init__(self, layer, reads=1):
        super().__init__()
        self.layer, self.reads = layer, reads

    def forward(self, x):
        return self.layer(*[x] * self.reads)[0]


KINDS = {
    "linear": (lambda: tt.SparseLinear(random(9, 8)), (5, 9)),
    "linear without a bias": (lambda: tt.SparseLinear(random(9, 8), bias=False), (5, 9)),
    "a full layer": (lambda: tt.SparseLinear(np.ones((4, 5))), (5, 4)),
    "one connection": (lambda: tt.SparseLinear(sp.csr_array(([1.0], ([2], [1])), shape=(4, 5))), (5, 4)),
    "blocks": (lambda: tt.BlockSparseLinear(random(4, 5), 3), (5, 12)),
    "kernels": (lambda: tt.SparseConv2d(random(4, 5), 3, padding=1), (2, 4, 5, 5)),
    "connections of kernels": (lambda: tt.SparseConv2d([random(4, 5, 0.4) for _ in range(9)], 3), (2, 4, 5, 5)),
    "one dimension": (lambda: tt.SparseConv1d(random(4, 5), 3, stride=2), (2, 4, 9)),
    "attention": (lambda: First(tt.SparseMultiheadAttention(random(8, 8), 2, batch_first=True), 3), (2, 5, 8)),
    "LSTM": (lambda: First(tt.SparseLSTM([(random(6, 20), random(5, 20))])), (4, 3, 6)),
    "GRU": (lambda: First(tt.SparseGRU([(random(6, 15), random(5, 15))])), (4, 3, 6)),
    "low rank": (lambda: tt.LowRankPlusSparse(random(9, 8), 2), (5, 9)),
}
SAME = {
    "SET": lambda m, o: tt.SET(m, o, rng=0, update_every=1, drop_fraction=0.5),
    "RigL": lambda m, o: tt.RigL(m, o, end_step=99, update_every=1, drop_fraction=0.5),
}
MOVING = {"SNFS": lambda m, o: tt.SNFS(m, o, end_step=99, update_every=1)}
FEWER = {
    "OneShot": lambda m, o: tt.OneShot(m, o, density=0.05),
    "GradualMagnitude": lambda m, o: tt.GradualMagnitude(
        m, o, density=0.05, begin_step=0, end_step=2, update_every=1, distribution="global"
    ),
}
METHODS = SAME | MOVING | FEWER
BY_DEFAULT = {("linear", "SNFS"), ("blocks", "GradualMagnitude"), ("kernels", "OneShot"), ("LSTM", "SNFS")}
CASES = [
    pytest.param(kind, name, marks=() if name in SAME or (kind, name) in BY_DEFAULT else pytest.mark.slow)
    for kind in KINDS
    for name in METHODS
]


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, Patterned)]


def tensors_of(layer, optimizer):
    """The values of a layer, their gradient, and all state of their shape, by place."""
    state = optimizer.state[layer.values].items()
    own = {name: entry for name, entry in state if torch.is_tensor(entry) and entry.shape == layer.values.shape}
    parts = {"values": layer.values, "gradient": layer.values.grad, **own}
    places = places_of(layer).tolist()
    return {name: dict(zip(places, t.detach().clone(), strict=True)) for name, t in parts.items()}


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_numbers_are_exact_and_everything_follows(kind, method):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model = nn.Sequential(make()).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.05, amsgrad=True)
    ctl = METHODS[method](model, optimizer)
    layers = layers_of(model)
    begun = [len(layer.values) for layer in layers]
    moved = False
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(shape, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        before = [tensors_of(layer, optimizer) for layer in layers]
        ctl.step()
        for layer, old in zip(layers, before, strict=True):
            new = tensors_of(layer, optimizer)
            assert set(new) == set(old) >= {"values", "gradient", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
            for name in new:
                for place, entry in new[name].items():
                    assert torch.equal(entry, old[name].get(place, torch.zeros_like(entry))), (name, place)
            moved = moved or list(new["values"]) != list(old["values"])
            assert len(layer.values) == layer.indices.numel() == layer._stored_pattern.nnz
        counts = [len(layer.values) for layer in layers]
        if method in SAME:
            assert counts == begun
        elif method in MOVING:
            assert sum(counts) == sum(begun)
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(model(x), tt.densify(model)(x))
    possible = [math.prod(layer._stored_sizes) for layer in layers]
    if method == "OneShot":
        assert counts == [round(0.05 * n) for n in possible]
    if method == "GradualMagnitude":
        assert sum(counts) == round(0.05 * sum(possible))
    assert moved or kind in ("a full layer", "one connection")
