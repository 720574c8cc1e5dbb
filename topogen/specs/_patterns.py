"""Plain functions from numbers to canonical layer patterns, shared by the families."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = [
    "Order",
    "circulant",
    "digit_exchange",
    "full",
    "index_dtype",
    "kron_ones",
    "ranges",
    "uniform_count",
]

Order = Literal["reference", "blocks"]
Indices = npt.NDArray[np.int32 | np.int64]

_BLOCK = 2**15  # entries that are worked on together, so that they stay in the cache and need no large copies


def pattern_of(indptr: npt.ArrayLike, indices: npt.ArrayLike, shape: tuple[int, int]) -> sp.csr_array:
    """Return the canonical pattern of sorted, duplicate-free index arrays."""
    columns = np.asarray(indices)
    index = index_dtype(max(columns.size, *shape))
    pattern = sp.csr_array(
        (
            np.ones(columns.size, np.bool_),
            columns.astype(index, copy=False),
            np.asarray(indptr).astype(index, copy=False),
        ),
        shape=shape,
    )
    pattern.has_canonical_format = True
    return pattern


def regular_rows(columns: Indices, n_out: int) -> sp.csr_array:
    """Return the pattern whose row i has the sorted, distinct columns ``columns[i]``."""
    n_in, fan_out = cast(tuple[int, int], columns.shape)
    return pattern_of(np.arange(n_in + 1) * fan_out, columns.ravel(), (n_in, n_out))


def full(n_in: int, n_out: int) -> sp.csr_array:
    """Return the pattern with every connection."""
    return regular_rows(np.broadcast_to(np.arange(n_out, dtype=index_dtype(n_out)), (n_in, n_out)), n_out)


def ranges(first: Indices, lengths: Indices) -> npt.NDArray[np.int64]:
    """Return first[i], first[i] + 1, ..., `lengths[i]` of them, for every i in a row."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(int(ends[-1]), dtype=np.int64) + np.repeat(first - (ends - lengths), lengths)


def circulant(n: int, offsets: npt.ArrayLike) -> sp.csr_array:
    """Return the n x n pattern with the edges i -> (i + t) mod n for each of the distinct `offsets` t. O(nnz)."""
    shifts = np.sort(np.asarray(offsets, dtype=np.int64) % n)
    count = shifts.size
    # Of row i, as many shifts come out at n or beyond as are at least n - i: these wrap around, and so stand first.
    # The shifts of a row are then a window of `both`, the same one for all rows from one border to the next.
    both = np.concatenate([shifts - n, shifts]).astype(index_dtype(n))
    windows = both[np.arange(count, -1, -1)[:, np.newaxis] + np.arange(count)]
    columns = windows.repeat(np.diff(n - shifts[::-1], prepend=0, append=n), axis=0)
    columns += np.arange(n, dtype=columns.dtype)[:, np.newaxis]
    return regular_rows(columns, n)


def digit_exchange(n: int, radix: int, place: int) -> sp.csr_array:
    """Return the n x n pattern that joins i to every j that differs from it in the digit of value `place` at most.

    The digit is ``i // place % radix``; radix * place divides n.
    """
    nodes = np.arange(n, dtype=index_dtype(n))
    rest = nodes - nodes // place % radix * place
    return regular_rows(np.add.outer(rest, np.arange(radix, dtype=rest.dtype) * place), n)


