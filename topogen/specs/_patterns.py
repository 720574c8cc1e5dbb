"""Plain functions from numbers to canonical layer patterns, shared by the families."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen.errors import GenerationError

__all__ = [
    "Order",
    "biregular",
    "circulant",
    "digit_exchange",
    "full",
    "kron_ones",
    "ranges",
    "shuffled_stubs",
    "uniform_count",
    "without_doubles",
]

Order = Literal["reference", "blocks"]
Indices = npt.NDArray[np.int32 | np.int64]

# A swap of two random connections succeeds with a probability that is bounded away from 0 (see `biregular`); each
# round tries one for every connection that is still double.
_MAX_ROUNDS = 1000

# numpy's loop over a row costs more than the additions in a short one; a call costs as much as that many rows
_SHORT_ROW, _CALL = 16, 64


def pattern_of(indptr: npt.ArrayLike, indices: npt.ArrayLike, shape: tuple[int, int]) -> sp.csr_array:
    """Return the canonical pattern of sorted, duplicate-free index arrays."""
    columns = np.asarray(indices)
    index = sp.get_index_dtype(maxval=max(columns.size, *shape))
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
    return regular_rows(np.broadcast_to(np.arange(n_out, dtype=_index(n_out)), (n_in, n_out)), n_out)


def ranges(first: Indices, lengths: Indices) -> npt.NDArray[np.int64]:
    """Return first[i], first[i] + 1, ..., `lengths[i]` of them, for every i in a row."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(int(ends[-1]), dtype=np.int64) + np.repeat(first - (ends - lengths), lengths)


def circulant(n: int, offsets: npt.ArrayLike) -> sp.csr_array:
    """Return the n x n pattern with the edges i -> (i + t) mod n for each of the distinct `offsets` t. O(nnz)."""
    shifts = np.sort(np.asarray(offsets, dtype=np.int64) % n)
    columns = np.empty((n, shifts.size), _index(n))
    # Of row i, as many shifts come out at n or beyond as are at least n - i: these wrap around, and so stand first.
    # The shifts of a row are then a window of this array, the same one from one border to the next.
    windows = np.concatenate([shifts - n, shifts]).astype(columns.dtype)
    borders = [0, *(n - shifts[::-1]).tolist(), n]
    for wrapped, (start, stop) in enumerate(pairwise(borders)):
        window = windows[shifts.size - wrapped : 2 * shifts.size - wrapped]
        _write_sums(np.arange(start, stop, dtype=columns.dtype), window, columns[start:stop])
    return regular_rows(columns, n)


def digit_exchange(n: int, radix: int, place: int) -> sp.csr_array:
    """Return the n x n pattern that joins i to every j that differs from it in the digit of value `place` at most.

    The digit is ``i // place % radix``; radix * place divides n.
    """
    nodes = np.arange(n, dtype=_index(n))
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
    copies = np.arange(columns, dtype=_index(n_out * columns))
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
    indptr = np.searchsorted(positions, (np.arange(n_in) * n_out).astype(positions.dtype))
    return pattern_of(np.append(indptr, positions.size), positions % n_out, (n_in, n_out))


