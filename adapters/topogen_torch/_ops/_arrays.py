"""A tensor's memory as a numpy array, for the time of one kernel call."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["array"]

_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64), torch.int32: np.dtype(np.int32)}


def array(tensor: Tensor) -> NDArray[Any]:
    """Return an array over the memory of a contiguous CPU tensor, whether or not it wants a gradient.

    ``Tensor.numpy`` would mark the storage as one that may never be resized, and FSDP resizes that of every parameter.
    The array does not keep the tensor alive: the caller does.
    """
    count = tensor.numel()
    if not count:
        return np.empty(tensor.shape, _DTYPES[tensor.dtype])
    memory: Any = (ctypes.c_char * (count * tensor.element_size())).from_address(tensor.data_ptr())
    return np.frombuffer(memory, _DTYPES[tensor.dtype]).reshape(tensor.shape)
