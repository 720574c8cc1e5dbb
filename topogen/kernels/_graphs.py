"""Sums and unions over the predecessors of every neuron: how paths are counted and how reachability spreads.

A layer comes as the arrays of its csc form: the predecessors of neuron j are ``indices[indptr[j]:indptr[j + 1]]``, and
each neuron has one row of `values`. Every kernel runs on the calling thread alone and releases the interpreter lock, so
that any number of Python threads may call it at once. The caller allocates `out`: numpy asks the system for huge pages,
numba does not, and on fresh memory that is worth a factor of two.

Rows are taken in slices, so narrow that one slice of all of them stays in the cache while it is read once for every
connection.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from topogen.kernels._compile import kernel

__all__ = ["carry", "predecessor_sums", "predecessor_unions", "successor_unions"]

_CACHED = 2**20  # words of 8 bytes in one slice of all rows: a part of a last-level cache
_NARROWEST = 64  # words of a row, eight cache lines: narrower slices cost more than they save


@kernel
def predecessor_sums(
    indptr: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    weights: npt.NDArray[np.int64],
    values: npt.NDArray[np.int64],
    out: npt.NDArray[np.int64],
) -> None:
    """Write ``out[j] = sum over predecessors i of weight_ij * values[i]``, modulo 2^64.

    Parameters
    ----------
    indptr, indices : ndarray, shape (n_out + 1,) and (nnz,), int32 or int64
        The layer in csc form.
    weights : ndarray, shape (nnz,), int64
        How many parallel connections each stored one stands for.
    values : ndarray, shape (n_in, m), int64, C-contiguous
    out : ndarray, shape (n_out, m), int64, C-contiguous
        Overwritten.
    """
    n_in, width = values.shape
    step = max(_NARROWEST, _CACHED // n_in)
    for start in range(0, width, step):
        stop = min(start + step, width)
        for j in range(out.shape[0]):
            sums = out[j, start:stop]
            sums[:] = 0
            for e in range(indptr[j], indptr[j + 1]):
                terms = values[indices[e], start:stop]
                weight = weights[e]
                for column in range(sums.size):
                    sums[column] += weight * terms[column]


@kernel
def predecessor_unions(
    indptr: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    values: npt.NDArray[np.uint64],
    out: npt.NDArray[np.uint64],
) -> None:
    """Write ``out[j] = bitwise or over predecessors i of values[i]``.

    Parameters
    ----------
    indptr, indices : ndarray, shape (n_out + 1,) and (nnz,), int32 or int64
        The layer in csc form.
    values : ndarray, shape (n_in, m), uint64, C-contiguous
        64 flags a word.
    out : ndarray, shape (n_out, m), uint64, C-contiguous
        Overwritten.
    """
    n_in, width = values.shape
    step = max(_NARROWEST, _CACHED // n_in)
    for start in range(0, width, step):
        stop = min(start + step, width)
        for j in range(out.shape[0]):
            union = out[j, start:stop]
            union[:] = 0
            for e in range(indptr[j], indptr[j + 1]):
                words = values[indices[e], start:stop]
                for column in range(union.size):
                    union[column] |= words[column]


@kernel
def successor_unions(
    indptr: npt.NDArray[np.integer],
    indices: npt.NDArray[np.integer],
    values: npt.NDArray[np.uint64],
    out: npt.NDArray[np.uint64],
) -> None:
    """Write what `predecessor_unions` writes, from the csr form of the layer: for rows so short that all stay cached.

    Parameters
    ----------
    indptr, indices : ndarray, shape (n_in + 1,) and (nnz,), int32 or int64
        The layer in csr form.
    values : ndarray, shape (n_in, m), uint64, C-contiguous
        64 flags a word.
    out : ndarray, shape (n_out, m), uint64, C-contiguous
        Overwritten.
    """
    out[:] = 0
    for i in range(values.shape[0]):
        words = values[i]
        for e in range(indptr[i], indptr[i + 1]):
            union = out[indices[e]]
            for column in range(words.size):
                union[column] |= words[column]


@kernel
def carry(digits: npt.NDArray[np.int64], bits: int) -> bool:
    """Bring numbers in base ``2**bits`` into normal form, in place, except for their last digit.

    Parameters
    ----------
    digits : ndarray, shape (n, d, m), int64, not negative, C-contiguous
        The numbers are ``sum over t of digits[:, t, :] * 2**(bits * t)``, and stay so.
    bits : int
        In [1, 62]. No sum of a digit and a carry may reach 2^63.

    Returns
    -------
    bool
        True if some last digit is ``2**bits`` or more, so that the numbers want one digit more.
    """
    last = digits.shape[1] - 1
    largest = (1 << bits) - 1
    seen = 0
    for j in range(digits.shape[0]):
        for t in range(last):
            for column in range(digits.shape[2]):
                digit = digits[j, t, column]
                digits[j, t, column] = digit & largest
                digits[j, t + 1, column] += digit >> bits
        for column in range(digits.shape[2]):
            seen |= digits[j, last, column]
    return seen > largest
