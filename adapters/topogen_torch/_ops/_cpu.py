"""The operators on the CPU: torch's tensors as numpy arrays, handed to topogen's kernels."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from topogen import kernels

__all__ = ["backward", "forward"]


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor
) -> Tensor:
    """Return ``x @ W + bias`` for x of shape (batch, in)."""
    y = x.new_empty(x.shape[0], indptr_t.numel() - 1)
    kernels.multiply(
        _floats(x),
        _floats(values),
        indptr_t.numpy(),
        indices_t.numpy(),
        permutation.numpy(),
        None if bias is None else _floats(bias),
        out=y.numpy(),
        threads=torch.get_num_threads(),
    )
    return y


def backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, values and bias; what is not needed is an empty tensor."""
    shapes = (x.shape, values.shape, dy.shape[1:])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))
    kernels.gradients(
        _floats(dy),
        _floats(x),
        _floats(values),
        indptr.numpy(),
        indices.numpy(),
        dx=dx.numpy() if needs[0] else None,
        dvalues=dvalues.numpy() if needs[1] else None,
        dbias=dbias.numpy() if needs[2] else None,
        threads=torch.get_num_threads(),
    )
    return dx, dvalues, dbias


def _floats(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    return (tensor if tensor.is_contiguous() else tensor.contiguous()).numpy()
