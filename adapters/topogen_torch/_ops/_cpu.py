"""The operators on the CPU: the addresses of torch's tensors, handed to topogen's kernels.

A tensor's address is had in a tenth of the time of a numpy array, and leaves its storage free to be resized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topogen.errors import SpecError
from topogen_torch._ops._late import Late

if TYPE_CHECKING:
    from topogen.kernels import launch
else:
    launch = Late("topogen.kernels.launch")

__all__ = ["backward", "backward_columns", "forward", "forward_columns", "forward_single", "pack", "unpack"]

_KINDS: dict[torch.dtype, NDArray[Any]] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
}


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor
) -> Tensor:
    """Return ``x @ W + bias`` for x of shape (batch, in)."""
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    (batch, inputs), outputs = x.shape, indptr_t.shape[0] - 1
    _check(x, values, bias, indices_t, outputs)
    y = x.new_empty(batch, outputs)
    if batch:
        launch.product(
            _KINDS[x.dtype],
            _addresses(x, values, permutation, indptr_t, indices_t, bias, y),
            batch,
            inputs,
            outputs,
            values.shape[0],
            torch.get_num_threads(),
        )
    return y


def forward_single(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, out_features: int
) -> Tensor:
    """Return ``x @ W + bias`` for x of shape (1, in), from the csr index."""
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    _check(x, values, bias, indices, out_features)
    y = x.new_empty(1, out_features)
    launch.product_single(
        _KINDS[x.dtype],
        _addresses(x, values, indptr, indices, bias, y),
        x.shape[1],
        out_features,
        values.shape[0],
        torch.get_num_threads(),
    )
    return y


def backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, values and bias; what is not needed is an empty tensor."""
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    (batch, inputs), outputs = x.shape, dy.shape[1]
    _check(x, values, None, indices, outputs)
    dx, dvalues, dbias = _gradients(x, values, outputs, needs)
    if batch:
        launch.gradients(
            _KINDS[x.dtype],
            _addresses(dy, x, values, indptr, indices, dx, dvalues, dbias),
            batch,
            inputs,
            outputs,
            values.shape[0],
            torch.get_num_threads(),
        )
    else:
        dvalues.zero_()
        dbias.zero_()
    return dx, dvalues, dbias


def forward_columns(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor,
    batch: int,
) -> Tensor:  # fmt: skip
    """Return ``W.T @ x + bias[:, None]`` for x of shape (groups, in, samples)."""
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    (groups, inputs, samples), outputs = x.shape, indptr_t.shape[0] - 1
    _check(x, values, bias, indices_t, outputs)
    y = x.new_empty(groups, outputs, samples)
    if batch:
        launch.product_columns(
            _KINDS[x.dtype],
            _addresses(x, values, permutation, indptr_t, indices_t, bias, y),
            groups,
            samples,
            batch - (groups - 1) * samples,
            inputs,
            outputs,
            values.shape[0],
            torch.get_num_threads(),
        )
    return y


def backward_columns(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, batch: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, values and bias; what is not needed is an empty tensor."""
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    (groups, inputs, samples), outputs = x.shape, dy.shape[1]
    _check(x, values, None, indices, outputs)
    dx, dvalues, dbias = _gradients(x, values, outputs, needs)
    if batch:
        launch.gradients_columns(
            _KINDS[x.dtype],
            _addresses(dy, x, values, indptr, indices, dx, dvalues, dbias),
            groups,
            samples,
            batch - (groups - 1) * samples,
            inputs,
            outputs,
            values.shape[0],
            torch.get_num_threads(),
        )
    else:
        dvalues.zero_()
        dbias.zero_()
    return dx, dvalues, dbias


def pack(x: Tensor, samples: int) -> Tensor:
    """Return x (batch, features) as (groups, features, samples)."""
    x = x.contiguous()
    batch, features = x.shape
    packed = x.new_empty(-(-batch // samples), features, samples)
    threads = torch.get_num_threads()
    launch.move_rows(_KINDS[x.dtype], x.data_ptr(), batch, features, samples, packed.data_ptr(), True, threads)
    return packed


def unpack(packed: Tensor, batch: int) -> Tensor:
    """Return packed (groups, features, samples) as (batch, features)."""
    packed = packed.contiguous()
    _, features, samples = packed.shape
    x = packed.new_empty(batch, features)
    threads = torch.get_num_threads()
    launch.move_rows(_KINDS[x.dtype], x.data_ptr(), batch, features, samples, packed.data_ptr(), False, threads)
    return x


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _check(x: Tensor, values: Tensor, bias: Tensor | None, indices: Tensor, outputs: int) -> None:
    """Refuse parameters that the index does not fit: a kernel would read beyond them."""
    count, dtype = indices.shape[0], x.dtype
    if values.shape[0] != count or values.dtype != dtype:
        name, tensor, wanted = "values", values, count
    elif bias is not None and (bias.shape[0] != outputs or bias.dtype != dtype):
        name, tensor, wanted = "bias", bias, outputs
    else:
        return
    got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
    raise SpecError(f"The {name} of a sparse layer must be {dtype} of shape ({wanted},). Got {got}.")


def _gradients(x: Tensor, values: Tensor, outputs: int, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs[0] else 0),
        x.new_empty(values.shape if needs[1] else 0),
        x.new_empty(outputs if needs[2] else 0),
    )
