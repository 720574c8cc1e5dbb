"""The registered operators: what torch's own checks say of them, and what happens where no kernel is."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch._dynamo

from topogen import as_pattern
from topogen.errors import SpecError
from topogen_torch import SparseLinear
from topogen_torch._layout import derived_index, stored_index
from topogen_torch._ops import Index, _dense, _linear, dense_linear, sparse_linear

MASK = np.random.default_rng(0).random((9, 7)) < 0.4


def problem(dtype=torch.float64, batch=5):
    torch.manual_seed(0)
    pattern = as_pattern(MASK)
    buffers = stored_index(pattern, "SparseLinear") | derived_index(pattern)
    index = Index(*(buffers[name] for name in Index._fields))
    x, values, bias = (torch.randn(*size, dtype=dtype) for size in ((batch, 9), (pattern.nnz,), (7,)))
    return x, values, bias, index


@pytest.fixture
def no_kernel(monkeypatch):
    """A machine whose processor is a device without a kernel."""
    monkeypatch.setattr(_linear, "KERNEL_DEVICES", set())
    monkeypatch.setattr(_dense, "_announced", set())


def test_torchs_own_checks_pass():
    x, values, bias, index = problem()
    dy = torch.randn(5, 7, dtype=torch.float64)
    csr, csc = index[:2], index[2:]
    torch.library.opcheck(torch.ops.topogen.sparse_linear.default, (x, values, bias, *csc))
    torch.library.opcheck(torch.ops.topogen.sparse_linear.default, (x, values, None, *csc))
    for needs in ([True, True, True], [False, True, False], [True, False, False], [False, False, False]):
        torch.library.opcheck(torch.ops.topogen.sparse_linear_backward.default, (dy, x, values, *csr, needs))


def test_the_kernel_equals_the_dense_reference():
    x, values, bias, index = problem()
    inputs = tuple(tensor.requires_grad_() for tensor in (x, values, bias))
    dy = torch.randn(5, 7, dtype=torch.float64)
    mine = sparse_linear(*inputs, index, 7)
    true = dense_linear(*inputs, index.indptr, index.indices, 7)
    torch.testing.assert_close(mine, true)
    for a, b in zip(torch.autograd.grad(mine, inputs, dy), torch.autograd.grad(true, inputs, dy), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_a_fully_captured_graph_gives_the_same_gradients():
    layer = SparseLinear(MASK, dtype=torch.float64)
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    wanted = (x, layer.values, layer.bias)
    torch.testing.assert_close(compiled(x), layer(x))
    mine, true = (torch.autograd.grad(module(x).square().sum(), wanted) for module in (compiled, layer))
    for a, b in zip(mine, true, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_gradients_cannot_be_differentiated_again():
    x, values, bias, index = problem()
    y = sparse_linear(x.requires_grad_(), values, bias, index, 7)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_computed_in_float32_and_rounded_once(dtype):
    x, values, bias, index = problem(dtype)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, values, bias))
    y = sparse_linear(*inputs, index, 7)
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = sparse_linear(*wide, index, 7)
    assert torch.equal(y, expected.to(dtype))
    dy = torch.ones_like(y)
    for mine, true in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, wide, dy.float()), strict=True
    ):
        assert torch.equal(mine, true.to(dtype))


def test_autocast_gives_what_a_linear_layer_gives():
    layer = SparseLinear(MASK)
    x = torch.randn(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.values.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_a_device_without_a_kernel_is_dense_and_says_so_once(no_kernel):
    layer = SparseLinear(MASK, dtype=torch.float64)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    sentence = (
        "SparseLinear has no kernel for device 'cpu' yet and multiplies densely there: every call builds the 9 x 7 "
        "matrix, 504 bytes, and saves no time."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(sentence)}$"):
        y = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    wanted = (x, layer.values, layer.bias)
    found = y, *torch.autograd.grad(y.square().sum(), wanted)
    _linear.KERNEL_DEVICES.add("cpu")
    y = layer(x)
    for mine, true in zip(found, (y, *torch.autograd.grad(y.square().sum(), wanted)), strict=True):
        torch.testing.assert_close(mine, true)


def test_shapes_can_be_worked_out_on_the_meta_device():
    layer = SparseLinear(MASK, device="meta")
    y = layer(torch.empty(2, 3, 9, device="meta"))
    assert y.shape == (2, 3, 7)
    assert y.is_meta


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(4, 8), "The input of SparseLinear must have shape (..., 9). Got (4, 8)."),
        (torch.tensor(1.0), "The input of SparseLinear must have shape (..., 9). Got ()."),
        (
            torch.zeros(4, 9, dtype=torch.float64),
            "The input of SparseLinear must be torch.float32 as its values are. Got torch.float64.",
        ),
        (torch.zeros(4, 9, device="meta"), "The input of SparseLinear must be on cpu as its values are. Got meta."),
    ],
)
@pytest.mark.parametrize("mask", [MASK, np.ones_like(MASK)], ids=["sparse", "full"])
def test_an_input_that_does_not_fit_is_named(x, sentence, mask):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        SparseLinear(mask)(x)
