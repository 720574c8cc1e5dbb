"""The sparse product by panels as registered operators, and its gradient: for patterns whose neurons share inputs.

The same operators take rows of samples, as `topogen_torch._ops._linear`, and feature-major data, as `_columns`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from topogen import kernels
from topogen.errors import SpecError
from topogen_torch._ops import _cpu
from topogen_torch._ops._arrays import array
from topogen_torch._ops._dense import announce_fallback, dense_linear
from topogen_torch._ops._entry import KERNEL_DEVICES, admitted, first_order, in_long_floats

__all__ = ["PanelIndex", "panel_columns", "panel_linear"]

# `batch` is how many samples exist of packed x, shape (groups, in, samples); 0 says that x has shape (batch, in).
torch.library.define(
    "topogen::panel_linear",
    "(Tensor x, Tensor values, Tensor? bias, Tensor panels_t, SymInt out_features, SymInt batch) -> Tensor",
)
torch.library.define(
    "topogen::panel_linear_backward",
    "(Tensor dy, Tensor x, Tensor values, Tensor indptr, Tensor indices, Tensor panels, SymInt batch, bool[3] needs) "
    "-> (Tensor, Tensor, Tensor)",
)


class PanelIndex(NamedTuple):
    """The int32 index buffers of one layer that is computed by panels; see `topogen_torch._layout`."""

    indptr: Tensor
    indices: Tensor
    panels: Tensor
    panels_t: Tensor


@torch.library.register_fake("topogen::panel_linear")
def _empty_output(
    x: Tensor, values: Tensor, bias: Tensor | None, panels_t: Tensor, out_features: int, batch: int
) -> Tensor:
    return x.new_empty(x.shape[0], out_features, *x.shape[2:])


@torch.library.register_fake("topogen::panel_linear_backward")
def _empty_gradients(
    dy: Tensor,
    x: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    panels: Tensor,
    batch: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:2])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    return dx, dvalues, dbias


@torch.library.impl("topogen::panel_linear", "cpu")
def _forward_on_cpu(
    x: Tensor, values: Tensor, bias: Tensor | None, panels_t: Tensor, out_features: int, batch: int
) -> Tensor:
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    y = _empty_output(x, values, bias, panels_t, out_features, batch)
    operands = (array(x), array(values), array(panels_t), out_features, None if bias is None else array(bias))
    threads = torch.get_num_threads()
    if x.ndim == 2:
        kernels.multiply_panels(*operands, out=array(y), threads=threads)
    else:
        kernels.multiply_panels_columns(*operands, out=array(y), batch=batch, threads=threads)
    return y


@torch.library.impl("topogen::panel_linear_backward", "cpu")
def _backward_on_cpu(
    dy: Tensor,
    x: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    panels: Tensor,
    batch: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    if not panels.numel():  # inputs share too little, or have too few connections
        if x.ndim == 2:
            return _cpu.backward(dy, x, values, indptr, indices, needs)
        return _cpu.backward_columns(dy, x, values, indptr, indices, batch, needs)
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    gradients = _empty_gradients(dy, x, values, indptr, indices, panels, batch, needs)
    operands = (array(dy), array(x), array(values), array(indptr), array(panels))
    wanted = {
        name: array(tensor) if need else None
        for name, tensor, need in zip(("dx", "dvalues", "dbias"), gradients, needs, strict=True)
    }
    threads = torch.get_num_threads()
    if x.ndim == 2:
        kernels.gradients_panels(*operands, **wanted, threads=threads)
    else:
        kernels.gradients_panels_columns(*operands, **wanted, batch=batch, threads=threads)
    return gradients


_forward = torch.ops.topogen.panel_linear.default
_backward = torch.ops.topogen.panel_linear_backward.default


class _PanelLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, out_features: int, batch: int, *index: Tensor
    ) -> Tensor:
        *of_inputs, panels_t = index
        ctx.save_for_backward(x, values, *of_inputs)
        ctx.batch = batch
        return _forward(x, values, bias, panels_t, out_features, batch)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        found = _backward(dy, *ctx.saved_tensors, ctx.batch, needs)
        return (*(gradient if need else None for gradient, need in zip(found, needs, strict=True)), *(None,) * 6)


def panel_linear(x: Tensor, values: Tensor, bias: Tensor | None, index: PanelIndex, out_features: int) -> Tensor:
    """Return what `sparse_linear` does, by panels.

    Parameters
    ----------
    x : Tensor, shape (..., in)
        Any number of leading dimensions, none included.
    values : Tensor, shape (nnz,)
        In value ordering, of the dtype of `x` and on its device.
    bias : Tensor, shape (out,), optional
    index : PanelIndex
    out_features : int

    Returns
    -------
    Tensor, shape (..., out)
    """
    x, values, bias = admitted("SparseLinear", x, values, bias)
    in_features = index.indptr.shape[0] - 1
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise SpecError(f"The input of SparseLinear must have shape (..., {in_features}). Got {tuple(x.shape)}.")
    if x.device.type not in KERNEL_DEVICES:
        announce_fallback(x.device, in_features, out_features, values.itemsize)
        return dense_linear(x, values, bias, index.indptr, index.indices, out_features)
    rows = x if x.ndim == 2 else x.reshape(-1, in_features)
    y = in_long_floats(
        lambda x, values, bias: _PanelLinear.apply(x, values, bias, out_features, 0, *index), rows, values, bias
    )
    return y if x.ndim == 2 else y.view(*x.shape[:-1], out_features)


def panel_columns(
    x: Tensor, values: Tensor, bias: Tensor | None, index: PanelIndex, out_features: int, *, batch: int
) -> Tensor:
    """Return what `sparse_columns` does for packed activations on the CPU, by panels.

    Parameters
    ----------
    x : Tensor, shape (groups, in, samples), float32 or float64
        As `pack` makes it; `batch` samples exist.
    values, bias, index, out_features
        As for `panel_linear`.

    Returns
    -------
    Tensor, shape (groups, out, samples)
    """
    return _PanelLinear.apply(x, values, bias, out_features, batch, *index)
