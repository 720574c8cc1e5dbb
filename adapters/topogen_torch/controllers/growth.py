"""Which new connections a layer gets: rules of growth.

A rule is any callable ``rule(request) -> places``: the `Request` says how many, and what they are chosen from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from topogen.errors import TopogenError
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Places
from topogen_torch.controllers._absent import absent_gradients
from topogen_torch.controllers._places import best, drawn_empty
from topogen_torch.controllers._tape import Tape

__all__ = ["Request", "Rule", "at_random", "by_gradient"]

_NONE = np.empty(0, np.int64)


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
        What went through the layer in this step.
    sound : callable
        Returns the array of scores it is given, or refuses the whole rewiring where one of them is NaN.
    """

    layer: Patterned
    kept: Places
    count: int
    draw: Callable[[], np.random.Generator]
    tape: Tape
    sound: Callable[[NDArray[Any]], NDArray[Any]]

    def gradients(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the absolute gradients of all places, a run at a time: the first place of the run, and a tensor.

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
        return absent_gradients(self.tape)


Rule = Callable[[Request], Places]


def at_random(request: Request) -> Places:
    """Choose uniformly among all empty places, without replacement.

    Parameters
    ----------
    request : Request

    Returns
    -------
    ndarray of int64, shape (count,)
        Rising.
    """
    n_in, n_out = request.layer._stored_sizes
    return drawn_empty(request.draw(), request.kept, n_in * n_out, request.count)


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
    leaders = _Leaders(request.count)
    for first, chunk in request.gradients():
        scores = chunk.cpu().numpy()
        if np.isnan(scores.max(initial=0)):
            request.sound(scores)
        begin, end = np.searchsorted(request.kept, [first, first + scores.size])
        scores[request.kept[begin:end] - first] = -1  # a place that stays cannot be chosen
        leaders.see(first, scores)
    return leaders.places()


class _Leaders:
    """The places of the largest scores among those seen so far, in the order of their places."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._slice = max(1 << 16, 4 * count)  # scores looked at together: they should stay in the cache
        self._scores: list[NDArray[Any]] = []
        self._places: list[Places] = []
        self._held = 0
        self._least = -0.5  # scores of this and less are out; those of places that stay are -1

    def see(self, first: int, scores: NDArray[Any]) -> None:
        """Look at the scores of a run of places; runs come in order."""
        for begin in range(0, len(scores), self._slice):
            part = scores[begin : begin + self._slice]
            own = np.flatnonzero(part > self._least)
            self._scores.append(part[own])
            self._places.append(own + (first + begin))
            self._held += len(own)
            if self._held > 2 * self.count:
                self._cut()

    def places(self) -> Places:
        """Return the places of the `count` largest scores, rising; of equal scores the first."""
        self._cut()
        return self._places[0]

    def _cut(self) -> None:
        """Keep the leading ones; nothing that comes later and is only as good as the last of them can be one."""
        scores, places = np.concatenate(self._scores or [np.empty(0)]), np.concatenate(self._places or [_NONE])
        own = best(scores, self.count)
        self._scores, self._places, self._held = [scores[own]], [places[own]], len(own)
        if len(own) == self.count:
            self._least = max(self._least, scores[own].min(initial=np.inf))
