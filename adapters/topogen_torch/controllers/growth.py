"""Which new connections a layer gets: rules of growth.

A rule is any callable ``rule(request) -> places``: the `Request` says how many, and what they are chosen from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from topogen.errors import TopogenError
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Places
from topogen_torch.controllers._places import drawn_empty
from topogen_torch.controllers._tape import Tape

__all__ = ["Request", "Rule", "at_random", "by_gradient"]

CHUNK = 1 << 22  # gradients of absent connections held at once


@dataclass(frozen=True, slots=True)
class Request:
    """What a rule of growth may look at.

    Attributes
    ----------
    layer : Patterned
    kept : ndarray of int64
        Places that stay, rising; every other place may be chosen, those that were just dropped included.
    count : int
        How many places are wanted; there are always as many empty ones.
    draw : callable
        Returns the `numpy.random.Generator` of this layer and step.
    tape : Tape
        What went through the layer in this step, for gradients.
    sound : callable
        Returns the array of scores it is given, or refuses the whole rewiring where one of them is NaN.
    """

    layer: Patterned
    kept: Places
    count: int
    draw: Callable[[], np.random.Generator]
    tape: Tape
    sound: Callable[[NDArray[Any]], NDArray[Any]]


Rule = Callable[[Request], Places]


def at_random(request: Request) -> Places:
    """Choose uniformly among all empty places, without replacement."""
    n_in, n_out = request.layer._stored_sizes
    return drawn_empty(request.draw(), request.kept, n_in * n_out, request.count)


def by_gradient(request: Request) -> Places:
    """Choose the empty places whose weight has the largest absolute gradient; of equal ones the first.

    For a block or a convolution kernel the Frobenius norm of its gradient counts. The gradients are computed a chunk
    of inputs at a time and only the best so far are kept, so that a dense gradient never exists (U. Evci et al.,
    arXiv:1911.11134, section 3 (4)); in a process group they are summed over the processes first.
    """
    if not request.tape.pairs:
        raise TopogenError(
            "Growth by gradient needs a backward pass through every controlled layer in the step of an update. "
            "Got none: call step() after loss.backward(), and leave layers out that the loss does not reach."
        )
    scores, places = np.empty(0), np.empty(0, np.int64)
    for first, chunk in absent_gradients(request.layer, request.tape.pairs):
        request.sound(chunk)
        begin, end = np.searchsorted(request.kept, [first, first + chunk.size])
        chunk[request.kept[begin:end] - first] = -1  # a place that stays cannot be chosen
        own = np.flatnonzero(chunk >= _threshold(chunk, request.count))
        scores = np.concatenate([scores, chunk[own]])
        places = np.concatenate([places, own + first])
        if len(scores) > 4 * request.count:
            scores, places = _leading(scores, places, request.count)
    scores, places = _leading(scores, places, request.count)
    return np.sort(places)


def absent_gradients(layer: Patterned, pairs: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the absolute gradients of all places of a layer, present or not, a run of rows at a time.

    Yields
    ------
    first : int
        The place of the chunk's first gradient.
    chunk : ndarray of float64
    """
    (n_in, n_out), unit = layer._stored_sizes, layer._unit
    rows = max(1, CHUNK // max(1, n_out * math.prod(unit)))
    height, width = unit or (1, 1)
    flat = [(x.flatten(0, -2).float(), dy.flatten(0, -2).float()) for x, dy in pairs]
    for begin in range(0, n_in, rows):
        end = min(n_in, begin + rows)
        gradient = torch.zeros((end - begin) * height, n_out * width)
        for x, dy in flat:
            gradient.addmm_(x[:, begin * height : end * height].t(), dy)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(gradient)
        if unit:
            gradient = gradient.view(end - begin, height, n_out, width).double().pow(2).sum((1, 3)).sqrt()
        yield begin * n_out, gradient.abs().flatten().double().numpy()


def _threshold(chunk: NDArray[np.float64], count: int) -> float:
    """Return a value that at least `count` entries reach, and as few others as ties allow; 0 if there are no more."""
    if count >= len(chunk):
        return 0.0
    return max(0.0, float(np.partition(chunk, len(chunk) - count)[len(chunk) - count]))


def _leading(scores: NDArray[np.float64], places: Places, count: int) -> tuple[NDArray[np.float64], Places]:
    order = np.lexsort((places, -scores))[:count]
    return scores[order], places[order]