def kron_ones(pattern: sp.csr_array, rows: int, columns: int, order: Order) -> sp.csr_array:
    """Return the Kronecker product of `pattern` with an all-ones matrix of `rows` x `columns`.

    "reference" is ``kron(ones(rows, columns), pattern)``: copies of the pattern side by side. "blocks" is
    ``kron(pattern, ones(rows, columns))``: every connection becomes a dense block. They differ by relabelling alone.
    """
    n_in, n_out = pattern.shape
    if rows == columns == 1:
        return pattern
    copies = np.arange(columns, dtype=index_dtype(n_out * columns))
    if order == "blocks":
        wide = np.add.outer(pattern.indices.astype(copies.dtype) * columns, copies).ravel()
        widened = pattern_of(pattern.indptr.astype(np.int64) * columns, wide, (n_in, n_out * columns))
        return widened if rows == 1 else widened[np.repeat(np.arange(n_in), rows)]
    degrees = np.diff(pattern.indptr)
    if degrees.min() < degrees.max():
        widened = pattern if columns == 1 else sp.hstack([pattern] * columns, format="csr")
        return widened if rows == 1 else widened[np.tile(np.arange(n_in), rows)]
    # regular rows need no index arithmetic: side by side once, then copied as they are
    tall = np.empty((rows, n_in, columns, int(degrees[0])), copies.dtype)
    np.add(pattern.indices.reshape(n_in, 1, -1), copies[:, np.newaxis] * n_out, out=tall[0])
    tall[1:] = tall[0]
    return regular_rows(tall.reshape(rows * n_in, -1), n_out * columns)


def uniform_count(n_in: int, n_out: int, count: int, rng: np.random.Generator) -> sp.csr_array:
    """Return `count` connections, uniform among all sets of `count` distinct ones.

    Positions are drawn with replacement until enough are distinct, and the surplus is dropped at random. Every set of
    positions of one size is equally likely before and after, so the result is exactly uniform. Above one half the
    connections left out are drawn instead. O(count log count) time, O(count) memory.
    """
    possible = n_in * n_out
    if 2 * count > possible:
        absent = _distinct(possible, possible - count, rng)
        keep = np.ones(possible, np.bool_)
        keep[absent] = False
        positions = np.flatnonzero(keep)
    else:
        positions = _distinct(possible, count, rng)
    starts = (np.arange(n_in) * n_out).astype(positions.dtype)
    indptr = np.append(np.searchsorted(positions, starts), positions.size)
    degrees, columns = np.diff(indptr), np.empty(positions.size, index_dtype(max(count, n_in, n_out)))
    step = max(1, _BLOCK * n_in // (count + 1))
    for first in range(0, n_in, step):
        rows = slice(first, first + step)
        part = slice(indptr[first], indptr[min(first + step, n_in)])
        np.subtract(positions[part], starts[rows].repeat(degrees[rows]), out=columns[part], casting="unsafe")
    return pattern_of(indptr, columns, (n_in, n_out))


def _distinct(possible: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64 | np.uint32]:
    """Return `count` of `possible` positions, sorted, uniform among all such sets; 2 * count <= possible."""
    number = np.uint32 if possible < 2**32 else np.int64  # half the bytes, half the time
    positions, n_distinct = np.empty(0, number), 0
    fresh = np.empty(0, np.bool_)
    while n_distinct < count:
        free, missing = possible - n_distinct, count - n_distinct
        # n draws leave a share (1 - 1 / possible)^n of the free positions free; a few deviations more, to need no other
        enough = -possible * math.log1p(-missing / free)
        drawn = rng.integers(possible, size=int(enough + 4 * math.sqrt(enough)) + 16, dtype=number)
        positions = np.concatenate([positions[fresh], drawn]) if n_distinct else drawn
        positions.sort()  # numpy's unique hashes, which is slower by far
        fresh = np.append(True, positions[1:] != positions[:-1])
        n_distinct = int(np.count_nonzero(fresh))
    surplus = n_distinct - count
    if surplus:
        chosen = rng.choice(n_distinct, surplus, replace=False, shuffle=False)
        repeated = np.flatnonzero(~fresh)  # the chosen-th of the fresh ones has so many repeated ones before it:
        fresh[chosen + np.searchsorted(repeated - np.arange(repeated.size), chosen, side="right")] = False
    return _kept(positions, fresh)[:count]


def _kept(values: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Move the values that are kept to the front of the array, in their order, and return it."""
    end = 0
    for start in range(0, values.size, _BLOCK):
        kept = values[start : start + _BLOCK][keep[start : start + _BLOCK]]
        values[end : end + kept.size] = kept
        end += kept.size
    return values


def index_dtype(largest: int) -> type[np.int32] | type[np.int64]:
    """Return the int type of indices up to `largest`."""
    return np.int32 if largest < 2**31 else np.int64
