"""The sparse product on feature-major data as registered operators, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topogen.errors import SpecError
from topogen_torch._ops import _cpu
from topogen_torch._ops._dense import announce_fallback, to_dense
from topogen_torch._ops._entry import KERNEL_DEVICES, admitted, first_order, in_long_floats
from topogen_torch._ops._linear import Index

__all__ = ["sparse_columns"]

torch.library.define(
    "topogen::sparse_columns",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr_t, Tensor indices_t, Tensor permutation, "
    "SymInt batch) -> Tensor",
)
torch.library.define(
    "topogen::sparse_columns_backward",
    "(Tensor dy, Tensor x, Tensor values, Tensor indptr, Tensor indices, SymInt batch, bool[3] needs) "
    "-> (Tensor, Tensor, Tensor)",
)
torch.library.impl("topogen::sparse_columns", "cpu")(_cpu.forward_columns)
torch.library.impl("topogen::sparse_columns_backward", "cpu")(_cpu.backward_columns)


@torch.library.register_fake("topogen::sparse_columns")
def _fake_forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    indptr_t: Tensor,
    indices_t: Tensor,
    permutation: Tensor,
    batch: int,
) -> Tensor:
    return x.new_empty(x.shape[0], indptr_t.shape[0] - 1, x.shape[2])


@torch.library.register_fake("topogen::sparse_columns_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, batch: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:2])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    return dx, dvalues, dbias


_forward = torch.ops.topogen.sparse_columns.default
_backward = torch.ops.topogen.sparse_columns_backward.default


class _SparseColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, batch: int, *index: Tensor) -> Tensor:
        indptr, indices, indptr_t, indices_t, permutation = index
        ctx.save_for_backward(x, values, indptr, indices)
        ctx.batch = batch
        return _forward(x, values, bias, indptr_t, indices_t, permutation, batch)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        found = _backward(dy, *ctx.saved_tensors, ctx.batch, needs)
        return (*(gradient if need else None for gradient, need in zip(found, needs, strict=True)), *(None,) * 6)


def sparse_columns(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Index,
    out_features: int,
    *,
    batch: int | None = None,
    owner: str = "SparseLinear",
) -> Tensor:
    """Return ``y[g] = W.T @ x[g] + bias[:, None]``, where W (in, out) has `values` at the connections of `index`.

    Dtypes, devices and autocast as for `sparse_linear`. Nothing is packed or transposed.

    Parameters
    ----------
    x : Tensor, shape (groups, in, samples)
        Feature-major, as a convolution's images: (batch, channels, pixels).
    values : Tensor, shape (nnz,)
        In value ordering, of the dtype of `x` and on its device.
    bias : Tensor, shape (out,), optional
    index : Index
    out_features : int
    batch : int, optional
        How many samples of all groups exist, where the last group ends in padding as `pack` leaves it. Padding adds
        nothing to any gradient; in the result it is of no meaning.
    owner : str
        The layer that errors and warnings name.

    Returns
    -------
    Tensor, shape (groups, out, samples)
    """
    in_features = index.indptr.shape[0] - 1
    x, values, bias = admitted(owner, x, values, bias)
    if x.ndim != 3 or x.shape[1] != in_features:
        raise SpecError(
            f"The input of {owner}'s product must have shape (groups, {in_features}, samples). Got {tuple(x.shape)}."
        )
    if values.shape[0] == in_features * out_features:  # every connection exists: in value ordering, a dense matrix
        return _dense(x, values.view(in_features, out_features), bias)
    if x.device.type not in KERNEL_DEVICES:
        announce_fallback(x.device, in_features, out_features, values.itemsize)
        return _dense(x, to_dense(values, index.indptr, index.indices, out_features), bias)
    existing = x.shape[0] * x.shape[2] if batch is None else batch
    return in_long_floats(
        lambda x, values, bias: _SparseColumns.apply(x, values, bias, existing, *index), x, values, bias
    )


def _dense(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    y = weights.t() @ x
    return y if bias is None else y + bias[:, None]
