"""Plain functions from numbers to canonical layer patterns, shared by the families."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen.errors import GenerationError

__all__ = ["Order", "biregular", "circulant", "full", "kron_ones", "uniform_count"]

Order = Literal["reference", "blocks"]
Indices = npt.NDArray[np.int32 | np.int64]

# A swap of two random connections succeeds with a probability that is bounded away from 0 (see `biregular`); each
# round tries one for every connection that is still double.
_MAX_ROUNDS = 1000


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


def circulant(n: int, offsets: npt.ArrayLike) -> sp.csr_array:
    """Return the n x n pattern with the edges i -> (i + t) mod n for each of the distinct `offsets` t."""
    shifts = np.asarray(offsets, dtype=np.int64) % n
    columns = np.add.outer(np.arange(n), shifts) % n
    return regular_rows(np.sort(columns.astype(_index(n)), axis=1), n)


def kron_ones(pattern: sp.csr_array, rows: int, columns: int, order: Order) -> sp.csr_array:
    """Return the Kronecker product of `pattern` with an all-ones matrix of `rows` x `columns`.

    "reference" is ``kron(ones(rows, columns), pattern)``: copies of the pattern side by side. "blocks" is
    ``kron(pattern, ones(rows, columns))``: every connection becomes a dense block. They differ by relabelling alone.
    """
    n_in, n_out = pattern.shape
    if order == "blocks":
        wide = np.add.outer(pattern.indices.astype(_index(n_out * columns)) * columns, np.arange(columns)).ravel()
        widened = pattern_of(pattern.indptr.astype(np.int64) * columns, wide, (n_in, n_out * columns))
        source = np.repeat(np.arange(n_in), rows)
    else:
        widened = pattern if columns == 1 else sp.hstack([pattern] * columns, format="csr")
        source = np.tile(np.arange(n_in), rows)
    return widened if rows == 1 else widened[source]


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
    indptr = np.searchsorted(positions, np.arange(n_in + 1) * n_out)
    return pattern_of(indptr, positions % n_out, (n_in, n_out))


def biregular(n_in: int, n_out: int, fan_in: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a random pattern with `fan_in` connections into each output and n_out * fan_in / n_in from each input.

    Configuration model: the stubs of inputs and outputs are matched at random, then connections that are double swap
    ends with random others until none is left, which keeps every degree. Not exactly uniform over all such graphs.
    Above density 1/2 the complement is drawn. A double l -> r must not take an end from N(l) or N(r), which at most
    2 * fan_in * fan_out - fan_in - fan_out of the n_in * fan_out connections have: at least a share
    1 - 2 * density + 1 / n_in + 1 / n_out > 0 of all swaps makes no new double. O(nnz log nnz) time a round.
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
    left = np.repeat(np.arange(n_in, dtype=np.int64), fan_out)
    right = rng.permutation(np.repeat(np.arange(n_out, dtype=np.int64), fan_in))
    double = np.empty(0, np.intp)
    for _ in range(_MAX_ROUNDS):
        keys = left * n_out + right
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        double = order[1:][ordered[1:] == ordered[:-1]]
        if not double.size:
            return pattern_of(np.arange(n_in + 1) * fan_out, ordered % n_out, (n_in, n_out))
        _swap(left, right, double, ordered, n_out, rng)
    raise GenerationError(
        f"No simple graph was found with {fan_in} inputs for each of {n_out} outputs and {fan_out} outputs for each of "
        f"{n_in} inputs: {double.size} double connections are left after {_MAX_ROUNDS} rounds of swaps."
    )


def _swap(
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    double: npt.NDArray[np.intp],
    ordered_keys: npt.NDArray[np.int64],
    n_out: int,
    rng: np.random.Generator,
) -> None:
    """Swap the right ends of double connections with random others, in place, where that makes no new double."""
    partner = rng.integers(left.size, size=double.size)
    busy = np.zeros(left.size, np.bool_)
    busy[double] = True
    first = np.zeros(double.size, np.bool_)
    first[np.unique(partner, return_index=True)[1]] = True
    chosen = first & ~busy[partner]  # every connection takes part in one swap at most
    double, partner = double[chosen], partner[chosen]
    keys = np.concatenate([left[double] * n_out + right[partner], left[partner] * n_out + right[double]])
    found = np.searchsorted(ordered_keys, keys)
    fresh = ordered_keys[np.minimum(found, ordered_keys.size - 1)] != keys
    _, where, times = np.unique(keys, return_inverse=True, return_counts=True)
    fresh &= times[where] == 1
    allowed = fresh[: double.size] & fresh[double.size :]
    double, partner = double[allowed], partner[allowed]
    right[double], right[partner] = right[partner], right[double]


def _distinct(possible: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return `count` of `possible` positions, sorted, uniform among all such sets; 2 * count <= possible."""
    positions = np.empty(0, np.int64)
    while positions.size < count:
        missing = count - positions.size
        drawn = rng.integers(possible, size=missing + missing // 2 + 16)
        positions = np.sort(np.concatenate([positions, drawn]))  # numpy's unique hashes, which is slower by far
        positions = positions[np.diff(positions, prepend=-1) > 0]
    surplus = positions.size - count
    if surplus:
        positions = np.delete(positions, rng.choice(positions.size, surplus, replace=False, shuffle=False))
    return positions


def _index(largest: int) -> type[np.int32] | type[np.int64]:
    return sp.get_index_dtype(maxval=largest)
