"""The sparse convolution as registered operators, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topogen import kernels
from topogen_torch._ops._arrays import array
from topogen_torch._ops._dense import announce_fallback
from topogen_torch._ops._entry import KERNEL_DEVICES, admitted, in_long_floats
from topogen_torch._ops._linear import Index

__all__ = ["Window", "dense_kernel", "sparse_convolution"]

Window = kernels.Window

torch.library.define(
    "topogen::sparse_convolution",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr, Tensor indptr_t, Tensor indices_t, Tensor permutation, "
    "int[] window) -> Tensor",
)
torch.library.define(
    "topogen::sparse_convolution_backward",
    "(Tensor dy, Tensor x, Tensor values, Tensor indptr, Tensor indices, int[] window, bool[3] needs) "
    "-> (Tensor, Tensor, Tensor)",
)


def _cpu_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indptr_t: Tensor, indices_t: Tensor,
    permutation: Tensor, window: list[int],
) -> Tensor:  # fmt: skip
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    y = _fake_forward(x, values, bias, indptr, indptr_t, indices_t, permutation, window)
    kernels.convolve(
        array(x),
        array(values),
        array(indptr),
        array(indptr_t),
        array(indices_t),
        array(permutation),
        None if bias is None else array(bias),
        window=_window(window),
        out=array(y),
        threads=torch.get_num_threads(),
    )
    return y


def _cpu_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, window: list[int], needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    dx, dvalues, dbias = _fake_backward(dy, x, values, indptr, indices, window, needs)
    kernels.convolution_gradients(
        array(dy),
        array(x),
        array(values),
        array(indptr),
        array(indices),
        window=_window(window),
        dx=array(dx) if needs[0] else None,
        dvalues=array(dvalues) if needs[1] else None,
        threads=torch.get_num_threads(),
    )
    return dx, dvalues, torch.sum(dy, (0, 2, 3), out=dbias) if needs[2] else dbias


torch.library.impl("topogen::sparse_convolution", "cpu")(_cpu_forward)
torch.library.impl("topogen::sparse_convolution_backward", "cpu")(_cpu_backward)


@torch.library.register_fake("topogen::sparse_convolution")
def _fake_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indptr_t: Tensor, indices_t: Tensor,
    permutation: Tensor, window: list[int],
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], indptr_t.shape[0] - 1, *_window(window).output(*x.shape[2:]))


@torch.library.register_fake("topogen::sparse_convolution_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, window: list[int], needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:2])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    return dx, dvalues, dbias


_forward = torch.ops.topogen.sparse_convolution.default
_backward = torch.ops.topogen.sparse_convolution_backward.default


class _SparseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, window: list[int], *index: Tensor) -> Tensor:
        indptr, indices, *transposed = index
        ctx.save_for_backward(x, values, indptr, indices)
        ctx.window = window
        return _forward(x, values, bias, indptr, *transposed, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        found = _backward(dy, *ctx.saved_tensors, ctx.window, needs)
        return (*(gradient if need else None for gradient, need in zip(found, needs, strict=True)), *(None,) * 6)


def sparse_convolution(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index, window: Window, out_channels: int, owner: str
) -> Tensor:
    """Return the convolution of `x` with the kernel that has `values` at the connections of `index`, else 0.

    Dtypes, devices and autocast as for `sparse_linear`.

    Parameters
    ----------
    x : Tensor, shape (batch, in, height, width)
        In any memory format; the result is contiguous.
    values : Tensor, shape (nnz, kh, kw) or (nnz,)
        In value ordering of the stored pattern: whole kernels, or numbers.
    bias : Tensor, shape (out,), optional
    index : Index
        Of the stored pattern, (in, out) or (kh * kw * in, out).
    window : Window
    out_channels : int
    owner : str
        The layer that errors and warnings name.

    Returns
    -------
    Tensor, shape (batch, out, height', width')
    """
    x, values, bias = admitted(owner, x, values, bias)
    rows = index.indptr.shape[0] - 1
    is_full = values.shape[0] == rows * out_channels
    if is_full or x.device.type not in KERNEL_DEVICES:
        if not is_full:
            inputs = x.shape[1] * math.prod(window.size)
            announce_fallback(x.device, inputs, out_channels, values.itemsize, owner=owner)
        top, bottom, left, right = window.padding
        kernel = dense_kernel(values, index, window.size, out_channels)
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        return torch.nn.functional.conv2d(x, kernel, bias, stride=window.stride, dilation=window.dilation)
    flat = [*window.size, *window.stride, *window.padding, *window.dilation]
    return in_long_floats(
        lambda x, values, bias: _SparseConvolution.apply(x, values, bias, flat, *index), x, values, bias
    )


def dense_kernel(values: Tensor, index: Index, size: tuple[int, int], out_channels: int) -> Tensor:
    """Return the kernel (out, in, kh, kw) with `values` in it and zeros elsewhere; differentiable in `values`."""
    indptr, indices = index.indptr, index.indices
    rows = indptr.shape[0] - 1
    unit = values.shape[1:]
    kernel = values
    if values.shape[0] < rows * out_channels:  # otherwise they are in place
        stored = torch.repeat_interleave(torch.arange(rows, device=indices.device), indptr.diff())
        kernel = values.new_zeros(rows * out_channels, *unit).index_copy(0, stored * out_channels + indices, values)
    if unit:
        return kernel.view(rows, out_channels, *size).transpose(0, 1)
    return kernel.view(*size, -1, out_channels).permute(3, 2, 0, 1)


def _window(flat: list[int]) -> Window:
    high, wide, down, right, top, bottom, left, after, deep, apart = flat
    return Window((high, wide), (down, right), (top, bottom, left, after), (deep, apart))
