"""The connections that trained weights have."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._topology import Topology, as_pattern
from topogen.errors import SpecError

__all__ = ["from_weights"]


def from_weights(weights: Any, *, threshold: float = 0.0, transpose: bool = False) -> Topology:
    """Return the topology of the weights that are larger than a threshold.

    There is a connection i -> j wherever ``|weights[i, j]| > threshold``.

    Parameters
    ----------
    weights : matrix, or sequence of matrices
        scipy matrices or 2-D array_likes of shape (inputs, outputs), whose widths match.
    threshold : float
        >= 0. Compared exactly, as real numbers, whatever the number type of the weights.
    transpose : bool
        The matrices have shape (outputs, inputs), as the weights of `torch.nn.Linear` have.

    Returns
    -------
    Topology
        Without spec and seed.

    Raises
    ------
    SpecError
        If `threshold` is no finite number >= 0, a matrix is none or holds NaN, or widths do not match.

    Notes
    -----
    A zero is no connection, stored or not. Where zeros that are stored count, as those of connections that were grown
    a moment ago do, take the pattern and not the weights: ``Topology([layer.pattern, ...])``.

    Linear in the number of weights; of a dense matrix it needs one bool each besides.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.from_weights([[0.5, -0.01], [0.0, -2.0]], threshold=0.1)
    >>> net.layers[0].toarray().tolist()
    [[True, False], [False, True]]
    """
    limit = checks.real(threshold, "threshold", "from_weights")
    checks.instance(transpose, "transpose", "from_weights", bool)
    patterns: list[sp.csr_array] = []
    for k, matrix in enumerate(_matrices(weights)):
        pattern = _above(matrix, limit, f"weights[{k}]")
        patterns.append(as_pattern(pattern.T) if transpose else pattern)
    for k, (left, right) in enumerate(zip(patterns[:-1], patterns[1:], strict=True)):
        if left.shape[1] != right.shape[0]:
            raise SpecError(
                "The 'weights' parameter of from_weights must be a chain whose widths match. "
                f"Got {left.shape[1]} outputs in weights[{k}] and {right.shape[0]} inputs in weights[{k + 1}], "
                f"with transpose={transpose}."
            )
    return Topology(patterns)


def _matrices(weights: Any) -> tuple[Any, ...]:
    """Return a chain as it is, and one matrix, a list of rows of numbers included, as a chain of one."""
    if sp.issparse(weights) or getattr(weights, "ndim", 0) == 2:
        return (weights,)
    entries = checks.row(weights, "weights", "from_weights", "a matrix or a sequence of matrices")
    if not entries:
        checks.refuse("weights", "from_weights", "a sequence of at least one matrix", weights)
    first = entries[0]
    if isinstance(first, (list, tuple)) and not any(np.iterable(entry) for entry in cast("list[object]", first)):
        return (weights,)
    return entries


def _above(matrix: Any, limit: float, name: str) -> sp.csr_array:
    pattern = as_pattern(matrix, name=name)  # finds all that is wrong with the matrix
    if not limit:
        return pattern
    kept = _kept(matrix, limit) if sp.issparse(matrix) else _is_above(np.asarray(matrix), limit)
    return as_pattern(kept, name=name)


def _kept(matrix: Any, limit: float) -> sp.csr_array:
    values = matrix.tocsr(copy=True)
    values.has_canonical_format = values.has_sorted_indices = False  # scipy's flags outlive changes made in place
    values.sum_duplicates()
    return sp.csr_array((_is_above(values.data, limit), values.indices, values.indptr), shape=values.shape)


def _is_above(values: Any, limit: float) -> Any:
    # a float64 of numpy, so that the comparison is made in float64 at least; no abs, since that of int8 -128 is -128
    bound = np.float64(limit)
    return np.abs(values) > bound if np.iscomplexobj(values) else (values > bound) | (values < -bound)
