"""What changing the connections of a layer takes: passes over them that are linear and need no sorting.

A *place* is a position in a dense matrix, counted row-major. No argument is checked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._masks import WORD, large, lowest_bit
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._team import run

__all__ = [
    "above",
    "csr",
    "exchanged",
    "flat",
    "followed",
    "left",
    "mark",
    "mark_first",
    "marked",
    "nth_empty",
    "transposed",
]

Floats = NDArray[np.floating]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Places = NDArray[np.int32 | np.int64]  # of one call all of one type
Bits = NDArray[np.uint8]
Mask = NDArray[np.bool_]

Words = NDArray[np.uint64]

_ONE = np.uint64(1)


@kernel
def flat(indptr: Ints, indices: Ints, columns: int, places: Places) -> None:
    """Write the places of a csr matrix of so many columns."""
    for row in range(len(indptr) - 1):
        start = row * columns
        for k in range(indptr[row], indptr[row + 1]):
            places[k] = start + indices[k]


@kernel
def exchanged(now: Places, gone: Mask, grown: Places, places: Places, origins: Ints) -> int:
    """Merge the places that are not gone with those that grow, and write where in `now` each was, or -1.

    All places rise. The targets have one element more than there are results. Return how many grow where one stays;
    then the results mean nothing.
    """
    # Each step waits for the one before it, so two halves take turns; neither has a branch that nobody can predict.
    half = len(now) // 2
    middle = int(np.searchsorted(grown, now[half])) if len(now) else 0  # pyright: ignore[reportUnknownArgumentType]
    first = half - int(np.count_nonzero(gone[:half])) + middle  # result of the second half
    k, j, written = 0, 0, 0
    k2, j2, written2 = half, middle, first
    while k < half and j < middle and k2 < len(now) and j2 < len(grown):
        k, j, written = _merge_one(now, gone, grown, k, j, written, places, origins)
        k2, j2, written2 = _merge_one(now, gone, grown, k2, j2, written2, places, origins)
    written = _merge_rest(now, gone, grown, k, half, j, middle, written, places, origins)
    written2 = _merge_rest(now, gone, grown, k2, len(now), j2, len(grown), written2, places, origins)
    return first - written + len(places) - 1 - written2  # two that are equal have given one result


@kernel
def _merge_one(
    now: Places, gone: Mask, grown: Places, k: int, j: int, written: int, places: Places, origins: Ints
) -> tuple[int, int, int]:
    """Look at the lesser of two places, or at both if they are equal; return how far both sides and the targets are."""
    old, new = now[k], grown[j]
    is_old = old <= new
    is_lost = gone[k] & (old < new)  # if they are equal, it grows again, and keeps its origin
    at = len(places) - 1 if is_lost else written
    places[at] = min(old, new)
    origins[at] = (k + 1) * is_old - 1
    return k + is_old, j + (new <= old), written + 1 - is_lost


@kernel
def _merge_rest(
    now: Places, gone: Mask, grown: Places, k: int, k_end: int, j: int, j_end: int, written: int, places: Places,
    origins: Ints,
) -> int:  # fmt: skip
    """Merge until both sides end; return how far the targets are."""
    while k < k_end and j < j_end:
        k, j, written = _merge_one(now, gone, grown, k, j, written, places, origins)
    while k < k_end:
        at = len(places) - 1 if gone[k] else written
        places[at], origins[at] = now[k], k
        written += 1 - gone[k]
        k += 1
    while j < j_end:
        places[written], origins[written] = grown[j], -1
        written += 1
        j += 1
    return written


@kernel
def left(now: Places, gone: Mask, places: Places) -> None:
    """Write the places that are not gone. The target has one element more than there are results."""
    written = 0
    for k in range(len(now)):
        places[written] = now[k]
        written += 1 - gone[k]


@kernel
def csr(places: Places, columns: int, indptr: Ints, indices: Ints) -> None:
    """Write the csr index of a matrix that has its entries at rising places."""
    row, start = 0, 0
    indptr[0] = 0
    for k in range(len(places)):
        place = places[k]
        while place - start >= columns:
            row += 1
            start += columns
            indptr[row] = k
        indices[k] = place - start
    for after in range(row + 1, len(indptr)):
        indptr[after] = len(places)


_STRIP = 512  # columns whose ends stay in the nearest cache
_WORTH_STRIPS = 16  # entries of a row in a strip


@kernel
def transposed(indptr: Ints, indices: Ints, indptr_t: Ints, indices_t: Ints, permutation: Ints) -> None:
    """Write the csc index of a csr matrix, and which of its entries each is; `indptr_t` comes filled with 0."""
    rows, columns = len(indptr) - 1, len(indptr_t) - 1
    for k in range(len(indices)):
        indptr_t[indices[k] + 1] += 1
    for column in range(columns):
        indptr_t[column + 1] += indptr_t[column]
    heads = indptr_t[:columns].copy()
    strips = -(-columns // _STRIP)
    if len(indices) < _WORTH_STRIPS * rows * strips:
        strips = 1
    read = indptr[:rows].copy()  # how far in each row
    for strip in range(strips):
        end = columns if strip == strips - 1 else (strip + 1) * _STRIP
        for row in range(rows):
            k = read[row]
            while k < indptr[row + 1] and indices[k] < end:
                column = indices[k]
                head = heads[column]
                heads[column] = head + 1
                indices_t[head] = row
                permutation[head] = k
                k += 1
            read[row] = k


@kernel
def mark(bits: Bits, places: Places) -> None:
    """Set the bit of each place."""
    for place in places:
        bits[place >> 3] |= np.uint8(1 << (place & 7))


@kernel
def mark_first(bits: Bits, numbers: Longs, wanted: int) -> int:
    """Set the bits of the first numbers until so many more are set; return how many are still wanted."""
    k = 0
    while wanted and k < len(numbers):
        end = min(k + wanted, len(numbers))  # so many are needed at least
        for number in numbers[k:end]:
            bit = 1 << (number & 7)
            old = np.int64(bits[number >> 3])
            bits[number >> 3] = np.uint8(old | bit)
            wanted -= (old & bit) == 0
        k = end
    return wanted


@kernel
def marked(words: Words, numbers: Places) -> None:
    """Write the numbers whose bits are set, rising."""
    written = 0
    for k in range(len(words)):
        word = words[k]
        while word != 0:
            numbers[written] = WORD * k + lowest_bit(word)
            written += 1
            word &= word - _ONE


@kernel
def nth_empty(ranks: Places, occupied: Places, places: Places) -> None:
    """Write the place of the r-th place that is not occupied, for rising ranks r and rising occupied places."""
    half = len(ranks) // 2  # two halves take turns, as in `exchanged`
    k, before = 0, 0
    k2, before2 = half, _occupied_before(ranks[half], occupied) if len(ranks) else 0
    while k < half and before < len(occupied) and k2 < len(ranks) and before2 < len(occupied):
        k, before = _one_empty(ranks, occupied, k, before, places)
        k2, before2 = _one_empty(ranks, occupied, k2, before2, places)
    _rest_empty(ranks, occupied, k, half, before, places)
    _rest_empty(ranks, occupied, k2, len(ranks), before2, places)


@kernel
def _one_empty(ranks: Places, occupied: Places, k: int, before: int, places: Places) -> tuple[int, int]:
    """Go on by an occupied place or by a rank, without a branch that nobody can predict; return how far both are."""
    is_behind = occupied[before] - before <= ranks[k]
    places[k] = ranks[k] + before
    return k + 1 - is_behind, before + is_behind


@kernel
def _rest_empty(ranks: Places, occupied: Places, k: int, end: int, before: int, places: Places) -> None:
    while k < end and before < len(occupied):
        k, before = _one_empty(ranks, occupied, k, before, places)
    while k < end:
        places[k] = ranks[k] + before
        k += 1


@kernel
def _occupied_before(rank: int, occupied: Places) -> int:
    """Return how many occupied places lie before the one that has so many empty ones before it."""
    low, high = 0, len(occupied)
    while low < high:
        middle = (low + high) // 2
        if occupied[middle] - middle <= rank:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def followed(source: NDArray[np.signedinteger], origins: Ints, target: NDArray[np.signedinteger]) -> None:
    """Write the element of `source` that each origin names, and 0 where the origin is negative.

    `source` is not empty.
    """
    for k in range(len(origins)):  # a product, since nobody can predict which origins are negative
        target[k] = source[max(origins[k], 0)] * (origins[k] >= 0)


_PIECE = 1 << 15  # gradients that a thread looks at before it claims more


def above(
    first: int, gradients: Floats, kept: Places, least: float, scores: Floats, places: Longs, threads: int
) -> list[slice]:
    """Write the absolute values, above `least`, of the gradients of empty places, and these places; return where.

    Parameters
    ----------
    first : int
        The place of the first gradient.
    gradients : ndarray, shape (n,), float32 or float64
        Of a run of places; those of `kept` are overwritten.
    kept : ndarray of int32 or int64
        Rising places; some may lie outside of the run.
    least : float
        At least 0. NaN is above it.
    scores, places : ndarray, shape (n,), the dtype of the gradients and int64
        Targets. They have gaps, but rise.
    threads : int
        How many threads may take part.

    Returns
    -------
    list of slice
        The parts of the targets that were written.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen.kernels import exchange
    >>> scores, places = np.empty(4), np.empty(4, np.int64)
    >>> parts = exchange.above(10, np.array([0.5, -3.0, 2.0, 0.0]), np.array([12]), 0.4, scores, places, 1)
    >>> [places[part].tolist() for part in parts], [scores[part].tolist() for part in parts]
    ([[10, 11]], [[0.5, 3.0]])
    """
    pieces = -(-len(gradients) // _PIECE)
    counts = np.zeros(pieces, np.int64)
    bound = gradients.dtype.type(least)
    args = np.zeros(2 * SLOT, np.int64), first, gradients, kept, bound, scores, places, counts
    run(_above, args, min(threads, pieces))
    return [slice(p * _PIECE, p * _PIECE + int(count)) for p, count in enumerate(counts)]


@kernel
def _above(
    team: Team, counters: Longs, first: int, gradients: Floats, kept: Places, least: float, scores: Floats,
    places: Longs, counts: Longs,
) -> None:  # fmt: skip
    if spread(team):
        return
    piece = claim(counters, 0)
    while piece < len(counts):
        begin, end = piece * _PIECE, min(len(gradients), (piece + 1) * _PIECE)
        k = int(np.searchsorted(kept, first + begin))  # pyright: ignore[reportUnknownArgumentType]
        while k < len(kept) and kept[k] < first + end:
            gradients[kept[k] - first] = 0
            k += 1
        written = begin
        whole = end - (end - begin) % WORD
        for start in range(begin, whole, WORD):
            word = large(gradients, start, least)
            while word != 0:
                j = start + lowest_bit(word)
                scores[written] = abs(gradients[j])
                places[written] = first + j
                written += 1
                word &= word - _ONE
        for j in range(whole, end):
            if not (abs(gradients[j]) <= least):
                scores[written] = abs(gradients[j])
                places[written] = first + j
                written += 1
        counts[piece] = written - begin
        claim(counters, SLOT)
        piece = claim(counters, 0)
    wait_until(counters, SLOT, len(counts))
