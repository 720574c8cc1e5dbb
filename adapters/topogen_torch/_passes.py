"""Passes over the connections of a layer that rewiring needs: compiled where numba is there, by numpy otherwise.

Both give the same numbers, bit for bit. What runs on a card needs no numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

__all__ = [
    "above",
    "can_follow",
    "csc_index",
    "csr_index",
    "exchanged",
    "first_distinct",
    "flat_places",
    "follow",
    "left",
    "mark",
    "nth_empty",
    "place_type",
]

Ints = NDArray[np.int32]
Places = NDArray[np.int32 | np.int64]  # in one call all of one type
Bits = NDArray[np.uint8]


@cache
def _compiled() -> ModuleType | None:
    try:
        from topogen.kernels import exchange
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        return None
    return exchange


def place_type(possible: int) -> type[np.int32] | type[np.int64]:
    """Return the shorter ints that can number so many places: what passes over them wait for is memory."""
    return np.int32 if possible < 2**31 else np.int64


def flat_places(indptr: Ints, indices: Ints, columns: int) -> Places:
    """Return the places of a canonical csr matrix of so many columns, rising."""
    kind = place_type((len(indptr) - 1) * columns)
    if (fast := _compiled()) is not None:
        places = np.empty(len(indices), kind)
        fast.flat(indptr, indices, columns, places)
        return places
    rows = np.repeat(np.arange(len(indptr) - 1, dtype=kind), np.diff(indptr))
    return rows * columns + indices


def csr_index(places: Places, rows: int, columns: int) -> tuple[Ints, Ints]:
    """Return ``indptr`` and ``indices`` of the matrix that has its entries at rising places."""
    indptr = np.zeros(rows + 1, np.int32)
    if (fast := _compiled()) is not None:
        indices = np.empty(len(places), np.int32)
        fast.csr(places, columns, indptr, indices)
        return indptr, indices
    own, indices = np.divmod(places, columns)
    np.cumsum(np.bincount(own, minlength=rows), out=indptr[1:])
    return indptr, indices.astype(np.int32)


def csc_index(indptr: Ints, indices: Ints, columns: int) -> tuple[Ints, Ints, Ints]:
    """Return the csc index of a canonical csr matrix, and which of its entries each is; counting, not sorting."""
    if (fast := _compiled()) is not None:
        parts = np.zeros(columns + 1, np.int32), np.empty(len(indices), np.int32), np.empty(len(indices), np.int32)
        fast.transposed(indptr, indices, *parts)
        return parts
    order = np.arange(len(indices), dtype=np.int32)
    transposed = sp.csr_array((order, indices, indptr), shape=(len(indptr) - 1, columns)).tocsc()
    starts, rows = (part.astype(np.int32, copy=False) for part in (transposed.indptr, transposed.indices))
    return starts, rows, transposed.data


def exchanged(now: Places, gone: NDArray[np.bool_], grown: Places) -> tuple[Places, Ints, int]:
    """Return the rising places that are left when some are gone and others grow, and where in `now` each is, or -1.

    Both kinds of places are ints of one type.
    The number behind them says how many grow where one stays; then the rest means nothing.
    """
    if (fast := _compiled()) is not None:
        count = len(now) - int(np.count_nonzero(gone)) + len(grown)
        places, origins = np.empty(count + 1, now.dtype), np.empty(count + 1, np.int32)
        taken = fast.exchanged(now, gone, grown, places, origins)
        return places[:count], origins[:count], taken
    kept = np.flatnonzero(~gone)
    old = np.ones(len(kept) + len(grown), np.bool_)
    behind = np.searchsorted(now[kept], grown)
    taken = int(np.isin(grown, now[kept]).sum())
    behind += np.arange(len(grown))
    old[behind] = False  # where the new ones go
    places, origins = np.empty(len(old), now.dtype), np.empty(len(old), np.int32)
    origins[old] = kept
    places[old] = now[kept]
    places[behind] = grown
    origins[behind] = -1
    lost = np.flatnonzero(gone)
    back = np.searchsorted(now[lost], grown)  # who was dropped and grows again keeps everything
    back[back == len(lost)] = 0
    again = now[lost][back] == grown if len(lost) else np.zeros(len(grown), np.bool_)
    origins[behind[again]] = lost[back[again]]
    return places, origins, taken


def follow(source: NDArray[np.signedinteger], origins: Ints, target: NDArray[np.signedinteger]) -> None:
    """Write the element of `source` that each origin names, and 0 where the origin is negative."""
    if (fast := _compiled()) is not None and len(source):
        fast.followed(source, origins, target)
        return
    target[:] = 0
    old = np.flatnonzero(origins >= 0)
    target[old] = source[origins[old]]


def can_follow(kinds: Iterable[np.dtype[Any]]) -> bool:
    """Whether `follow` needs nothing that could fail for ints of these types: no memory, and nothing to be compiled."""
    if (fast := _compiled()) is None:
        return False
    for kind in set(kinds):
        fast.followed(np.zeros(1, kind), np.zeros(1, np.int32), np.zeros(1, kind))
    return True


def left(now: Places, gone: NDArray[np.bool_]) -> Places:
    """Return the places that are not gone."""
    if (fast := _compiled()) is None:
        return now[~gone]
    count = len(now) - int(np.count_nonzero(gone))
    places = np.empty(count + 1, now.dtype)
    fast.left(now, gone, places)
    return places[:count]


def mark(bits: Bits, places: Places) -> None:
    """Set the bit of each place."""
    if (fast := _compiled()) is not None:
        fast.mark(bits, places)
    else:
        np.bitwise_or.at(bits, places >> 3, np.left_shift(1, places & 7, dtype=np.uint8, casting="unsafe"))


def nth_empty(ranks: Places, occupied: Places) -> Places:
    """Return the places that have so many empty ones before them: the r-th empty place for each rank r, rising.

    Ranks and places are ints of the type of the occupied places.
    """
    if (fast := _compiled()) is not None:
        places = np.empty(len(ranks), occupied.dtype)
        fast.nth_empty(ranks, occupied, places)
        return places
    before = np.searchsorted(occupied - np.arange(len(occupied), dtype=occupied.dtype), ranks, side="right")
    return ranks + before.astype(occupied.dtype)


def above(first: int, gradients: NDArray[Any], kept: Places, least: float) -> tuple[NDArray[Any], Places]:
    """Return the sizes above `least` of the gradients of a run of places, and the places, rising; not those of `kept`.

    NaN is above everything. The gradients, of which the first one belongs to the place `first`, are overwritten.
    """
    if (fast := _compiled()) is not None and least >= 0 and len(gradients):
        scores, places = np.empty(len(gradients), gradients.dtype), np.empty(len(gradients), np.int64)
        parts = fast.above(first, gradients, kept, least, scores, places, torch.get_num_threads())
        return np.concatenate([scores[part] for part in parts]), np.concatenate([places[part] for part in parts])
    np.abs(gradients, out=gradients)
    begin, end = np.searchsorted(kept, np.array([first, first + len(gradients)], kept.dtype))
    gradients[kept[begin:end] - first] = -np.inf
    own = np.flatnonzero(~(gradients <= least))
    return gradients[own], own + first


def first_distinct(draw: Callable[[int], Places], population: int, count: int) -> Places:
    """Return the first so many different numbers of range(population) that are drawn, rising.

    `draw` continues one stream: how many numbers are asked for at a time makes no difference.
    """
    fast = _compiled()
    if fast is None or population > _SPARSE * count:
        return _sorted_distinct(draw, population, count).astype(place_type(population), copy=False)
    words, wanted = np.zeros(-(-population // 64), "<u8"), count
    while wanted:
        wanted = fast.mark_first(words.view(np.uint8), draw(wanted + wanted // 16 + 8), wanted)
    numbers = np.empty(count, place_type(population))
    fast.marked(words, numbers)
    return numbers


_SPARSE = 48  # numbers for each that is drawn, from which sorting is faster than marking them


def _sorted_distinct(draw: Callable[[int], Places], population: int, count: int) -> Places:
    chosen, others = _distinct(draw(count), population), np.empty(0, np.int64)
    while len(chosen) + len(others) < count:  # never more than are missing: what comes after the last is not looked at
        others = np.concatenate([others, draw(count - len(chosen) - len(others))])
        others = _distinct(others, population)
        at = np.searchsorted(chosen, others)
        at[at == len(chosen)] = 0
        others = others[chosen[at] != others]
    return np.insert(chosen, np.searchsorted(chosen, others), others)


def _distinct(numbers: Places, population: int) -> Places:
    """Return the different ones of numbers in range(population), rising."""
    narrow: NDArray[Any] = numbers.astype(np.uint32) if population < 2**32 else numbers  # sorted twice as fast
    rising = np.sort(narrow)
    is_first = np.ones(len(rising), np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=is_first[1:])
    return rising[is_first].astype(np.int64)
