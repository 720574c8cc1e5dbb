"""Every kernel in Triton's interpreter against float64, over drawn shapes, layouts and tiles.

Each entry may err by what its own sum allows: a rounding of the result, and one of float32 for every product in it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import topogen as tg
from topogen_torch import BlockSparseLinear
from topogen_torch._gpu import _circulant, _forward, _input_gradient, _product, _value_gradient
from topogen_torch._gpu._config import Config
from topogen_torch._gpu._index import BlockIndex

ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-11}
LEAST = {torch.float32: 1e-30, torch.float16: 2.0**-24}  # of float16, half the distance of the smallest numbers
ACTIVATIONS = {None: lambda x: x, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


class Layer(NamedTuple):
    index: BlockIndex
    values: torch.Tensor
    bias: torch.Tensor
    weights: torch.Tensor  # (in, out), float64, by scipy

    def gradient(self, product):
        """The stored blocks of an (in, out) matrix, cut out one by one."""
        block, bounds = self.index.block, self.index.indptr.tolist()
        found = torch.empty(self.values.shape, dtype=product.dtype)
        for row, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
            for k in range(first, last):
                column = int(self.index.indices[k])
                found[k] = product[row * block :][:block, column * block :][:, :block]
        return found


def layer_of(pattern, block, dtype, seed=0):
    torch.manual_seed(seed)
    layer = BlockSparseLinear(pattern, block, dtype=dtype)
    guarded = torch.full((layer.values.shape[0] + 2, block, block), torch.nan, dtype=dtype)
    values, bias = guarded[1:-1], torch.randn(layer.out_features).to(dtype)
    values.copy_(torch.randn(values.shape) / 4)
    with torch.no_grad():
        layer.values.copy_(values)
    buffers = (layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation)
    index = BlockIndex.from_buffers(*buffers, block=block)
    return Layer(index, values, bias, torch.from_numpy(layer.to_scipy().toarray()).double())


def laid_out(layout, tokens, features, dtype):
    """Random activations; what surrounds them is NaN."""
    rows = torch.randn(tokens, features).to(dtype)
    if layout == "framed":
        frame = torch.full((tokens + 2, features + 32), torch.nan, dtype=dtype)
        frame[1:-1, 16:-16] = rows
        return frame[1:-1, 16:-16]
    if layout == "shifted":  # rows start in the middle of 16 bytes
        frame = torch.full((tokens + 2, features + 2), torch.nan, dtype=dtype)
        frame[1:-1, 1:-1] = rows
        return frame[1:-1, 1:-1]
    if layout == "expanded":
        return rows[:1].expand(tokens, features)
    return rows.t().contiguous().t() if layout == "transposed" else rows


def assert_near(found, terms, truth, dtype, products):
    """Compare with float64; `terms` is the sum of what was added up, each by its magnitude."""
    assert found.dtype == dtype
    assert found.shape == truth.shape
    assert found.is_contiguous()
    allowed = 1.2 * terms * (ROUNDING[dtype] + products * 2.0**-23) + LEAST[dtype]  # gelu is steeper than 1 by 0.13
    error = (found.double() - truth).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times what is allowed"


def passes_of(circulant):
    if circulant:
        return _circulant.circulant_forward, _circulant.circulant_input_gradient, _circulant.circulant_value_gradient
    return _forward.block_forward, _input_gradient.block_input_gradient, _value_gradient.block_value_gradient


def assert_forward(layer, x, activation=None, config=None, *, biased=True, circulant=False, precision="tf32"):
    found = passes_of(circulant)[0](
        x, layer.values, layer.index, layer.bias if biased else None, activation, config=config, precision=precision
    )
    bias = layer.bias.double() * biased
    terms = x.double().abs() @ layer.weights.abs() + bias.abs()
    truth = ACTIVATIONS[activation](x.double() @ layer.weights + bias)
    assert_near(found, terms, truth, x.dtype, layer.index.n_in + 1)


def assert_input_gradient(layer, grad, config=None, *, circulant=False, precision="tf32"):
    found = passes_of(circulant)[1](grad, layer.values, layer.index, config=config, precision=precision)
    terms = grad.double().abs() @ layer.weights.abs().T
    assert_near(found, terms, grad.double() @ layer.weights.T, grad.dtype, layer.index.n_out)


def assert_value_gradient(layer, x, grad, config=None, *, circulant=False, precision="tf32"):
    found = passes_of(circulant)[2](x, grad, layer.index, config=config, precision=precision)
    terms = layer.gradient(x.double().abs().T @ grad.double().abs())
    assert_near(found, terms, layer.gradient(x.double().T @ grad.double()), x.dtype, x.shape[0])


DTYPES = st.sampled_from([torch.float32, torch.float16])
TOKENS = st.sampled_from([0, 1, 15, 16, 17, 33, 50])
LAYOUTS = st.sampled_from(["contiguous", "framed", "shifted", "transposed", "expanded"])
BLOCKS = st.sampled_from([16, 16, 32, 64, 128])


@st.composite
def block_patterns(draw):
    """Patterns of a few blocks, from none to all, with rows and columns that have none."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kept = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return sp.csr_array(np.reshape(kept, (rows, columns)))


