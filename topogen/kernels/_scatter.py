"""The dense matrix that the values of a sparse one stand in, for patterns that are nearly full."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._arguments import Arguments
from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._team import run
from topogen.kernels._tiled import Floats, Ints

__all__ = ["scatter"]

_ROWS = 16  # of one chunk
_WORTH_A_THREAD = 100_000  # elements, about 100 microseconds


def scatter(values: Floats, indptr: Ints, indices: Ints, *, out: Floats, threads: int = 1) -> Floats:
    """Write the dense matrix of a csr matrix: ``out[i, indices[k]] = values[k]`` for k in row i, and 0 elsewhere.

    Parameters
    ----------
    values : ndarray, shape (nnz,), float32 or float64
    indptr, indices : ndarray of int32, shapes (I + 1,) and (nnz,)
        They are not checked for being in range. Some consecutive rows of a matrix have the part of its `indptr` that
        belongs to them.
    out : ndarray, shape (I, O), the same dtype
        Overwritten.
    threads : int
        How many threads may take part, at least 1.

    Returns
    -------
    ndarray, shape (I, O)
        `out`.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.

    Notes
    -----
    I * O + nnz writes.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 2, 3], np.int32), np.array([0, 2, 1], np.int32)
    >>> kernels.scatter(np.array([1.0, 2.0, 3.0]), indptr, indices, out=np.empty((2, 3)))
    array([[1., 0., 2.],
           [0., 3., 0.]])
    """
    check = Arguments("scatter", values, threads, name="values")
    args = (
        check.floats("values", values, len(indices)),
        check.ints("indptr", indptr, len(out) + 1),
        check.ints("indices", indices, len(indices)),
        check.target("out", out, out.size),
    )
    run(_scatter, (*args, np.zeros(2 * SLOT, np.int64)), min(threads, 1 + out.size // _WORTH_A_THREAD))
    return out


@kernel
def _scatter(
    team: Team, values: Floats, indptr: Ints, indices: Ints, dense: Floats, counters: NDArray[np.int64]
) -> None:
    if spread(team):
        return
    rows = len(indptr) - 1
    columns, chunks = len(dense) // max(rows, 1), (rows + _ROWS - 1) // _ROWS
    chunk = claim(counters, 0)
    while chunk < chunks:
        for row in range(chunk * _ROWS, min(rows, (chunk + 1) * _ROWS)):
            start = row * columns
            for place in range(start, start + columns):
                dense[place] = 0
            for k in range(indptr[row], indptr[row + 1]):
                dense[start + indices[k]] = values[k]
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, chunks)
