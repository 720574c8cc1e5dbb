"""Bytes: what a module stores, what training it adds, and how high a training step's memory really rises."""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from topogen_torch._conversion._swap import densified
from topogen_torch._patterned import Patterned
from topogen_torch._reports._timing import Inputs, calls_of, check_room

__all__ = ["MOMENTS", "Memory", "dense_memory_of", "dense_state_bytes", "memory_of", "peak_of_a_step", "state_bytes"]

MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK_SO_FAR = "5"  # written to clear_refs: forget the peak


class Memory(NamedTuple):
    """Bytes that training a layer takes, activations apart.

    Attributes
    ----------
    values : int
        Weights and bias.
    indices : int
        Index buffers, transposed ones included; in modules that are not topogen's, all buffers.
    gradients : int
        One number for each trainable value.
    optimizer : int
        The optimizer's moments of each trainable value.
    """

    values: int
    indices: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self)


def memory_of(module: nn.Module, moments: int) -> Memory:
    """Return the bytes of the module's own parameters and buffers, and of what so many moments add."""
    values = list(module.parameters(recurse=False))
    trained = sum(p.nbytes for p in values if p.requires_grad)
    indices = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
    return Memory(sum(p.nbytes for p in values), indices, trained, moments * trained)


def dense_memory_of(layer: Patterned, moments: int) -> Memory:
    """Return those of the dense namesake."""
    weights = _dense_weights(layer)
    bias = 0 if layer.bias is None else layer.bias.nbytes
    trained = weights * layer.values.requires_grad
    trained += bias if layer.bias is not None and layer.bias.requires_grad else 0
    return Memory(weights + bias, 0, trained, moments * trained)


def state_bytes(module: nn.Module) -> int:
    """Return the bytes of the tensors that the module's own part of a state dict holds."""
    buffers = (buffer for name, buffer in module.named_buffers(recurse=False) if name not in _transient(module))
    return sum(tensor.nbytes for tensor in (*module.parameters(recurse=False), *buffers))


def dense_state_bytes(layer: Patterned) -> int:
    """Return those of the dense namesake."""
    return _dense_weights(layer) + (0 if layer.bias is None else layer.bias.nbytes)


def peak_of_a_step(
    module: nn.Module, inputs: Inputs, optimizer: str, *, input_gradients: bool = True
) -> tuple[int | None, int | None]:
    """Return the bytes, at the highest, that a copy of `module` and its dense twin take to train.

    Parameters, indices, gradients, optimizer state, activations and temporary arrays: whatever a fresh copy needs for
    two steps. Scratch memory that the kernels keep from earlier calls is not counted. None where the system keeps no
    account of it (it does on Linux), or the module is not on the CPU.
    """
    if next(module.parameters()).device.type != "cpu":
        return None, None

    def peak(twin: nn.Module) -> int | None:
        """Watch a twin that is there already: what building it took is no part of training."""
        stored = sum(tensor.nbytes for tensor in (*twin.parameters(), *twin.buffers()))
        rise = _resident_rise(lambda: _two_steps(twin, inputs, optimizer, input_gradients))
        return None if rise is None else stored + rise

    with torch.inference_mode(False), torch.enable_grad():
        own = peak(copy.deepcopy(module))
        check_room(module)
        return own, peak(densified(module))


def _two_steps(twin: nn.Module, inputs: Inputs, optimizer: str, input_gradients: bool) -> None:
    *_, step = calls_of(twin, inputs, optimizer, input_gradients=input_gradients)
    step()
    step()


def _resident_rise(work: Callable[[], None]) -> int | None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # free memory that the C library holds back would hide what comes
    try:
        _CLEAR.write_text(_PEAK_SO_FAR)
        before = _status("VmRSS")
        work()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _dense_weights(layer: Patterned) -> int:
    return math.prod((*layer._stored_sizes, *layer._unit)) * layer.values.itemsize


def _transient(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set
