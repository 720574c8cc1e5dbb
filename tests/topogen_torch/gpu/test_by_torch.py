"""The passes that torch's own products compute, against scipy in float64: dense, in batches, over CSR."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen_torch import BlockSparseLinear, SparseLinear
from topogen_torch._gpu._batched import batched_forward, batched_input_gradient, batched_value_gradient
from topogen_torch._gpu._csr import csr_input_gradient, csr_value_gradient
from topogen_torch._gpu._dense import dense_forward, dense_input_gradient, dense_value_gradient, to_matrix
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._layout import stored_index, transposed_index

PATTERNS = st.builds(
    lambda rows, columns, density, seed: sp.random_array(
        (rows, columns), density=density, rng=np.random.default_rng(seed)
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
TOKENS = st.sampled_from([0, 1, 7])


def float64_layer(pattern, block):
    torch.manual_seed(0)
    if block == 1:
        layer = SparseLinear(pattern, dtype=torch.float64)
    else:
        layer = BlockSparseLinear(pattern, block, dtype=torch.float64)
    weights = torch.from_numpy(layer.to_scipy().toarray())
    stored = tg.as_pattern(pattern)
    buffers = stored_index(stored, "test") | transposed_index(stored)
    names = ("indptr", "indices", "indptr_t", "indices_t", "permutation")
    index = BlockIndex.from_buffers(*(buffers[name] for name in names), block=block)
    return layer.values.data, index, weights


def stored_blocks(matrix, index):
    """The stored blocks of an (in, out) matrix, as `values` holds them."""
    rows, columns, block = index.n_in // index.block, index.n_out // index.block, index.block
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        mask[row, index.indices[index.indptr[row] : index.indptr[row + 1]].long()] = True
    blocks = matrix.view(rows, block, columns, block).transpose(1, 2)[mask]
    return blocks if block > 1 else blocks.view(-1)


def assert_same(found, expected):
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(PATTERNS, st.sampled_from([1, 2, 3]), TOKENS, st.sampled_from([None, "relu", "gelu"]), st.booleans())
def test_dense(pattern, block, tokens, activation, biased):
    values, index, weights = float64_layer(pattern, block)
    x, grad = (torch.randn(tokens, size, dtype=torch.float64) for size in weights.shape)
    bias = torch.randn(weights.shape[1], dtype=torch.float64) if biased else None
    assert_same(to_matrix(values, index), weights)
    y = x @ weights + (bias if biased else 0.0)
    applied = {None: lambda x: x, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation](y)
    assert_same(dense_forward(x, values, index, bias, activation), applied)
    assert_same(dense_input_gradient(grad, values, index), grad @ weights.T)
    assert_same(dense_value_gradient(x, grad, index), stored_blocks(x.T @ grad, index))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@given(PATTERNS, TOKENS)
def test_csr(pattern, tokens):
    values, index, weights = float64_layer(pattern, 1)
    x, grad = (torch.randn(tokens, size, dtype=torch.float64) for size in weights.shape)
    assert_same(csr_input_gradient(grad, values, index), grad @ weights.T)
    assert_same(csr_value_gradient(x, grad, index), stored_blocks(x.T @ grad, index))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_csr_value_gradient_of_short_floats_is_rounded_once(dtype):
    _, index, _ = float64_layer(sp.random_array((5, 6), density=0.5, rng=np.random.default_rng(0)), 1)
    x, grad = torch.randn(40, 5).to(dtype), torch.randn(40, 6).to(dtype)
    found = csr_value_gradient(x, grad, index)
    assert found.dtype == dtype
    assert torch.equal(found, csr_value_gradient(x.float(), grad.float(), index).to(dtype))


@pytest.mark.parametrize("systems", [[[2, 3]], [[4, 3]], [[2, 2, 3]], [[5]]])
@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_batches(systems, shift, tokens):
    pattern = tg.generate(tg.RadixNet(systems=systems, shift=shift)).layers[-1]
    values, index, weights = float64_layer(pattern, 4)
    x, grad = torch.randn(2, tokens, weights.shape[0], dtype=torch.float64)
    bias = torch.randn(weights.shape[1], dtype=torch.float64)
    assert_same(batched_forward(x, values, index, bias, "relu"), torch.relu(x @ weights + bias))
    assert_same(batched_forward(x, values, index), x @ weights)
    assert_same(batched_input_gradient(grad, values, index), grad @ weights.T)
    assert_same(batched_value_gradient(x, grad, index), stored_blocks(x.T @ grad, index))


@pytest.mark.parametrize("name", ["batched_forward", "batched_input_gradient", "batched_value_gradient"])
def test_batches_refuse_what_is_not_block_diagonal(name):
    values, first, _ = float64_layer(tg.generate(tg.RadixNet(systems=[[2, 3]])).layers[0], 4)
    passes = {"batched_forward": batched_forward, "batched_input_gradient": batched_input_gradient}
    rows = torch.zeros(3, 24, dtype=torch.float64)
    arguments = (rows, rows, first) if name == "batched_value_gradient" else (rows, values, first)
    with pytest.raises(SpecError) as refused:
        passes.get(name, batched_value_gradient)(*arguments)
    assert str(refused.value) == (
        f"The 'index' parameter of {name} must be of a RadiX layer whose radix times place value is N'. "
        "Got Circulant(nodes=6, radix=2, place=1, shift=-1)."
    )


def test_batches_refuse_another_pattern():
    values, index, _ = float64_layer(sp.csr_array(np.array([[1, 0], [1, 1]])), 4)
    with pytest.raises(SpecError, match=r"N'\. Got '3 blocks of another pattern'\.$"):
        batched_forward(torch.zeros(1, 8, dtype=torch.float64), values, index)
