"""The configuration model: ends of connections, drawn as stubs, that are matched until no connection is double."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen.errors import GenerationError
from topogen.specs._patterns import Indices, full, index_dtype, pattern_of, ranges

__all__ = ["biregular", "shuffled_stubs", "without_doubles"]

# A swap of two random connections succeeds with a probability that is bounded away from 0 (see `biregular`); each
# round tries one for every connection that is still double.
_MAX_ROUNDS = 1000

_BLOCK = 2**15  # keys that are worked on together, so that they stay in the cache


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


def shuffled_stubs(n: int, times: int, rng: np.random.Generator) -> Indices:
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
    _order_ties(keys, bits, rng)
    stubs = np.empty(keys.size, index_dtype(n))
    np.bitwise_and(keys, below - np.uint64(1), out=stubs, casting="unsafe")
    return stubs


def _order_ties(keys: npt.NDArray[np.uint64], bits: np.uint64, rng: np.random.Generator) -> None:
    """Put keys that agree in the bits above `bits`, and are sorted by those below so far, in random order, in place."""
    below = np.uint64(1) << bits
    found = [np.empty(0, np.intp)]
    for start in range(0, keys.size - 1, _BLOCK):
        block = keys[start : start + _BLOCK + 1]
        equal = block[1:] ^ block[:-1] < below
        if equal.any():
            found.append(start + np.flatnonzero(equal))
    first = np.concatenate(found)
    if first.size:
        tied = np.union1d(first, first + 1)
        keys[tied] = keys[tied][np.lexsort((rng.random(tied.size), keys[tied] >> bits))]


def without_doubles(
    indptr: npt.NDArray[np.int64], right: Indices, shape: tuple[int, int], rng: np.random.Generator
) -> sp.csr_array:
    """Return the connections i -> right[e] once those that are double have swapped ends until none is left.

    Those of input i are the e from ``indptr[i]`` to ``indptr[i + 1]``. Every degree stays as it is; `right` is used
    up. O(nnz log nnz) time, and O(nnz) for each further round.
    """
    rows = _Rows(indptr, right, shape[1])
    rows.sort()
    n_double = 0
    for _ in range(_MAX_ROUNDS):
        double = rows.doubles()
        n_double = double.size
        if not n_double:
            return pattern_of(indptr, right, shape)
        _swap(rows, double, rng)
    raise GenerationError(
        f"No simple graph was found with the given degrees of {shape[0]} inputs and {shape[1]} outputs: {n_double} "
        f"double connections are left after {_MAX_ROUNDS} rounds of swaps."
    )


class _Rows:
    """The connections of each input: of input i, ``columns[indptr[i]:indptr[i + 1]]``, which `sort` sorts in place."""

    def __init__(self, indptr: npt.NDArray[np.int64], columns: Indices, n_out: int) -> None:
        self.indptr, self.columns, self.n_out = indptr, columns, n_out
        self.degrees = np.diff(indptr)
        # all rows as those of a matrix, where they are of one length
        regular = columns.size and self.degrees.min() == self.degrees.max()
        self.matrix = columns.reshape(self.degrees.size, -1) if regular else None

    def of(self, connections: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return the input of each of these connections."""
        if self.matrix is not None:
            return connections // self.matrix.shape[1]
        return np.searchsorted(self.indptr, connections, side="right") - 1

    def sort(self, inputs: npt.NDArray[np.intp] | None = None) -> None:
        """Sort all rows, or those of `inputs`."""
        if self.matrix is not None and inputs is not None:
            self.matrix[inputs] = np.sort(self.matrix[inputs], axis=1)
        elif self.matrix is not None:
            self.matrix.sort(axis=1)
        elif inputs is None or inputs.size:
            chosen = np.arange(self.degrees.size) if inputs is None else inputs
            where = ranges(self.indptr[chosen], self.degrees[chosen])
            base = np.repeat(chosen * self.n_out, self.degrees[chosen])
            self.columns[where] = np.sort(base + self.columns[where]) - base

    def doubles(self) -> npt.NDArray[np.intp]:
        """Return the connections that are equal to the one before them."""
        same = self.columns[1:] == self.columns[:-1]
        starts = self.indptr[1:-1]
        same[starts[(starts > 0) & (starts < self.columns.size)] - 1] = False
        return 1 + np.flatnonzero(same)

    def have(self, inputs: npt.NDArray[np.intp], columns: Indices) -> npt.NDArray[np.bool_]:
        """Return whether input ``inputs[i]`` is joined to ``columns[i]``, by a binary search in sorted rows."""
        low, length = self.indptr[inputs], self.degrees[inputs]
        end, last = low + length, self.columns.size - 1
        for step in 2 ** np.arange(int(length.max(initial=0)).bit_length())[::-1]:
            ahead = low + step  # all before `low` is smaller than what is looked for
            low = np.where((ahead <= end) & (self.columns[np.minimum(ahead - 1, last)] < columns), ahead, low)
        return (low < end) & (self.columns[np.minimum(low, last)] == columns)


def _swap(rows: _Rows, double: npt.NDArray[np.intp], rng: np.random.Generator) -> None:
    """Swap the right ends of double connections with random others, in place, where that makes no new double."""
    partner = rng.integers(rows.columns.size, size=double.size)
    busy = double[np.minimum(np.searchsorted(double, partner), double.size - 1)] == partner
    first = np.zeros(double.size, np.bool_)
    first[np.unique(partner, return_index=True)[1]] = True
    chosen = first & ~busy  # every connection takes part in one swap at most
    moved = np.concatenate([double[chosen], partner[chosen]])
    inputs, ends = rows.of(moved), np.roll(rows.columns[moved], moved.size // 2)
    _, where, times = np.unique(inputs * rows.n_out + ends, return_inverse=True, return_counts=True)
    fresh = (times == 1)[where] & ~rows.have(inputs, ends)
    allowed = np.tile(np.logical_and(*fresh.reshape(2, -1)), 2)
    rows.columns[moved[allowed]] = ends[allowed]
    # every connection is still one of its input's: only the inputs that took part are out of order
    inputs = np.unique(inputs[allowed])
    rows.sort(None if 4 * inputs.size > rows.degrees.size else inputs)