def biregular(n_in: int, n_out: int, fan_in: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a random pattern with `fan_in` connections into each output and n_out * fan_in / n_in from each input.

    Configuration model: the stubs of inputs and outputs are matched at random, then connections that are double swap
    ends with random others until none is left, which keeps every degree. Not exactly uniform over all such graphs.
    Above density 1/2 the complement is drawn. A double l -> r must not take an end from N(l) or N(r), which at most
    2 * fan_in * fan_out - fan_in - fan_out of the n_in * fan_out connections have: at least a share
    1 - 2 * density + 1 / n_in + 1 / n_out > 0 of all swaps makes no new double. O(nnz log nnz) time.
    """
    if 2 * fan_in > n_in:
        if fan_in == n_in:
            return full(n_in, n_out)
        absent = biregular(n_in, n_out, n_in - fan_in, rng)
        keep = np.ones((n_in, n_out), np.bool_)
        keep[np.repeat(np.arange(n_in), np.diff(absent.indptr)), absent.indices] = False
        rows, columns = np.nonzero(keep)
        return pattern_of(np.searchsorted(rows, np.arange(n_in + 1)), columns, (n_in, n_out))
    fan_out = n_out * fan_in // n_in
    right = shuffled_stubs(n_out, fan_in, rng)
    return without_doubles(np.arange(n_in + 1) * fan_out, right, (n_in, n_out), rng)


def shuffled_stubs(n: int, times: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return each of 0, ..., n - 1 as many `times`, in random order, every order equally likely.

    Sorted by random bits that are put in front of each number: swapping element by element, as numpy does, misses the
    cache with every step.
    """
    bits = np.uint64(max((n - 1).bit_length(), 1))
    below = np.uint64(1) << bits
    keys = rng.integers(2**64 - 1, size=n * times, dtype=np.uint64, endpoint=True)
    keys <<= bits
    by_number = keys.reshape(n, times)
    by_number |= np.arange(n, dtype=np.uint64)[:, np.newaxis]
    keys.sort()
    equal = keys[1:] ^ keys[:-1] < below
    if equal.any():  # the same random bits: so far in the order of their numbers
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        keys[tied] = keys[tied][np.lexsort((rng.random(tied.size), keys[tied] >> bits))]
    keys &= below - np.uint64(1)
    return keys.view(np.int64)


def without_doubles(
    indptr: npt.NDArray[np.int64], right: npt.NDArray[np.int64], shape: tuple[int, int], rng: np.random.Generator
) -> sp.csr_array:
    """Return the connections i -> right[e] once those that are double have swapped ends until none is left.

    Those of input i are the e from ``indptr[i]`` to ``indptr[i + 1]``. Every degree stays as it is; `right` is used
    up. O(nnz log nnz) time, and O(nnz) for each further round.
    """
    n_in, n_out = shape
    keys = right
    keys += np.repeat(np.arange(n_in) * n_out, np.diff(indptr))
    keys.sort()
    n_double = 0
    for _ in range(_MAX_ROUNDS):
        double = 1 + np.flatnonzero(keys[1:] == keys[:-1])
        n_double = double.size
        if not n_double:
            return pattern_of(indptr, keys % n_out, shape)
        _swap(keys, double, indptr, n_out, rng)
    raise GenerationError(
        f"No simple graph was found with the given degrees of {n_in} inputs and {n_out} outputs: {n_double} double "
        f"connections are left after {_MAX_ROUNDS} rounds of swaps."
    )


def _swap(
    keys: npt.NDArray[np.int64],
    double: npt.NDArray[np.intp],
    indptr: npt.NDArray[np.int64],
    n_out: int,
    rng: np.random.Generator,
) -> None:
    """Swap the right ends of double connections with random others, in place, where that makes no new double.

    The sorted `keys` are left * n_out + right of each connection, those of input i from ``indptr[i]`` on.
    """
    partner = rng.integers(keys.size, size=double.size)
    busy = np.zeros(keys.size, np.bool_)
    busy[double] = True
    first = np.zeros(double.size, np.bool_)
    first[np.unique(partner, return_index=True)[1]] = True
    chosen = first & ~busy[partner]  # every connection takes part in one swap at most
    double, partner = double[chosen], partner[chosen]
    exchange = keys[partner] % n_out - keys[double] % n_out
    swapped = np.concatenate([keys[double] + exchange, keys[partner] - exchange])
    distinct, where, times = np.unique(swapped, return_inverse=True, return_counts=True)
    found = np.minimum(np.searchsorted(keys, distinct), keys.size - 1)
    fresh = ((keys[found] != distinct) & (times == 1))[where]
    allowed = np.tile(fresh[: double.size] & fresh[double.size :], 2)
    keys[np.concatenate([double, partner])[allowed]] = swapped[allowed]
    # every connection is still one of its input's: only the inputs that took part are out of order
    inputs = np.unique(swapped[allowed] // n_out)
    if 4 * inputs.size > indptr.size:
        keys.sort()
    elif inputs.size:
        where = ranges(indptr[inputs], np.diff(indptr)[inputs])
        keys[where] = np.sort(keys[where])


def _distinct(possible: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64 | np.uint32]:
    """Return `count` of `possible` positions, sorted, uniform among all such sets; 2 * count <= possible."""
    number = np.uint32 if possible < 2**32 else np.int64  # half the bytes, half the time
    positions = np.empty(0, number)
    while positions.size < count:
        free, missing = possible - positions.size, count - positions.size
        # n draws leave a share (1 - 1 / possible)^n of the free positions free; a few deviations more, to need no other
        enough = -possible * math.log1p(-missing / free)
        drawn = rng.integers(possible, size=int(enough + 4 * math.sqrt(enough)) + 16, dtype=number)
        positions = np.sort(np.concatenate([positions, drawn]))  # numpy's unique hashes, which is slower by far
        positions = positions[np.append(True, positions[1:] != positions[:-1])]
    surplus = positions.size - count
    if surplus:
        positions = np.delete(positions, rng.choice(positions.size, surplus, replace=False, shuffle=False))
    return positions


def _write_sums(left: Indices, right: Indices, out: Indices) -> None:
    """Write left[i] + right[j] to out[i, j]."""
    if right.size < _SHORT_ROW and right.size * _CALL < left.size:
        for j, term in enumerate(right):
            np.add(left, term, out=out[:, j])
    else:
        np.add.outer(left, right, out=out)


def _index(largest: int) -> type[np.int32] | type[np.int64]:
    return sp.get_index_dtype(maxval=largest)
