"""Gradients of the loss for all weights that a layer could have, a run of inputs at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from topogen_torch._conv import SparseConv1d, SparseConv2d
from topogen_torch._patterned import Patterned
from topogen_torch.controllers._tape import Pair, Tape

__all__ = ["absent_gradients", "some_gradients"]

CHUNK = 1 << 20  # gradients held at once


def absent_gradients(tape: Tape, *, signed: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Yield the absolute gradients of all places of a layer, present or not, a run of rows at a time.

    For a block or a convolution kernel it is the Frobenius norm of its gradient. In a process group the gradients are
    averaged over the processes first. A dense gradient never exists.

    Parameters
    ----------
    tape : Tape
        With at least one pair.
    signed : bool
        Leave the gradients of single weights as they are.

    Yields
    ------
    first : int
        The place of the chunk's first gradient.
    chunk : Tensor, float32 or float64, on the layer's device
    """
    layer = tape.layer
    (n_in, n_out), (height, width) = layer._stored_sizes, _cells(layer)
    passes = [_pass(layer, pair, tape.weight(pair)) for pair in tape.pairs]
    dtype, device = passes[0].dy.dtype, passes[0].dy.device
    rows = max(1, CHUNK // max(1, n_out * height * width))
    for begin in range(0, n_in, rows):
        end = min(n_in, begin + rows)
        gradient = torch.empty(end - begin, height, n_out, width, dtype=dtype, device=device)
        for k, one in enumerate(passes):
            one.add_to(gradient, begin, end, fresh=k == 0)
        _average(gradient)
        if height * width > 1:
            gradient = torch.linalg.vector_norm(gradient, dim=(1, 3))
        elif not signed:
            gradient.abs_()
        yield begin * n_out, gradient.flatten()


def some_gradients(tape: Tape, rows: NDArray[np.int64]) -> Tensor | None:
    """Return the gradients of the places in some rows, shape (rows, outputs); None but for single weights of y = x W.

    In a process group they are averaged over the processes.
    """
    layer = tape.layer
    if not tape.pairs or layer._unit or isinstance(layer, (SparseConv1d, SparseConv2d)):
        return None
    chosen, gradient = torch.from_numpy(rows).to(layer.values.device), torch.zeros(())
    for pair in tape.pairs:
        x, dy = (t.reshape(-1, t.shape[-1]) for t in _alike(pair))
        gradient = gradient.to(dy) + tape.weight(pair) * (x[:, chosen].t() @ dy)
    _average(gradient)
    return gradient


def _average(gradient: Tensor) -> None:
    """In a process group, replace a gradient by its mean over the processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()


def _cells(layer: Patterned) -> tuple[int, int]:
    """Return the shape of a unit of weights as (of an input, of an output)."""
    if isinstance(layer, (SparseConv1d, SparseConv2d)):
        return math.prod(layer._unit), 1
    return layer._unit if len(layer._unit) == 2 else (1, 1)


def _pass(layer: Patterned, pair: Pair, weight: float) -> _Multiplied | _Convolved:
    if isinstance(layer, (SparseConv1d, SparseConv2d)):
        return _Convolved(layer, pair, weight)
    return _Multiplied(pair, weight)


class _Multiplied:
    """A pass through a linear layer: y = x W."""

    def __init__(self, pair: Pair, weight: float) -> None:
        self.x, self.dy = (t.reshape(-1, t.shape[-1]) for t in _alike(pair))
        self.weight = weight

    def add_to(self, gradient: Tensor, begin: int, end: int, *, fresh: bool) -> None:
        """Add the gradients of rows in [begin, end) to (rows, height, outputs, width), which may hold nothing yet."""
        rows, height, n_out, width = gradient.shape
        x = self.x[:, begin * height : end * height]
        gradient.view(rows * height, n_out * width).addmm_(x.t(), self.dy, beta=1 - fresh, alpha=self.weight)


class _Convolved:
    """A pass through a convolution: for each offset of the kernel a product of samples that lie that far apart."""

    def __init__(self, layer: SparseConv1d | SparseConv2d, pair: Pair, weight: float) -> None:
        n = layer.dimensions
        x, dy = (t if t.ndim == n + 2 else t.unsqueeze(0) for t in _alike(pair))
        around = layer._around()
        if any(around):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = pad(x, layer._torch_padding(around), mode=mode)
        x, dy = (t.unsqueeze(2) if n == 1 else t for t in (x, dy))
        self.x, self.output = x, dy.shape[2:]
        self.dy = dy.transpose(0, 1).flatten(1).t()  # (samples, outputs)
        self.window = layer._window((0, 0) * n)
        self.channels, self.listed = layer.in_channels, layer._listed
        self.weight = weight

    def add_to(self, gradient: Tensor, begin: int, end: int, *, fresh: bool) -> None:
        """Add the gradients of the rows in [begin, end): channels, or those of a list offset after offset."""
        if fresh:
            gradient.zero_()
        if not self.listed:
            for offset in range(gradient.shape[1]):
                gradient[:, offset, :, 0] += self._product(offset, begin, end)
            return
        row = begin
        while row < end:
            offset, channel = divmod(row, self.channels)
            count = min(end - row, self.channels - channel)
            gradient[row - begin : row - begin + count, 0, :, 0] += self._product(offset, channel, channel + count)
            row += count

    def _product(self, offset: int, begin: int, end: int) -> Tensor:
        places = divmod(offset, self.window.size[1])
        (down, right), (deep, apart) = self.window.stride, self.window.dilation
        top, left = places[0] * deep, places[1] * apart
        height, width = self.output
        rows = slice(top, top + (height - 1) * down + 1, down)
        columns = slice(left, left + (width - 1) * right + 1, right)
        x = self.x[:, begin:end, rows, columns].transpose(0, 1).flatten(1)
        return self.weight * (x @ self.dy)


def _alike(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return inputs and output gradients in one dtype, float32 at least: short floats pick the wrong connections."""
    dtype = torch.promote_types(torch.promote_types(pair.x.dtype, pair.dy.dtype), torch.float32)
    return pair.x.to(dtype), pair.dy.to(dtype)
