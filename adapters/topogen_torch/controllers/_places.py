"""Choosing places: the best by a score, or empty ones by lot; every choice is exact and repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen_torch._passes import first_distinct, left, nth_empty
from topogen_torch._rewire import Places

__all__ = [
    "best",
    "best_within",
    "count_of",
    "drawn_empty",
    "largest_remainders",
    "nearest_to_zero",
    "rounded_down",
    "whole_units",
    "without",
    "worst",
]


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


def best_within(scores: NDArray[Any], sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Return the indices of the largest scores whose sizes fit into a budget together, rising; the first of equal ones.

    What is too large for what is left of the budget is passed over: where enough have size 1, it is used up exactly.
    """
    if len(sizes) == 0 or (sizes == sizes[0]).all():
        return best(scores, budget // int(sizes[0]) if len(sizes) else 0)
    order = np.argsort(-scores, kind="stable")
    chosen: list[NDArray[np.int64]] = []
    while len(order):  # once for each size that there is
        used = np.cumsum(sizes[order])
        fitting = int(np.searchsorted(used, budget, side="right"))
        chosen.append(order[:fitting])
        budget -= int(used[fitting - 1]) if fitting else 0
        order = order[fitting:]
        order = order[sizes[order] <= budget]
    return np.sort(np.concatenate(chosen))


def worst(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return a mask of the `count` smallest scores; of equal scores the last ones are taken."""
    chosen = np.zeros(len(scores), np.bool_)
    if count:
        most = np.partition(scores, count - 1)[count - 1]
        np.less(scores, most, out=chosen)
        _add_last(chosen, scores == most, count - int(np.count_nonzero(chosen)))
    return chosen


def nearest_to_zero(numbers: NDArray[Any], fraction: float) -> NDArray[np.bool_]:
    """Return a mask of the given fraction, rounded down, of the numbers >= 0 and of those below, nearest to 0.

    Of equal numbers the last ones are taken. The numbers are float32 or float64, none of them NaN.
    """
    # As unsigned ints, floats >= 0 rise with their size, and all below 0 follow, rising with theirs.
    keys = numbers.view(f"u{numbers.itemsize}")
    border = keys.dtype.type(1 << (8 * numbers.itemsize - 1))
    if (keys == border).any():  # -0 is to be 0
        keys = (numbers + 0).view(keys.dtype)
    above = int(np.count_nonzero(keys < border))
    chosen, ranked = np.zeros(len(keys), np.bool_), keys.copy()
    for begin, size, least in ((0, above, 0), (above, len(keys) - above, border)):
        if not (count := int(fraction * size)):
            continue
        last = begin + count - 1
        ranked.partition(last)
        most = ranked[last]
        own = keys < most
        if least:
            own &= keys >= least
        _add_last(own, keys == most, count - int(np.count_nonzero(own)))
        chosen |= own
    return chosen


def _add_last(chosen: NDArray[np.bool_], candidates: NDArray[np.bool_], count: int) -> None:
    """Choose the last `count` of the candidates, of which there are so many at least."""
    found = np.flatnonzero(candidates)
    chosen[found[len(found) - count :]] = True


def count_of(density: float, possible: int) -> int:
    """Return ``round(density * possible)`` for the density as the decimal that was written (0.1 means 1/10)."""
    return round(Fraction(str(density)) * possible)


def rounded_down(part: int, whole: int) -> str:
    """Return a density as text, of six digits and never more than it is, so that what is named can be had."""
    return f"{float(Context(prec=6, rounding=ROUND_FLOOR).divide(Decimal(part), Decimal(whole))):g}"


def largest_remainders(shares: Sequence[Fraction]) -> list[int]:
    """Round the shares so that their sum is the rounded sum: down, and the largest remainders, first ones first, up."""
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda k: counts[k] - shares[k])
    for k in order[: round(sum(shares)) - sum(counts)]:
        counts[k] += 1
    return counts


def whole_units(density: float, possible: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return how many units of each layer, of so many weights each, have the density that is wanted of all together.

    Their weights add up to ``round(density * all)`` exactly where one layer's units have a single weight and enough of
    them are left, and where all units have the same number and it divides that; otherwise to less than a unit off.
    """
    share = Fraction(str(density))
    if len(set(sizes)) < 2:
        return largest_remainders([share * count for count in possible])
    counts = [math.floor(share * count) for count in possible]
    pairs = list(zip(possible, sizes, strict=True))
    left = round(share * sum(a * b for a, b in pairs)) - sum(a * b for a, b in zip(counts, sizes, strict=True))
    for k in sorted(range(len(pairs)), key=lambda k: -sizes[k]):
        more = min(left // sizes[k], possible[k] - counts[k])
        counts[k] += more
        left -= more * sizes[k]
    return counts


def without(places: Places, dropped: NDArray[Any]) -> Places:
    """Return the places but those at the given indices, or under a mask."""
    if dropped.dtype == np.bool_:
        return left(places, dropped)
    gone = np.zeros(len(places), np.bool_)
    gone[dropped] = True
    return left(places, gone)


def drawn_empty(rng: np.random.Generator, occupied: Places, possible: int, count: int) -> Places:
    """Return `count` distinct places of [0, possible) that are not occupied, each set equally likely; rising.

    Takes memory and time in proportion to the places drawn and occupied, never to all that are possible.
    """
    empty = possible - len(occupied)
    ranks = _subset(rng, empty, count)  # the r-th empty place has r empty ones and some occupied ones before it
    return nth_empty(ranks.astype(occupied.dtype, copy=False), occupied)


def _subset(rng: np.random.Generator, population: int, count: int) -> Places:
    """Return a uniformly drawn subset of range(population), rising."""
    if 2 * count > population:
        left_out = _subset(rng, population, population - count)
        return np.delete(np.arange(population), left_out)
    return first_distinct(lambda size: rng.integers(population, size=size), population, count)
