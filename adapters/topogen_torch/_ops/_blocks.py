"""The block-sparse linear layer as registered operators, and its gradient.

Legend: K = stored blocks, b = block; `values_Kbb[k, i, j]` joins input i to
output j of block k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from topogen.errors import SpecError
from topogen_torch._ops._dense import announce_fallback
from topogen_torch._ops._entry import KERNEL_DEVICES, admitted, in_long_floats
from topogen_torch._ops._late import Late
from topogen_torch._ops._linear import Index

if TYPE_CHECKING:
    from topogen.kernels import block_launch
else:
    block_launch = Late("topogen.kernels.block_launch")

__all__ = ["block_linear", "blocks_to_dense", "dense_block_linear"]

_OWNER = "BlockSparseLinear"
_KINDS: dict[torch.dtype, NDArray[Any]] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
}

torch.library.define(
    "topogen::block_linear",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr_t, Tensor indices_t, Tensor permutation) -> Tensor",
)
torch.library.define(
    "topogen::block_linear_backward",
    "(Tensor dy, Tensor x, Tensor values, Tensor indptr, Tensor indices, bool[3] needs) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("topogen::block_linear", "cpu")
def _cpu_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor
) -> Tensor:
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    (batch, inputs), (blocks, block, _) = x.shape, values.shape
    y = x.new_empty(batch, (indptr_t.shape[0] - 1) * block)
    if batch:
        block_launch.product(
            _KINDS[x.dtype], x.data_ptr(), values.data_ptr(), permutation.data_ptr(), indptr_t.data_ptr(),
            indices_t.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
            batch, inputs, y.shape[1], blocks, block, torch.get_num_threads(),
        )  # fmt: skip
    return y


@torch.library.impl("topogen::block_linear_backward", "cpu")
def _cpu_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, values and bias; what is not needed is an empty tensor."""
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    (batch, inputs), (blocks, block, _) = x.shape, values.shape
    dx, dvalues, dbias = _empty_gradients(dy, x, values, needs)
    if batch:
        block_launch.gradients(
            _KINDS[x.dtype], dy.data_ptr(), x.data_ptr(), values.data_ptr(), indptr.data_ptr(), indices.data_ptr(),
            dx.data_ptr(), dvalues.data_ptr(), dbias.data_ptr(),
            batch, inputs, dy.shape[1], blocks, block, torch.get_num_threads(),
        )  # fmt: skip
    else:
        dvalues.zero_()
        dbias.zero_()
    return dx, dvalues, dbias


@torch.library.register_fake("topogen::block_linear")
def _fake_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor
) -> Tensor:
    return x.new_empty(x.shape[0], (indptr_t.shape[0] - 1) * values.shape[-1])


@torch.library.register_fake("topogen::block_linear_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(dy, x, values, needs)


def _empty_gradients(dy: Tensor, x: Tensor, values: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    return dx, dvalues, dbias


_forward = torch.ops.topogen.block_linear.default
_backward = torch.ops.topogen.block_linear_backward.default


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
        indptr, indices, indptr_t, indices_t, permutation = index
        ctx.save_for_backward(x, values, indptr, indices)
        return _forward(x, values, bias, indptr_t, indices_t, permutation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        found = _backward(dy, *ctx.saved_tensors, needs)
        return (*(gradient if need else None for gradient, need in zip(found, needs, strict=True)), *(None,) * 5)


def block_linear(x: Tensor, values_Kbb: Tensor, bias: Tensor | None, index: Index, out_features: int) -> Tensor:
    """Return ``x @ W + bias``, where W (in, out) has the blocks `values_Kbb` at the places of `index`.

    Dtypes, devices and autocast as for `sparse_linear`.

    Parameters
    ----------
    x : Tensor, shape (..., in)
        Any number of leading dimensions, none included.
    values_Kbb : Tensor, shape (blocks, b, b)
        Row-major over (input block, output block), of the dtype of `x` and on its device.
    bias : Tensor, shape (out,), optional
    index : Index
        Of the pattern of blocks.
    out_features : int

    Returns
    -------
    Tensor, shape (..., out)
    """
    x, values_Kbb, bias = admitted(_OWNER, x, values_Kbb, bias)
    in_features = (index.indptr.shape[0] - 1) * values_Kbb.shape[-1]
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise SpecError(f"The input of {_OWNER} must have shape (..., {in_features}). Got {tuple(x.shape)}.")
    if x.device.type not in KERNEL_DEVICES:
        announce_fallback(x.device, in_features, out_features, values_Kbb.itemsize, _OWNER)
        return dense_block_linear(x, values_Kbb, bias, index.indptr, index.indices, out_features)
    return in_long_floats(lambda x, values, bias: _by_kernel(x, values, bias, index, out_features), x, values_Kbb, bias)


def _by_kernel(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, out_features: int) -> Tensor:
    if x.ndim == 2:
        return _BlockLinear.apply(x, values, bias, *index)
    y = _BlockLinear.apply(x.reshape(-1, x.shape[-1]), values, bias, *index)
    return y.view(*x.shape[:-1], out_features)


def blocks_to_dense(values_Kbb: Tensor, indptr: Tensor, indices: Tensor, out_features: int) -> Tensor:
    """Return the (in, out) matrix of the weights; differentiable in the values."""
    block, rows = values_Kbb.shape[-1], indptr.numel() - 1
    columns = out_features // block
    places = torch.repeat_interleave(torch.arange(rows, device=indices.device), indptr.diff()) * columns + indices
    blocks = values_Kbb.new_zeros(rows * columns, block, block).index_copy(0, places, values_Kbb)
    return blocks.view(rows, columns, block, block).transpose(1, 2).reshape(rows * block, out_features)


def dense_block_linear(
    x: Tensor, values_Kbb: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, out_features: int
) -> Tensor:
    """Return ``x @ W + bias`` by plain torch operations, on any device."""
    y = x @ blocks_to_dense(values_Kbb, indptr, indices, out_features)
    return y if bias is None else y + bias
