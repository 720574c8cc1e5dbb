"""The largest singular value of a sparse matrix besides one that is known with its vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from topogen.errors import TopogenError

__all__ = ["largest_singular_value_without"]

# Vectors that ARPACK keeps, and how often it restarts with them before it goes on to the next: random layers need 20
# and about ten restarts, and more vectors would cost more than they spare. Rings of 10^4 neurons need the last.
_KRYLOV = ((20, 50), (120, 500))
_PRECISION = 1e-11  # relative to sigma_2^2: the residual at which ARPACK stops, which bounds the error


def largest_singular_value_without(
    matrix: sp.csr_array, largest: float, left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]
) -> float:
    """Return the largest singular value of ``matrix - largest * outer(left, right)``, which is never formed.

    `left` and `right` are unit singular vectors of the value `largest`. By ARPACK on the Gram matrix of the shorter
    side, from a fixed vector: the same number on every run. Raises TopogenError where it does not converge.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    rows, columns = (matrix, matrix.T) if wide else (matrix.T, matrix)
    near, far = (left, right) if wide else (right, left)

    def gram(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # einsum, since BLAS puts vectors of 10^4 entries on several threads and waits for them longer than it adds
        return rows @ (columns @ vector - far * (largest * np.einsum("i,i", near, vector)))

    n = rows.shape[0]
    operator = spla.LinearOperator((n, n), matvec=gram, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    for vectors, restarts in _KRYLOV:
        try:
            squares: Any = spla.eigsh(
                operator,
                k=1,
                which="LA",
                v0=start,
                ncv=min(n, vectors),
                maxiter=restarts,
                tol=_PRECISION,
                return_eigenvectors=False,
            )
            return math.sqrt(max(0.0, float(squares[0])))
        except spla.ArpackNoConvergence:
            continue
    raise TopogenError(
        f"The second singular value of a {matrix.shape[0]} x {matrix.shape[1]} layer was not found in {_KRYLOV[-1][1]} "
        "restarts of ARPACK: its singular values crowd just below the largest, as those of long bands and rings do. "
        "Measure one with fewer neurons, or take measures.singular_values, which is dense."
    )
