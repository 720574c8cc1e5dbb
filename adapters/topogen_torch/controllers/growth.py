"""Which new connections a layer gets: rules of growth.

A rule is any callable ``rule(request) -> places``: the `Request` says how many, and what they are chosen from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from topogen.errors import TopogenError
from topogen_torch._passes import above
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Places
from topogen_torch.controllers._absent import absent_gradients, some_gradients
from topogen_torch.controllers._places import best, drawn_empty
from topogen_torch.controllers._tape import Tape

__all__ = ["Request", "Rule", "at_random", "by_gradient"]

_NONE = np.empty(0, np.int64)
_WORTH_GUESSING = 1 << 20  # places
_ROWS, _SAMPLE = 64, 1 << 16  # of the gradients that a guess is made from; some columns of the rows
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples mod 1 are spread evenly, and in step with no regular pattern


@dataclass(frozen=True, slots=True)
class Request:
    """What a rule of growth may look at.

    Attributes
    ----------
    layer : Patterned
    staying : ndarray of int32 or int64
        Places that stay, rising, in the shortest ints that number them; every other place may be chosen, those that
        were just dropped included.
    count : int
        How many places are wanted; there are always as many empty ones.
    draw : callable
        Returns the `numpy.random.Generator` of this layer and step.
    tape : Tape
        What went through the layer in this step.
    sound : callable
        Returns the array of scores it is given, or refuses the whole rewiring where one of them is NaN.
    """

    layer: Patterned
    staying: Places
    count: int
    draw: Callable[[], np.random.Generator]
    tape: Tape
    sound: Callable[[NDArray[Any]], NDArray[Any]]

    @property
    def kept(self) -> NDArray[np.int64]:
        """Places that stay, rising."""
        return self.staying.astype(np.int64, copy=False)

    def gradients(self, *, signed: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yield the absolute gradients of all places, a run at a time: the first place of the run, and a tensor.

        The tensors may be overwritten. With `signed` they are the gradients themselves where a unit is one weight.

        Raises
        ------
        TopogenError
            If nothing went through the layer.
        """
        if not self.tape.pairs:
            raise TopogenError(
                "Growth by gradient needs a backward pass through every controlled layer in the step of an update. "
                "Got none: call step() after loss.backward(), and leave layers out that the loss does not reach."
            )
        return absent_gradients(self.tape, signed=signed)


Rule = Callable[[Request], Places]


def at_random(request: Request) -> Places:
    """Choose uniformly among all empty places, without replacement.

    Parameters
    ----------
    request : Request

    Returns
    -------
    ndarray of int32 or int64, shape (count,)
        Rising.
    """
    n_in, n_out = request.layer._stored_sizes
    return drawn_empty(request.draw(), request.staying, n_in * n_out, request.count)


def by_gradient(request: Request) -> Places:
    """Choose the empty places whose weight has the largest absolute gradient; of equal ones the first.

    For a block or a convolution kernel the Frobenius norm of its gradient counts. The gradients are computed a chunk
    of inputs at a time and only the best so far are kept, so that a dense gradient never exists (U. Evci et al.,
    arXiv:1911.11134, section 3 (4)); in a process group they are averaged over the processes first.

    Parameters
    ----------
    request : Request

    Returns
    -------
    ndarray of int64, shape (count,)
        Rising.

    Raises
    ------
    TopogenError
        If nothing went through the layer, or a gradient is NaN.
    """
    found = None
    if (least := _guess(request)) is not None:
        found = _leaders(request, least)
    if found is None or len(found) < request.count:  # nothing was guessed, or too much
        found = _leaders(request, -1.0)
    return found


def _guess(request: Request) -> float | None:
    """Guess what the absolute gradients wanted are larger than, from those of some rows.

    Rather too little, so that enough gradients are larger, but not many more. None where no guess is worth its while.
    """
    n_in, n_out = request.layer._stored_sizes
    empty = n_in * n_out - len(request.staying)
    if n_in * n_out < _WORTH_GUESSING or 8 * request.count > empty:
        return None
    rows = np.unique((np.arange(1, 1 + _ROWS) * _GOLDEN % 1 * n_in).astype(np.int64))
    if (gradients := some_gradients(request.tape, rows)) is None:
        return None
    scores = np.abs(gradients.cpu().numpy())
    begin, end = (np.searchsorted(request.staying, ((rows + k) * n_out).astype(request.staying.dtype)) for k in (0, 1))
    for k, row in enumerate(rows):
        scores[k, request.staying[begin[k] : end[k]] - row * n_out] = -1
    sample = scores[:, :: max(1, scores.size // _SAMPLE)].ravel()
    expected = request.count / empty * np.count_nonzero(sample >= 0)
    rank = math.ceil(1.5 * expected + 4 * math.sqrt(expected) + 8)
    if rank >= len(sample):
        return None
    least = float(np.partition(sample, len(sample) - rank)[len(sample) - rank])
    return least if least > 0 else None


def _leaders(request: Request, least: float) -> Places:
    """Return the places wanted, or fewer if not so many gradients are larger than `least`."""
    leaders = _Leaders(request, least)
    for first, chunk in request.gradients(signed=True):
        leaders.see(first, chunk.cpu().numpy())
    return leaders.places()


class _Leaders:
    """The empty places of the largest absolute gradients among those seen so far, in the order of their places."""

    def __init__(self, request: Request, least: float) -> None:
        self.request, self.count = request, request.count
        self._scores: list[NDArray[Any]] = []
        self._places: list[Places] = []
        self._held = 0
        self._least = least  # gradients of this size and less are out

    def see(self, first: int, gradients: NDArray[Any]) -> None:
        """Look at the gradients of a run of places; runs come in order."""
        begin = 0
        while begin < len(gradients):
            # where all of them may be held, only so many at a time
            end = begin + max(1 << 16, 4 * self.count) if self._least < 0 else len(gradients)
            scores, places = above(first + begin, gradients[begin:end], self.request.staying, self._least)
            if np.isnan(scores.max(initial=0)):
                self.request.sound(gradients)
            self._scores.append(scores)
            self._places.append(places)
            self._held += len(places)
            if self._held > 2 * self.count:
                self._cut()
            begin = end

    def places(self) -> Places:
        """Return the places of the `count` largest, rising; of equal ones the first."""
        self._cut()
        return self._places[0]

    def _cut(self) -> None:
        """Keep the leading ones; nothing that comes later and is only as good as the last of them can be one."""
        scores, places = np.concatenate(self._scores or [np.empty(0)]), np.concatenate(self._places or [_NONE])
        own = best(scores, self.count)
        self._scores, self._places, self._held = [scores[own]], [places[own]], len(own)
        if len(own) == self.count:
            self._least = max(self._least, scores[own].min(initial=np.inf))
