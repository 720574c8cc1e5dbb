"""Layers as what can be made narrower: fewer inputs, fewer outputs.

A *channel* is what a layer puts out: a neuron, or a channel of a convolution. A *feature* is one input of the next
layer: the same thing, or one of the numbers that a flattened channel consists of. Masks are numpy arrays, numbers
float64. Nothing here changes a module: what would is returned as a list of assignments that cannot fail.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topogen import as_pattern
from topogen_torch._block import BlockSparseLinear, elements_of
from topogen_torch._conv import SparseConv1d, SparseConv2d
from topogen_torch._layers import SparseLinear

__all__ = [
    "LAYERS",
    "Change",
    "Layer",
    "Mask",
    "has_floats",
    "indices_of",
    "layer_of",
    "numbers_of",
    "replaced",
    "ties",
]

Change = Callable[[], Any]
Mask = NDArray[np.bool_]

LAYERS: tuple[type[nn.Module], ...] = (
    SparseLinear, BlockSparseLinear, SparseConv1d, SparseConv2d, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
)  # fmt: skip


class Layer(ABC):
    """One layer with weights.

    Attributes
    ----------
    inputs, outputs : int
        Features and channels.
    group_in, group_out : int
        How many neighbours can only be removed together.
    dimensions : int
        0 for linear layers, those of the images for convolutions.
    pads_with_zeros : bool
        Whether a constant input other than 0 is none at the borders.
    """

    inputs: int
    outputs: int
    group_in = group_out = 1
    dimensions = 0
    pads_with_zeros = False

    def __init__(self, module: Any, drop_zeros: bool) -> None:
        self.module = module
        self._drop_zeros = drop_zeros

    @property
    def bias(self) -> NDArray[np.float64] | None:
        return None if self.module.bias is None else numbers_of(self.module.bias)

    @abstractmethod
    def connections(self) -> Any:
        """Return which inputs reach which outputs, bool, (inputs, outputs), an ndarray or a csr_array."""

    @abstractmethod
    def sums(self, power: int = 1) -> Any:
        """Return what the weights of each pair, or their powers, add up to: float64, (inputs, outputs).

        An input that is the same everywhere, times this, is what it adds to the outputs.
        """

    @abstractmethod
    def _narrowed(self, inputs: Mask, outputs: Mask) -> list[Change]:
        """Return what gives the module these inputs and outputs only."""

    def narrowed(self, inputs: Mask, outputs: Mask, offset: NDArray[np.float64] | None) -> list[Change]:
        """Return what gives the module these inputs and outputs only, and adds `offset`, (outputs,), to its bias."""
        changes = self._narrowed(inputs, outputs)
        bias = self.module.bias
        if bias is not None and (offset is not None or not outputs.all()):
            data = bias.data
            if offset is not None:
                data = (data.double() + torch.from_numpy(offset).to(data.device)).to(data.dtype)
            places = indices_of(outputs, bias)
            changes.append(replaced(bias, data[places], lambda gradient: gradient[places]))
        return changes


class _Dense(Layer):
    """A layer of PyTorch, whose weight is (outputs, inputs, *kernel)."""

    def __init__(self, module: Any, drop_zeros: bool) -> None:
        super().__init__(module, drop_zeros)
        self.outputs, self.inputs, *kernel = module.weight.shape
        self.dimensions = len(kernel)
        if kernel:
            padding = module.padding
            if padding == "same":
                padding = [d * (k - 1) for d, k in zip(module.dilation, kernel, strict=True)]
            self.pads_with_zeros = module.padding_mode == "zeros" and padding != "valid" and any(padding)

    def connections(self) -> Any:
        if not self._drop_zeros:
            return np.ones((self.inputs, self.outputs), np.bool_)
        weight = self.module.weight.detach()
        return (weight.flatten(2).any(2) if self.dimensions else weight != 0).T.cpu().numpy()

    def sums(self, power: int = 1) -> Any:
        weight = self.module.weight.detach().double() ** power
        return numbers_of(weight.flatten(2).sum(2) if self.dimensions else weight).T

    def _narrowed(self, inputs: Mask, outputs: Mask) -> list[Change]:
        if inputs.all() and outputs.all():
            return []
        module, weight = self.module, self.module.weight
        rows, columns = indices_of(outputs, weight), indices_of(inputs, weight)
        names = ("in_channels", "out_channels") if self.dimensions else ("in_features", "out_features")
        return [
            lambda: vars(module).update(zip(names, (len(columns), len(rows)), strict=True)),
            replaced(weight, weight.data[rows][:, columns], lambda gradient: gradient[rows][:, columns]),
        ]


class _Stored(Layer):
    """A topogen layer, whose values are those of its stored pattern."""

    def __init__(self, module: Any, drop_zeros: bool) -> None:
        super().__init__(module, drop_zeros)
        self._offsets = 1
        rows, columns = module._stored_sizes
        if isinstance(module, BlockSparseLinear):
            self.group_in = self.group_out = module.block
        elif isinstance(module, SparseConv1d | SparseConv2d):
            self.dimensions = module.dimensions
            self.pads_with_zeros = module.padding_mode == "zeros" and any(module._around())
            self._offsets = module._offsets if module._listed else 1
        self.inputs, self.outputs = rows * self.group_in // self._offsets, columns * self.group_out

    def _alive(self) -> Mask:
        """Which entries of the stored pattern count."""
        values = self.module.values.detach()
        if not self._drop_zeros:
            return np.ones(len(values), np.bool_)
        return (values.flatten(1).any(1) if self.module._unit else values != 0).cpu().numpy()

    def connections(self) -> Any:
        if isinstance(self.module, BlockSparseLinear):
            return self.sums() != 0 if self._drop_zeros else self.module.pattern
        return self._over_channels(self._alive()) != 0

    def sums(self, power: int = 1) -> Any:
        numbers = numbers_of(self.module.values) ** power
        if isinstance(self.module, BlockSparseLinear):
            return elements_of(self.module.block_pattern, numbers)
        return self._over_channels(numbers.sum(tuple(range(1, numbers.ndim))))

    def _over_channels(self, numbers: NDArray[Any]) -> sp.csr_array:
        """Add up the numbers of all entries that join the same two channels."""
        rows, columns = self.module._stored_pattern.nonzero()
        return sp.coo_array((numbers, (rows % self.inputs, columns)), shape=(self.inputs, self.outputs)).tocsr()

    def _narrowed(self, inputs: Mask, outputs: Mask) -> list[Change]:
        module, alive = self.module, self._alive()
        if inputs.all() and outputs.all() and alive.all():
            return []
        pattern = module._stored_pattern
        rows, columns = pattern.nonzero()
        stay_in, stay_out = np.tile(inputs, self._offsets)[:: self.group_in], outputs[:: self.group_out]
        alive &= stay_in[rows] & stay_out[columns]
        sizes = (int(stay_in.sum()), int(stay_out.sum()))
        ends = (np.cumsum(stay_in) - 1)[rows[alive]], (np.cumsum(stay_out) - 1)[columns[alive]]
        stored = as_pattern(sp.coo_array((np.ones(alive.sum(), np.bool_), ends), shape=sizes))
        places, buffers = indices_of(alive, module.values), module._buffers_of(stored)
        kind = "channels" if self.dimensions else "features"
        names = {"_stored_sizes": sizes, f"in_{kind}": int(inputs.sum()), f"out_{kind}": int(outputs.sum())}
        return [
            lambda: vars(module).update(names),
            lambda: vars(module).pop("_topogen_groups", None),  # of the convolution it was; its channels are others now
            lambda: module._install(*buffers),
            replaced(module.values, module.values.data[places], lambda gradient: gradient[places]),
        ]


def layer_of(module: nn.Module, drop_zeros: bool) -> Layer | None:
    """Return how a module can be narrowed; None if it is no layer, has several groups, or holds no common floats."""
    if type(module) not in LAYERS or getattr(module, "groups", 1) != 1 or not has_floats(module):
        return None
    return (_Dense if type(module).__module__.startswith("torch.") else _Stored)(module, drop_zeros)


def has_floats(module: nn.Module) -> bool:
    """Whether all parameters are ordinary ones of real numbers: neither complex nor quantized."""
    return all(type(parameter) is nn.Parameter and parameter.is_floating_point() for parameter in module.parameters())


def ties(before: Layer, behind: Layer) -> tuple[int, int]:
    """Return how many features each channel of a layer is for the next, and how many neighbours go only together."""
    times = behind.inputs // before.outputs
    return times, math.lcm(times * before.group_out, behind.group_in)


def numbers_of(tensor: Tensor) -> NDArray[np.float64]:
    """Return the numbers of a tensor."""
    return tensor.detach().cpu().double().numpy()


def indices_of(mask: Mask, beside: Tensor) -> Tensor:
    """Return where a mask is set, int64, on the device of another tensor."""
    return torch.from_numpy(np.flatnonzero(mask)).to(beside.device)


def replaced(tensor: Tensor, data: Tensor, followed: Callable[[Tensor], Tensor]) -> Change:
    """Give a tensor, the same object, other data; its gradient follows."""
    gradient = None if tensor.grad is None else followed(tensor.grad)

    def replace() -> None:
        tensor.grad = None
        tensor.data = data
        tensor.grad = gradient

    return replace
