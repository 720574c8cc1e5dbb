"""The sparse linear layer in bfloat16 on the CPU: samples stay as short as they are until they are in registers.

Sums are float32 and rounded once. Few samples, and products with patterns that are nearly full, are computed from
float32 copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topogen.errors import SpecError
from topogen_torch import _break_even
from topogen_torch._ops import _cpu
from topogen_torch._ops._crowded import crowded_forward
from topogen_torch._ops._entry import first_order
from topogen_torch._ops._late import Late

if TYPE_CHECKING:
    from topogen.kernels import short_launch
else:
    short_launch = Late("topogen.kernels.short_launch")

__all__ = ["short_linear"]

_FEW = 16  # samples: half of what is loaded at once

torch.library.define(
    "topogen::short_linear",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, Tensor indptr_t, Tensor indices_t, "
    "Tensor permutation) -> Tensor",
)


@torch.library.register_fake("topogen::short_linear")
def _fake_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, indptr_t: Tensor,
    indices_t: Tensor, permutation: Tensor,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], indptr_t.shape[0] - 1)


@torch.library.impl("topogen::short_linear", "cpu")
def _forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, indptr_t: Tensor,
    indices_t: Tensor, permutation: Tensor,
) -> Tensor:  # fmt: skip
    """Return ``x @ W + bias`` for x of shape (batch, in). The batch decides in here, as in `crowded_forward`."""
    (batch, inputs), outputs = x.shape, indptr_t.shape[0] - 1
    for name, tensor, count in (("values", values, indices.shape[0]), ("bias", bias, outputs)):
        if tensor is not None and (tensor.shape[0] != count or tensor.dtype != x.dtype):  # a kernel would read beyond
            got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise SpecError(f"The {name} of a sparse layer must be {x.dtype} of shape ({count},). Got {got}.")
    wide_bias = None if bias is None else bias.float()
    if batch == 1:
        return _cpu.forward_single(x.float(), values.float(), wide_bias, indptr, indices, outputs).to(x.dtype)
    if batch <= _FEW or _break_even.multiplies_densely(batch, values.shape[0], inputs, outputs):
        index = indptr, indices, indptr_t, indices_t, permutation
        return crowded_forward(x.float(), values.float(), wide_bias, *index).to(x.dtype)
    x, values = x.contiguous(), values.contiguous()
    y = x.new_empty(batch, outputs)
    operands = (x, values, permutation, indptr_t, indices_t, wide_bias, y)
    short_launch.short_product(_addresses(*operands), batch, inputs, outputs, values.shape[0], torch.get_num_threads())
    return y


torch.library.define(
    "topogen::short_linear_backward",
    "(Tensor dy, Tensor x, Tensor values, Tensor indptr, Tensor indices, bool[3] needs) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("topogen::short_linear_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    return dx, dvalues, dbias


@torch.library.impl("topogen::short_linear_backward", "cpu")
def _backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, values and bias; what is not needed is an empty tensor."""
    (batch, inputs), outputs, dtype = x.shape, dy.shape[1], x.dtype
    if batch <= _FEW or not needs[1]:
        dx, dvalues, dbias = _cpu.backward(dy.float(), x.float(), values.float(), indptr, indices, needs)
        return dx.to(dtype), dvalues.to(dtype), dbias.to(dtype)
    dy, x, values = dy.contiguous(), x.contiguous(), values.float()
    dx, dvalues = x.new_empty(x.shape if needs[0] else 0), torch.empty_like(values)
    operands = (dy, x, values, indptr, indices, dx if needs[0] else None, dvalues)
    short_launch.short_gradients(
        _addresses(*operands), batch, inputs, outputs, values.shape[0], torch.get_num_threads()
    )
    # sums of few bits in float64 are exact, so that they depend on no order
    dbias = dy.sum(0, dtype=torch.float64).to(dtype) if needs[2] else dy.new_empty(0)
    return dx, dvalues.to(dtype), dbias


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class _ShortLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
        indptr, indices, *_ = index
        ctx.save_for_backward(x, values, indptr, indices)
        return torch.ops.topogen.short_linear.default(x, values, bias, *index)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        found = torch.ops.topogen.short_linear_backward.default(dy, *ctx.saved_tensors, needs)
        dx, dvalues, dbias = (part if need else None for part, need in zip(found, needs, strict=True))
        return dx, dvalues, dbias, None, None, None, None, None


def short_linear(x: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    """Return ``x @ W + bias`` for x of shape (batch, in), all of bfloat16, on the CPU or on meta."""
    return _ShortLinear.apply(x, values, bias, *index)