def configs(block):
    """Tiles small enough for the interpreter, and None for the default."""
    tiles = st.builds(
        Config,
        tokens=st.sampled_from([16, 32]),
        depth=st.sampled_from([16, 32, 64, 128]),
        blocks=st.sampled_from([size for size in (1, 2, 4) if size * block <= 512]),
        split_k=st.integers(1, 4),
        group=st.sampled_from([1, 2, 4]),
    )
    return st.none() | tiles


@given(st.data(), block_patterns(), BLOCKS, DTYPES, TOKENS, LAYOUTS)
@settings(max_examples=10)
def test_blocks_anywhere(data, pattern, block, dtype, tokens, layout):
    layer = layer_of(pattern, block, dtype)
    config = data.draw(configs(block))
    activation, biased = data.draw(st.sampled_from([None, "relu", "gelu"])), data.draw(st.booleans())
    x, grad = (laid_out(layout, tokens, size, dtype) for size in (layer.index.n_in, layer.index.n_out))
    assert_forward(layer, x, activation, config, biased=biased)
    assert_input_gradient(layer, grad, config)
    assert_value_gradient(layer, x, grad, config)


SYSTEMS = st.sampled_from([[[2, 2]], [[3, 2]], [[2, 3]], [[5]], [[2, 2, 2]]])


@given(st.data(), SYSTEMS, st.sampled_from([-1, 1]), st.sampled_from([16, 32]), DTYPES, TOKENS, LAYOUTS)
@settings(max_examples=8)
def test_radix_layers(data, systems, shift, block, dtype, tokens, layout):
    net = tg.generate(tg.RadixNet(systems=systems, shift=shift))
    layer = layer_of(data.draw(st.sampled_from(list(net.layers))), block, dtype)
    assert layer.index.circulant is not None
    config = data.draw(configs(block))
    activation, biased = data.draw(st.sampled_from([None, "relu", "gelu"])), data.draw(st.booleans())
    x, grad = (laid_out(layout, tokens, layer.index.n_in, dtype) for _ in range(2))
    assert_forward(layer, x, activation, config, biased=biased, circulant=True)
    assert_input_gradient(layer, grad, config, circulant=True)
    assert_value_gradient(layer, x, grad, config, circulant=True)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=150, derandomize=False)
def test_many_more(data):
    dtype, tokens, layout = data.draw(DTYPES), data.draw(st.integers(0, 70)), data.draw(LAYOUTS)
    block, circulant = data.draw(BLOCKS), data.draw(st.booleans())
    if circulant:
        radices = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
        assume(np.prod(radices) * block <= 1024)
        net = tg.generate(tg.RadixNet(systems=[radices], shift=data.draw(st.sampled_from([-1, 1]))))
        pattern = data.draw(st.sampled_from(list(net.layers)))
    else:
        pattern = data.draw(block_patterns())
    layer, config = layer_of(pattern, block, dtype), data.draw(configs(block))
    precision = data.draw(st.sampled_from(["tf32", "ieee"]))
    x, grad = (laid_out(layout, tokens, size, dtype) for size in (layer.index.n_in, layer.index.n_out))
    assert_forward(layer, x, "relu", config, circulant=circulant, precision=precision)
    assert_input_gradient(layer, grad, config, circulant=circulant, precision=precision)
    assert_value_gradient(layer, x, grad, config, circulant=circulant, precision=precision)


