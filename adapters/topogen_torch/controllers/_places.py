"""Choosing places: the best by a score, or empty ones by lot; every choice is exact and repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen_torch._rewire import Places

__all__ = ["best", "count_of", "drawn_empty", "largest_remainders", "without"]


def best(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest scores, rising; of equal scores the first ones are taken.

    Linear in the scores: they are not sorted.
    """
    if count >= len(scores):
        return np.arange(len(scores))
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen = scores > least
    chosen[np.flatnonzero(scores == least)[: count - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)


def count_of(density: float, possible: int) -> int:
    """Return ``round(density * possible)`` for the density as the decimal that was written (0.1 means 1/10)."""
    return round(Fraction(str(density)) * possible)


def largest_remainders(shares: Sequence[Fraction]) -> list[int]:
    """Round the shares so that their sum is the rounded sum: down, and the largest remainders, first ones first, up."""
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda k: counts[k] - shares[k])
    for k in order[: round(sum(shares)) - sum(counts)]:
        counts[k] += 1
    return counts


def without(places: Places, dropped: NDArray[np.int64]) -> Places:
    """Return the places but those at the given indices."""
    stays = np.ones(len(places), np.bool_)
    stays[dropped] = False
    return places[stays]


def drawn_empty(rng: np.random.Generator, occupied: Places, possible: int, count: int) -> Places:
    """Return `count` distinct places of [0, possible) that are not occupied, each set equally likely; rising.

    Takes memory and time in proportion to the places drawn and occupied, never to all that are possible.
    """
    empty = possible - len(occupied)
    ranks = _subset(rng, empty, count)  # the r-th empty place has r empty ones and some occupied ones before it
    return ranks + np.searchsorted(occupied - np.arange(len(occupied)), ranks, side="right")


def _subset(rng: np.random.Generator, population: int, count: int) -> NDArray[np.int64]:
    """Return a uniformly drawn subset of range(population), rising."""
    if 2 * count > population:
        left_out = _subset(rng, population, population - count)
        return np.delete(np.arange(population), left_out)
    # the first `count` different numbers of a stream of independent ones: whoever is missing is drawn again
    chosen = np.empty(0, np.int64)
    while len(chosen) < count:
        drawn = rng.integers(population, size=count + count // 2 + 8)
        while len(drawn) and len(chosen) < count:
            missing = count - len(chosen)
            chosen, drawn = _distinct(np.concatenate([chosen, drawn[:missing]])), drawn[missing:]
    return chosen


def _distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the different ones among the numbers, rising."""
    numbers.sort()
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers
