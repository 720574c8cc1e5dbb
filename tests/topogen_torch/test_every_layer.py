"""Every kind of layer, over every kind of pattern, is what its dense namesake is to PyTorch."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen_torch import _layout
from topogen_torch.testing import DROP_IN_LAWS, assert_drop_in_contract

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(n_in, n_out, density=0.4):
    return sp.csr_array(RNG.random((n_in, n_out)) < density)


def with_gaps():
    mask = RNG.random((23, 18)) < 0.4
    mask[[0, 5]] = False
    mask[:, [3, 17]] = False
    return sp.csr_array(mask)


def layer_of(spec, seed=0):
    return tg.generate(spec, rng=seed)[0]


PATTERNS = {
    "random": random(23, 18),
    "gaps": with_gaps(),
    "one row": random(1, 33, 0.6),
    "one column": random(33, 1, 0.6),
    "full": sp.csr_array(np.ones((6, 5))),
    "crowded": random(9, 8, 0.9),
    "radix": layer_of(tg.RadixNet(systems=[[4, 4]])),
    "radix with dense parts": layer_of(tg.RadixNet(systems=[[4, 3]], widths=[3, 2, 1])),
    "blocks in a pattern": layer_of(tg.Block(tg.RadixNet(systems=[[3, 3]]), 4)),
    "banded": layer_of(tg.Banded(n=20, lower=2, upper=2)),
    "constant fan-in": layer_of(tg.ConstantFanIn(sizes=[20, 30], fan_in=4)),
}


def numbers(*shape):
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape))


def filled(layer):
    """Give a layer numbers that all differ from 0."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.2, 1).mul_(torch.where(torch.rand(parameter.shape) < 0.5, -1, 1))
    return layer


def linear(pattern):
    layer = filled(tt.SparseLinear(pattern, dtype=torch.float64))
    return layer, layer.to_linear(), numbers(19, 2, pattern.shape[0])


def blocks(pattern, block):
    layer = filled(tt.BlockSparseLinear(pattern, block, dtype=torch.float64))
    return layer, layer.to_linear(), numbers(17, layer.in_features)


def convolution(pattern, **settings):
    layer = filled(tt.SparseConv2d(pattern, 3, dtype=torch.float64, **settings))
    return layer, layer.to_conv(), numbers(2, layer.in_channels, 7, 6)


def convolution_1d(pattern):
    layer = filled(tt.SparseConv1d(pattern, 3, padding=1, dtype=torch.float64))
    return layer, layer.to_conv(), numbers(2, layer.in_channels, 9)


class QueryAlone(nn.Module):
    """Self-attention as a function of one tensor."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def attention():
    layer = filled(tt.SparseMultiheadAttention(random(8, 8, 0.6), 2, batch_first=True, dtype=torch.float64))
    return QueryAlone(layer), QueryAlone(layer.to_attention()), numbers(3, 5, 8)


def recurrent(kind, back):
    gates = 4 if kind is tt.SparseLSTM else 3
    layer = filled(kind([(random(6, 5 * gates, 0.5), random(5, 5 * gates, 0.5))], dtype=torch.float64))
    return layer, getattr(layer, back)(), numbers(7, 3, 6)


def low_rank():
    layer = filled(tt.LowRankPlusSparse(random(12, 10, 0.3), 2, dtype=torch.float64))
    return layer, layer.to_linear(), numbers(9, 12)


KINDS = {
    **{f"linear, {name}": (linear, (pattern,)) for name, pattern in PATTERNS.items()},
    **{f"blocks of {b}": (blocks, (random(5, 4), b)) for b in (1, 3, 4, 8, 16, 32)},
    "convolution, channels": (convolution, (random(4, 5),)),
    "convolution, strided": (lambda: convolution(random(4, 5), stride=2, padding=1, dilation=1), ()),
    "convolution, unstructured": (convolution, ([random(4, 5, 0.3) for _ in range(9)],)),
    "convolution in one dimension": (convolution_1d, (random(4, 5),)),
    "attention": (attention, ()),
    "LSTM": (recurrent, (tt.SparseLSTM, "to_lstm")),
    "GRU": (recurrent, (tt.SparseGRU, "to_gru")),
    "low rank": (low_rank, ()),
}
# its dense namesake can become any matrix, so that they do not train alike
EXCEPT = {"low rank": {"trains_alike"}}


BY_DEFAULT = {
    "linear, gaps", "linear, radix with dense parts", "linear, crowded", "blocks of 4", "blocks of 16",
    "convolution, channels", "convolution, unstructured", "attention", "LSTM", "GRU", "low rank",
}  # fmt: skip
SOME = [pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow) for name in KINDS]


@pytest.mark.parametrize("name", SOME)
def test_drop_in(name, monkeypatch):
    monkeypatch.setattr(_layout, "LEAST_FAN_IN", 0)  # so that small structured patterns take the way of large ones
    make, args = KINDS[name]
    laws = [law for law in DROP_IN_LAWS if law.__name__ not in EXCEPT.get(name, set())]
    assert_drop_in_contract(*make(*args), laws=laws)


@pytest.mark.parametrize("name", ["linear, gaps", "blocks of 4", "convolution, channels", "LSTM", "GRU", "low rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_short_floats(name, dtype):
    """The dtype goes in and comes out; numbers are near those in float64."""
    make, args = KINDS[name]
    layer, twin, x = make(*args)
    outputs = layer.to(dtype)(x.to(dtype))
    expected = twin(x)
    for mine, true in zip(*(o if isinstance(o, tuple) else (o,) for o in (outputs, expected)), strict=True):
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == dtype
            error = (mine.double() - true).abs().max() / true.abs().max()
            assert error < {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06}[dtype]
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    first.float().sum().backward()
    assert all(p.grad.dtype == dtype for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_batch(name):
    make, args = KINDS[name]
    layer, twin, x = make(*args)
    dim = 1 if name in ("LSTM", "GRU") else 0
    empty = x.narrow(dim, 0, 0)
    found, expected = layer(empty), twin(empty) if name != "attention" else empty
    first, true = (o[0] if isinstance(o, tuple) else o for o in (found, expected))
    assert first.shape == true.shape
    first.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in layer.parameters())