def test_the_longest_rows_come_first():
    pattern = sp.csr_array(np.array([[1, 0, 0], [1, 1, 1], [0, 1, 1]]))
    index = layer_of(pattern, 16, torch.float32).index
    assert index.order.tolist() == [1, 2, 0]
    assert index.order_t.tolist() == [0, 1, 2]
    assert index.most == 3


def test_more_parts_than_tiles_of_tokens():
    layer = layer_of(sp.eye_array(2), 16, torch.float32)
    x, grad = torch.randn(17, 32), torch.randn(17, 32)
    assert_value_gradient(layer, x, grad, Config(tokens=16, split_k=7))


def test_nan_stays_where_it_belongs_among_blocks():
    layer = layer_of(sp.csr_array(np.array([[1, 0], [0, 1]])), 16, torch.float32)
    x = torch.zeros(3, 32)
    x[1, 0] = torch.nan
    y = _forward.block_forward(x, layer.values, layer.index)
    assert y.isnan().nonzero()[:, 0].unique().tolist() == [1]
    assert not y[:, 16:].isnan().any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_activations_of_nan_and_infinity_are_those_of_torch(activation):
    layer = layer_of(sp.eye_array(1), 16, torch.float32)
    layer.values.copy_(torch.eye(16))
    x = torch.zeros(4, 16)
    x[:, 0] = torch.tensor([torch.nan, torch.inf, -1e30, 5.0])
    y = _forward.block_forward(x, torch.eye(16)[None], layer.index, activation=activation)
    expected = ACTIVATIONS[activation](x[:, 0])
    torch.testing.assert_close(y[:, 0], expected, equal_nan=True)


def planted(module, tmp_path, old, new):
    """`module` with a fault in its source."""
    source = Path(module.__file__).read_text()
    assert source.count(old) >= 1, old
    path = tmp_path / "planted.py"
    path.write_text(source.replace(old, new))
    specification = importlib.util.spec_from_file_location("planted", path)
    found = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    return found


def check_blocks():
    for block, depth, tokens in ((16, 32, 34), (64, 32, 18)):
        layer = layer_of(sp.random_array((4, 3), density=0.7, rng=np.random.default_rng(1)), block, torch.float32)
        x, grad = (laid_out("framed", tokens, size, torch.float32) for size in (layer.index.n_in, layer.index.n_out))
        config = Config(tokens=16, depth=depth, blocks=2, split_k=2, group=2)
        assert_forward(layer, x, "relu", config)
        assert_input_gradient(layer, grad, config)
        assert_value_gradient(layer, x, grad, config)


def check_rings():
    for shift in (-1, 1):
        layer = layer_of(tg.generate(tg.RadixNet(systems=[[2, 2, 3]], shift=shift))[1], 16, torch.float32)
        x, grad = torch.randn(2, 17, layer.index.n_in)
        config = Config(tokens=16, depth=32, blocks=2, split_k=2)  # rings of 6, of which a program reads 3
        assert_forward(layer, x, "relu", config, circulant=True)
        assert_input_gradient(layer, grad, config, circulant=True)
        assert_value_gradient(layer, x, grad, config, circulant=True)


# Faults that write past the end of a tensor would take the process with them: none of these does.
PRODUCT_FAULTS = [
    ("(k % BLOCK)[:, None] + j[None, :] * BLOCK", "(k % BLOCK)[:, None] * BLOCK + j[None, :]"),  # a block not turned
    ("k[:, None] + j[None, :] * BLOCK", "k[:, None] * BLOCK + j[None, :]"),
    ("place = entry if TRANSPOSED", "place = entry if not TRANSPOSED"),  # values in the other order
    ("place = entries if TRANSPOSED", "place = entries if not TRANSPOSED"),
    ("here = entries < last", "here = entries < last - 1"),  # the last block of a row left out
    ("range(first * PARTS, last * PARTS)", "range(first * PARTS, last * PARTS - 1)"),
    ("W_STEP: tl.constexpr = DEPTH * BLOCK", "W_STEP: tl.constexpr = DEPTH"),
    ("token[:, None] < tokens - start", "token[:, None] < tokens - start - 1"),  # a token left out
    ("row * BLOCK + j).to", "row + j).to"),
    ("row = tl.load(order + place_in_order)", "row = place_in_order % (rows - 1)"),  # a row left out
    ("return first + within % beside", "return within % beside"),  # the first group alone
    ("total < 0, 0.0, total", "total > 0, 0.0, total"),
]


