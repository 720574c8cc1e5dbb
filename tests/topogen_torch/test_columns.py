"""The operator on feature-major data: torch's own checks, and what it shares with the layer's."""

import warnings

import numpy as np
import pytest
import torch

from topogen import as_pattern
from topogen.errors import SpecError
from topogen_torch._layout import derived_index, stored_index
from topogen_torch._ops import Index, _columns, _dense, sparse_columns, sparse_linear, to_dense

MASK = np.random.default_rng(0).random((9, 7)) < 0.4
SHAPES = [(2, 9, 5), (3, 9, 16), (1, 9, 33), (4, 9, 1), (0, 9, 3), (3, 9, 0)]


def problem(shape=(2, 9, 5), dtype=torch.float64, mask=MASK):
    torch.manual_seed(0)
    pattern = as_pattern(mask)
    buffers = stored_index(pattern, "SparseLinear") | derived_index(pattern)
    index = Index(*(buffers[name] for name in Index._fields))
    x, values, bias = (torch.randn(*size, dtype=dtype) for size in (shape, (pattern.nnz,), (mask.shape[1],)))
    return x, values, bias, index


def dense(x, values, bias, index):
    return to_dense(values, index.indptr, index.indices, len(bias)).t() @ x + bias[:, None]


def test_torchs_own_checks_pass():
    x, values, bias, index = problem()
    dy = torch.randn(2, 7, 5, dtype=torch.float64)
    csr, csc = index[:2], index[2:5]
    torch.library.opcheck(torch.ops.topogen.sparse_columns.default, (x, values, bias, *csc, 10))
    torch.library.opcheck(torch.ops.topogen.sparse_columns.default, (x, values, None, *csc, 8))
    for needs in ([True, True, True], [False, True, False], [True, False, False], [False, False, False]):
        torch.library.opcheck(torch.ops.topogen.sparse_columns_backward.default, (dy, x, values, *csr, 9, needs))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_equals_the_dense_reference(shape):
    x, values, bias, index = problem(shape)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, values, bias))
    dy = torch.randn(shape[0], 7, shape[2], dtype=torch.float64)
    mine, true = sparse_columns(*inputs, index, 7), dense(*inputs, index)
    torch.testing.assert_close(mine, true)
    for a, b in zip(torch.autograd.grad(mine, inputs, dy), torch.autograd.grad(true, inputs, dy), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_gradients_are_right_whichever_are_wanted(wanted):
    x, values, bias, index = problem((2, 9, 3))
    for number in wanted:
        (x, values, bias)[number].requires_grad_()
    assert torch.autograd.gradcheck(lambda *operands: sparse_columns(*operands, index, 7), (x, values, bias))


def test_strided_tensors_are_accepted():
    x, values, bias, index = problem((2, 9, 5))
    mine = sparse_columns(x.transpose(1, 2).contiguous().transpose(1, 2), values, bias, index, 7)
    assert torch.equal(mine, sparse_columns(x, values, bias, index, 7))


def test_one_group_is_the_transposed_layer():
    x, values, bias, index = problem((1, 9, 20))
    torch.testing.assert_close(
        sparse_columns(x, values, bias, index, 7)[0].t(), sparse_linear(x[0].t(), values, bias, index, 7)
    )


def test_a_full_pattern_multiplies_densely():
    x, values, bias, index = problem((2, 4, 5), mask=np.ones((4, 3), bool))
    mine = sparse_columns(x, values.requires_grad_(), bias, index, 3)
    torch.testing.assert_close(mine, dense(x, values, bias, index))
    assert "SparseColumns" not in str(mine.grad_fn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_computed_in_float32_and_rounded_once(dtype):
    x, values, bias, index = problem(dtype=dtype)
    mine = sparse_columns(x, values, bias, index, 7)
    true = sparse_columns(x.float(), values.float(), bias.float(), index, 7)
    assert mine.dtype == dtype
    assert torch.equal(mine, true.to(dtype))


def test_autocast_leaves_float32_master_values_float32_gradients():
    x, values, bias, index = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse_columns(x, values.requires_grad_(), bias, index, 7)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert values.grad.dtype == torch.float32


def test_a_device_without_a_kernel_multiplies_densely_and_says_so(monkeypatch):
    monkeypatch.setattr(_columns, "KERNEL_DEVICES", set())
    monkeypatch.setattr(_dense, "_announced", set())
    x, values, bias, index = problem()
    with pytest.warns(UserWarning, match="has no kernel for device 'cpu' yet and multiplies densely"):
        mine = sparse_columns(x, values, bias, index, 7)
    torch.testing.assert_close(mine, dense(x, values, bias, index))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_columns(x, values, bias, index, 7)


def test_bad_input_is_named():
    x, values, bias, index = problem(dtype=torch.float32)
    with pytest.raises(
        SpecError,
        match=r"^The input of SparseLinear's product must have shape \(groups, 9, samples\)\. Got \(9, 5\)\.$",
    ):
        sparse_columns(x[0], values, bias, index, 7)
    with pytest.raises(
        SpecError, match=r"^The input of SparseConv2d must be torch.float32 as its values are\. Got torch.float64\.$"
    ):
        sparse_columns(x.double(), values, bias, index, 7, owner="SparseConv2d")
    with pytest.raises(SpecError, match=r"^The input of SparseLinear must be on cpu as its values are\. Got meta\.$"):
        sparse_columns(x.to("meta"), values, bias, index, 7)
