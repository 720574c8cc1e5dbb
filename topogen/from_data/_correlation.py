"""A square layer that joins the features of a data set that go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._topology import Topology, pattern_bytes
from topogen.errors import SpecError

__all__ = ["from_correlation"]

_BLOCK = 1 << 23  # correlations at a time: 64 MiB
_DECIMALS = 12

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


def from_correlation(data: Any, *, threshold: float | None = None, fan_in: int | None = None) -> Topology:
    """Return a square layer that joins correlated features, i -> j by the size of Pearson's correlation r_ij.

    Parameters
    ----------
    data : array_like, shape (samples, features)
        Real and finite numbers; at least two samples, and no feature that is constant.
    threshold : float, optional
        In [0, 1]. Join i to j wherever ``|r_ij| >= threshold``.
    fan_in : int, optional
        In [1, features]. Join to each j the `fan_in` features of the largest ``|r_ij|``, j itself first, of equals
        those of the smaller index. Exactly one of the two must be given.

    Returns
    -------
    Topology
        One layer, (features, features), without spec and seed. Every feature is joined to itself. By `fan_in` there are
        exactly fan_in * features connections.

    Raises
    ------
    SpecError
        If `data` is no such matrix (the columns that are constant or not finite are named), not exactly one of
        `threshold` and `fan_in` is given, one of them is out of range, or the result would not fit in memory.

    Notes
    -----
    Correlations are computed in float64 and rounded to 12 decimals before they are compared, so that equals are equal
    whatever the order of summation. Ranks in place of the data give Spearman's correlation.

    2 * samples * features**2 operations. Memory: the data in float64, twice, the connections, and some 0.3 GB for a
    block of 2**23 correlations at a time (but one column at least), never all of them.

    References
    ----------
    Y. Zhang, J. Zhao, W. Wu, A. Muscoloni, C. V. Cannistraci, "Epitopological learning and Cannistraci-Hebb network
    shape intelligence brain-inspired theory for ultra-sparse advantage in deep learning", ICLR 2024: the correlated
    sparse topological initialization, which keeps the largest share of all correlations.

    Examples
    --------
    >>> import topogen as tg
    >>> data = [[1, 2, 0], [2, 4, 1], [3, 6, 0], [4, 8, 0]]        # the second feature is twice the first
    >>> tg.from_correlation(data, threshold=0.9).layers[0].toarray().astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    >>> tg.from_correlation(data, fan_in=2).layers[0].toarray().sum(axis=0).tolist()
    [2, 2, 2]
    """
    if (threshold is None) == (fan_in is None):
        raise SpecError(
            "Exactly one of the 'threshold' and 'fan_in' parameters of from_correlation must be given. "
            f"Got threshold={threshold!r} and fan_in={fan_in!r}."
        )
    limit = None if threshold is None else checks.real(threshold, "threshold", "from_correlation", high=1.0)
    features = _standardised(data)
    n = features.shape[1]
    if limit is not None:
        return _joined(features, "threshold", lambda sizes, _: sizes >= limit)
    k = checks.integer(fan_in, "fan_in", "from_correlation", low=1, high=n)
    checks.fits_in_memory(2 * pattern_bytes(n, n, k * n), "fan_in", "from_correlation")
    return _joined(features, "fan_in", lambda sizes, start: _largest(sizes, start, k))


def _standardised(data: Any) -> _Floats:
    """Return the columns with mean 0 and norm 1, so that their products are their correlations."""
    requirement = "a real matrix of at least two samples (rows) and one feature (column)"
    try:
        given = np.asarray(data)
    except ValueError:
        raise SpecError(f"The 'data' parameter of from_correlation must be {requirement}. Got ragged rows.") from None
    if given.ndim != 2 or given.shape[0] < 2 or given.shape[1] < 1 or given.dtype.kind not in "biuf":
        raise SpecError(
            f"The 'data' parameter of from_correlation must be {requirement}. Got shape {given.shape} of {given.dtype}."
        )
    columns = given.astype(np.float64)
    n = columns.shape[1]
    _refuse_columns(np.flatnonzero(~np.isfinite(columns).all(axis=0)), n, "finite numbers only", "not finite")
    _refuse_columns(np.flatnonzero((columns == columns[0]).all(axis=0)), n, "features that vary", "constant")
    # scaled exactly, so that no sum overflows; centred twice, since the first mean is off by what it was rounded by
    columns = np.ldexp(columns, -np.frexp(np.abs(columns).max(axis=0))[1])
    columns -= columns.mean(axis=0)
    columns -= columns.mean(axis=0)
    columns /= np.linalg.norm(columns, axis=0)
    return columns


def _refuse_columns(wrong: npt.NDArray[np.int64], n: int, requirement: str, what: str) -> None:
    if wrong.size:
        shown = ", ".join(map(str, wrong[:10])) + (f" and {wrong.size - 10} more" if wrong.size > 10 else "")
        raise SpecError(
            f"The 'data' parameter of from_correlation must hold {requirement}. "
            f"Got {wrong.size} of {n} columns that are {what}: {shown}."
        )


def _joined(features: _Floats, name: str, chosen: Callable[[_Floats, int], _Bools]) -> Topology:
    """Return the layer that ``chosen(sizes, start)`` picks, of shape (block, n), row j of a block for output j."""
    n = features.shape[1]
    step = max(1, _BLOCK // n)
    index = sp.get_index_dtype(maxval=n * n)
    counts: list[npt.NDArray[np.int64]] = []
    indices: list[npt.NDArray[np.integer]] = []
    for start in range(0, n, step):
        sizes = features[:, start : start + step].T @ features
        np.round(np.abs(sizes, out=sizes), _DECIMALS, out=sizes)
        itself = np.arange(len(sizes))
        sizes[itself, start + itself] = 1.0
        picked = chosen(sizes, start)
        counts.append(np.count_nonzero(picked, axis=1))
        checks.fits_in_memory(pattern_bytes(n, n, 2 * int(counts[-1].sum())), name, "from_correlation")
        indices.append(np.nonzero(picked)[1].astype(index))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    joined = np.concatenate(indices)
    by_output = sp.csc_array((np.ones(joined.size, np.bool_), joined, indptr), shape=(n, n))
    return Topology([by_output])


def _largest(sizes: _Floats, start: int, k: int) -> _Bools:
    """Pick the k largest of each row, of equals the first, and the diagonal before all."""
    n = sizes.shape[1]
    itself = np.arange(len(sizes))
    sizes[itself, start + itself] = 2.0
    last = np.partition(sizes, n - k, axis=1)[:, n - k, np.newaxis]  # the smallest that is picked
    above, equal = sizes > last, sizes == last
    free = k - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (equal & (np.cumsum(equal, axis=1) <= free))
