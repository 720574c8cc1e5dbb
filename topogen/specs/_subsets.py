"""Random subsets of one size, many at once: the draw behind every family with one exact degree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import as_pattern
from topogen.specs._patterns import regular_rows

__all__ = ["random_columns", "random_rows", "subsets"]


def subsets(n_rows: int, n: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return `n_rows` independent subsets of range(n), each uniform among those of `size`, as sorted rows.

    Every row is drawn on, as many numbers as it still lacks at a time, until its numbers are distinct. That treats
    all numbers alike and never overshoots, so that every subset is equally likely. Above one half the numbers left
    out are drawn instead. O(m log m) time a round for m = n_rows * size, O(log m) rounds, O(m) memory.
    """
    if 2 * size > n:
        keep = np.ones((n_rows, n), np.bool_)
        np.put_along_axis(keep, subsets(n_rows, n, n - size, rng), values=False, axis=1)
        return np.nonzero(keep)[1].reshape(n_rows, size)
    keys = np.empty(0, np.int64)
    missing = np.full(n_rows, size)
    while missing.any():
        rows = np.repeat(np.arange(n_rows, dtype=np.int64), missing)
        keys = np.sort(np.concatenate([keys, rows * n + rng.integers(n, size=rows.size)]), kind="stable")
        keys = keys[np.diff(keys, prepend=-1) > 0]
        missing = size - np.bincount(keys // n, minlength=n_rows)
    return (keys % n).reshape(n_rows, size)


def random_rows(n_in: int, n_out: int, fan_out: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a pattern in which every input is joined to a random set of `fan_out` outputs."""
    return as_pattern(regular_rows(subsets(n_in, n_out, fan_out, rng), n_out))


def random_columns(n_in: int, n_out: int, fan_in: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a pattern in which every output is joined to a random set of `fan_in` inputs."""
    return as_pattern(random_rows(n_out, n_in, fan_in, rng).T)