@pytest.mark.parametrize(("old", "new"), PRODUCT_FAULTS, ids=[old for old, _ in PRODUCT_FAULTS])
def test_planted_faults_in_products_are_seen(monkeypatch, tmp_path, old, new):
    faulty = planted(_product, tmp_path, old, new)
    for module in (_forward, _input_gradient):
        monkeypatch.setattr(module, "block_product", faulty.block_product)
    with pytest.raises(AssertionError):
        check_blocks()


GRADIENT_FAULTS = [
    ("tl.minimum(part * each + each, tokens)", "tl.minimum(part * each + each - 1, tokens)"),  # a token left out
    ("return part * each,", "return part * each // 2,"),
    ("tl.program_id(0) // rows * SIDE", "tl.program_id(0) // rows * (SIDE + 1)"),
    ("here = entry < last", "here = entry < last - 1"),
    ("for part in range(number)", "for part in range(number - 1)"),
    ("part.to(tl.int64) * blocks + entry", "entry"),  # all parts into the first
    ("n % BLOCK\n        found_tile", "n % BLOCK // 2\n        found_tile"),
    ("token < end - start", "token < end - start - 1"),
]


@pytest.mark.parametrize(("old", "new"), GRADIENT_FAULTS, ids=[old for old, _ in GRADIENT_FAULTS])
def test_planted_faults_in_value_gradients_are_seen(monkeypatch, tmp_path, old, new):
    faulty = planted(_value_gradient, tmp_path, old, new)
    monkeypatch.setattr(_value_gradient, "block_value_gradient", faulty.block_value_gradient)
    with pytest.raises(AssertionError):
        check_blocks()


RING_FAULTS = [
    ("unwrapped - 1 - j", "j"),
    ("tl.minimum(radix, t_in + 1)", "tl.minimum(radix, t_in)"),
    ("tl.minimum(radix, ring - t_in)", "tl.minimum(radix, ring - t_in - 1)"),
    ("(SHIFT == 1) == TRANSPOSED", "(SHIFT == 1) != TRANSPOSED"),  # the transposed layer
    ("first - (radix - 1) + ring", "first - radix + ring"),
    ("tl.where(t_x < ring, t_x, t_x - ring)", "tl.where(t_x < ring, t_x, ring - 1)"),  # once around
    ("reach = tl.minimum(SIDE + radix - 1, ring)", "reach = tl.minimum(SIDE + radix - 2, ring)"),
    ("(inner * BLOCK)[:, None] + (n % BLOCK)[None, :]", "inner[:, None] + (n % BLOCK * BLOCK)[None, :]"),
    ("residue + place * t_out", "residue + t_out"),
    ("(j < radix) & (q < reach)[:, None]", "(j < radix - 1) & (q < reach)[:, None]"),
    ("triton.cdiv(reach, config.blocks)", "(reach // config.blocks)"),  # the last band left out
]


@pytest.mark.parametrize(("old", "new"), RING_FAULTS, ids=[old for old, _ in RING_FAULTS])
def test_planted_faults_in_circulant_passes_are_seen(monkeypatch, tmp_path, old, new):
    faulty = planted(_circulant, tmp_path, old, new)
    for name in ("circulant_forward", "circulant_input_gradient", "circulant_value_gradient"):
        monkeypatch.setattr(_circulant, name, getattr(faulty, name))
    with pytest.raises(AssertionError):
        check_rings()


def test_without_a_fault_they_pass():
    check_blocks()
    check_rings()
