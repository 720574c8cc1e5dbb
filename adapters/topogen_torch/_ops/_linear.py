"""The sparse linear layer as registered operators, and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from topogen.errors import SpecError
from topogen_torch._break_even import may_be_dense
from topogen_torch._gpu import _connections
from topogen_torch._gpu._choose import on_card
from topogen_torch._ops import _cpu, _crowded, _entry  # noqa: F401  # _crowded defines crowded_linear
from topogen_torch._ops._dense import announce_fallback, dense_linear
from topogen_torch._ops._entry import admitted, first_order, in_long_floats
from topogen_torch._ops._short import short_linear

__all__ = ["KERNEL_DEVICES", "Index", "sparse_linear"]

torch.library.define(
    "topogen::sparse_linear",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr_t, Tensor indices_t, Tensor permutation) -> Tensor",
)
torch.library.define(
    "topogen::sparse_linear_backward",
    "(Tensor dy, Tensor x, Tensor values, Tensor indptr, Tensor indices, bool[3] needs) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "topogen::sparse_single",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, SymInt out_features) -> Tensor",
)
torch.library.impl("topogen::sparse_linear", "cpu")(_cpu.forward)
torch.library.impl("topogen::sparse_single", "cpu")(_cpu.forward_single)
torch.library.impl("topogen::sparse_linear_backward", "cpu")(_cpu.backward)
torch.library.impl("topogen::sparse_linear", "cuda")(_connections.forward)
torch.library.impl("topogen::crowded_linear", "cuda")(_connections.crowded_forward)
torch.library.impl("topogen::sparse_linear_backward", "cuda")(_connections.backward)

KERNEL_DEVICES = {*_entry.KERNEL_DEVICES, "cuda"}


@torch.library.register_fake("topogen::sparse_linear")
def _fake_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor
) -> Tensor:
    return x.new_empty(x.shape[0], indptr_t.shape[0] - 1)


@torch.library.register_fake("topogen::sparse_single")
def _fake_single(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, out_features: int
) -> Tensor:
    return x.new_empty(1, out_features)


@torch.library.register_fake("topogen::sparse_linear_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    return dx, dvalues, dbias


_forward = torch.ops.topogen.sparse_linear.default
_single_forward = torch.ops.topogen.sparse_single.default
_crowded_forward = torch.ops.topogen.crowded_linear.default  # defined by _crowded
_backward = torch.ops.topogen.sparse_linear_backward.default


class Index(NamedTuple):
    """The int32 index buffers of one layer, csr and csc; see `topogen_torch._layout`."""

    indptr: Tensor
    indices: Tensor
    indptr_t: Tensor
    indices_t: Tensor
    permutation: Tensor


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
        indptr, indices, indptr_t, indices_t, permutation = index
        ctx.save_for_backward(x, values, indptr, indices)
        if x.shape[0] == 1 and not on_card(x.device):  # a captured graph is for one sample or for several in any case
            return _single_forward(x, values, bias, indptr, indices, indptr_t.shape[0] - 1)
        if may_be_dense(values.shape[0], x.shape[1], indptr_t.shape[0] - 1):
            return _crowded_forward(x, values, bias, *index)
        return _forward(x, values, bias, indptr_t, indices_t, permutation)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        dx, dvalues, dbias = _backward(dy, *ctx.saved_tensors, needs)
        found = dx if needs[0] else None, dvalues if needs[1] else None, dbias if needs[2] else None
        return (*found, None, None, None, None, None)


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, out_features: int) -> Tensor:
    """Return ``x @ W + bias``, where W (in, out) has `values` at the connections of `index`.

    float32 and float64 have kernels on the CPU and on CUDA devices; float16 and bfloat16 are computed in float32 and
    rounded once, in bfloat16 on the CPU without a float32 copy of many samples. On a device without a kernel the
    product is dense, and a warning says so once.

    Parameters
    ----------
    x : Tensor, shape (..., in)
        Any number of leading dimensions, none included.
    values : Tensor, shape (nnz,)
        In value ordering, of the dtype of `x` and on its device.
    bias : Tensor, shape (out,), optional
    index : Index
    out_features : int

    Returns
    -------
    Tensor, shape (..., out)
    """
    x, values, bias = admitted("SparseLinear", x, values, bias)
    in_features = index.indptr.shape[0] - 1
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise SpecError(f"The input of SparseLinear must have shape (..., {in_features}). Got {tuple(x.shape)}.")
    if values.shape[0] == in_features * out_features:  # every connection exists: in value ordering, a dense matrix
        return torch.nn.functional.linear(x, values.view(in_features, out_features).t(), bias)
    if x.device.type not in KERNEL_DEVICES:
        announce_fallback(x.device, in_features, out_features, values.itemsize)
        return dense_linear(x, values, bias, index.indptr, index.indices, out_features)
    if x.dtype is torch.bfloat16 and not on_card(x.device):
        y = short_linear(x.reshape(-1, in_features), values, bias, *index)
        return y.view(*x.shape[:-1], out_features)
    return in_long_floats(lambda x, values, bias: _by_kernel(x, values, bias, index, out_features), x, values, bias)


def _by_kernel(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, out_features: int) -> Tensor:
    if x.ndim == 2:
        return _SparseLinear.apply(x, values, bias, *index)
    y = _SparseLinear.apply(x.reshape(-1, x.shape[-1]), values, bias, *index)
    return y.view(*x.shape[:-1], out_features)
