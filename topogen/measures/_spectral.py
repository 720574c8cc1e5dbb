"""Singular values of a layer, and what they must be where every degree is the same.

A layer is *biregular* if all inputs have the same fan-out d_l and all outputs the same fan-in d_r. Its largest singular
value is then sigma_1 = sqrt(d_l d_r), of the constant vectors, and everything that is known about expansion follows
from the second one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._topology import as_topology
from topogen.errors import SpecError
from topogen.measures._connectivity import n_components
from topogen.measures._deflated import largest_singular_value_without

__all__ = [
    "Biregular",
    "is_biregular",
    "is_ramanujan",
    "one_biregular_layer",
    "ramanujan_bound",
    "ramanujan_ratios",
    "second_singular_value",
    "second_singular_values",
    "singular_values",
    "trace_bound",
]

_DENSE = 2**14  # entries of a layer up to which LAPACK's full decomposition is taken: beyond it, ARPACK is faster
_TOLERANCE = 1e-10  # relative to sigma_1: what rounding may add to a singular value, with a wide margin


class Biregular(NamedTuple):
    """The two degrees of a biregular layer, and its shape."""

    fan_out: int
    fan_in: int
    n_in: int
    n_out: int

    @property
    def largest(self) -> float:
        """sigma_1, known exactly."""
        return math.sqrt(self.fan_out * self.fan_in)


def second_singular_value(x: Any) -> float:
    """Return the second largest singular value of one layer, counted with multiplicity.

    Of the biadjacency matrix where the layer is biregular (see `is_biregular`), of the normalised one,
    ``D_l^{-1/2} A D_r^{-1/2}``, where degrees differ: its largest singular value is 1, so that the result lies in
    [0, 1]. Neurons without connections are left out of the normalised matrix.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        Of one layer; `second_singular_values` takes any number.

    Returns
    -------
    float
        0 if there is no second one.

    Raises
    ------
    SpecError
        If `x` has more than one layer.
    TopogenError
        If ARPACK does not converge; seen only where singular values crowd, as in rings of 10^4 neurons.

    Notes
    -----
    Components decide first: a layer in two pieces has its largest singular value twice, exactly, which iterative
    solvers miss. Layers of up to 2^14 entries are decomposed by LAPACK in float64; on larger ones ARPACK, from a fixed
    vector, finds the largest singular value of the matrix without its leading pair, which is known. Deterministic;
    errors are below 1e-10 of the largest singular value.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.second_singular_value([[1, 0], [0, 1]])  # two components
    1.0
    >>> print(f"{tg.measures.second_singular_value([[1, 1, 0], [0, 1, 1], [1, 0, 1]]):.9f}")
    1.000000000
    """
    topology = as_topology(x)
    if len(topology) != 1:
        checks.refuse("x", "second_singular_value", "one layer (second_singular_values takes a chain)", topology.sizes)
    return _second(topology.layers[0])


def second_singular_values(x: Any) -> tuple[float, ...]:
    """Return the second largest singular value of each layer, by the rule of `second_singular_value`.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of float, length L

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.second_singular_values([[[1, 0], [0, 1]], [[1, 1, 1], [1, 1, 1]]])
    (1.0, 0.0)
    """
    return tuple(_second(layer) for layer in as_topology(x).layers)


def singular_values(x: Any) -> npt.NDArray[np.float64]:
    """Return all singular values of one layer's biadjacency matrix.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        Of one layer.

    Returns
    -------
    ndarray, shape (min(n_in, n_out),), float64
        Descending.

    Raises
    ------
    SpecError
        If `x` has more than one layer, or its dense form would not fit in memory.

    Notes
    -----
    By LAPACK on the dense matrix: O(n_in * n_out * min(n_in, n_out)) time.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.singular_values([[2, 0, 0], [0, 1, 0]]).tolist()  # a connection counts once, whatever its weight
    [1.0, 1.0]
    """
    topology = as_topology(x)
    if len(topology) != 1:
        checks.refuse("x", "singular_values", "one layer", topology.sizes)
    checks.fits_in_memory(3 * 8 * math.prod(topology.sizes), "x", "singular_values")
    return _decomposed(topology.layers[0].toarray().astype(np.float64))


def is_biregular(x: Any) -> bool:
    """Return whether in every layer all inputs have one fan-out and all outputs one fan-in.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    bool
        False for a layer without connections, whose degrees are all 0.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.is_biregular([[1, 1, 0, 0], [0, 0, 1, 1]]), tg.measures.is_biregular([[1, 1], [0, 1]])
    (True, False)
    """
    return all(_biregular(layer) is not None for layer in as_topology(x).layers)


def is_ramanujan(x: Any, *, strict: bool = False) -> bool:
    r"""Return whether every layer is a Ramanujan bigraph: as good an expander as its degrees allow for large sizes.

    A connected biregular layer is one if :math:`\sigma_2 \le \sqrt{d_l - 1} + \sqrt{d_r - 1}`; strictly (Hashimoto) if
    every one of the min(n_l, n_r) singular values but the first also is at least
    :math:`|\sqrt{d_l - 1} - \sqrt{d_r - 1}|`, so that zeros are not allowed where the degrees differ.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.
    strict : bool
        Whether the lower end is asked for too; this decomposes the dense matrix.

    Returns
    -------
    bool
        False where a layer is not connected.

    Raises
    ------
    SpecError
        If a layer is not biregular: the notion does not exist there.

    Notes
    -----
    A singular value within 1e-10 sigma_1 of an end counts as inside.

    References
    ----------
    K. Hashimoto, "Zeta functions of finite graphs and representations of p-adic groups", 1989; W.-C. W. Li and P. Sole,
    "Spectra of regular graphs and hypergraphs and orthogonal polynomials", European Journal of Combinatorics 1996.

    Examples
    --------
    >>> import topogen as tg
    >>> fano = [[int((line - point) % 7 in (1, 2, 4)) for line in range(7)] for point in range(7)]
    >>> tg.measures.is_ramanujan(fano, strict=True)
    True
    """
    layers = as_topology(x).layers
    degrees = [required_biregular(layer, k, "is_ramanujan") for k, layer in enumerate(layers)]
    for layer, found in zip(layers, degrees, strict=True):
        if n_components(layer) > 1:
            return False
        slack = _TOLERANCE * found.largest
        high = ramanujan_bound(found.fan_out, found.fan_in) + slack
        if not strict:
            if _second(layer) > high:
                return False
            continue
        low = abs(math.sqrt(found.fan_out - 1) - math.sqrt(found.fan_in - 1)) - slack
        others = singular_values(layer)[1:]
        if not ((low <= others) & (others <= high)).all():
            return False
    return True


def ramanujan_bound(fan_out: int, fan_in: int) -> float:
    r"""Return :math:`\sqrt{d_l - 1} + \sqrt{d_r - 1}`: the Ramanujan bound, and Feng and Li's line.

    Parameters
    ----------
    fan_out, fan_in : int >= 1
        The degrees d_l and d_r of a biregular layer.

    Returns
    -------
    float

    Notes
    -----
    From above it defines Ramanujan layers (`is_ramanujan`). From below it is a limit only: for fixed degrees and sizes
    that grow without end, the second singular value gets no better than this (Feng and Li 1996). It is *not* a lower
    bound of a finite layer: the layer of a projective plane has sqrt(q), far below. `trace_bound` is one.

    Examples
    --------
    >>> import topogen as tg
    >>> round(tg.measures.ramanujan_bound(3, 8), 3)
    4.06
    """
    d_l = checks.integer(fan_out, "fan_out", "ramanujan_bound", low=1)
    d_r = checks.integer(fan_in, "fan_in", "ramanujan_bound", low=1)
    return math.sqrt(d_l - 1) + math.sqrt(d_r - 1)


def ramanujan_ratios(x: Any) -> tuple[float, ...]:
    """Return, for each layer, its second singular value as a multiple of `ramanujan_bound`.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; every layer biregular.

    Returns
    -------
    tuple of float, length L
        At most 1 for a Ramanujan layer; inf for a permutation, whose bound is 0.

    Raises
    ------
    SpecError
        If a layer is not biregular.

    Examples
    --------
    >>> import topogen as tg
    >>> [round(ratio, 9) for ratio in tg.measures.ramanujan_ratios([[1, 1, 0], [0, 1, 1], [1, 0, 1]])]
    [0.5]
    """
    ratios: list[float] = []
    for k, layer in enumerate(as_topology(x).layers):
        degrees = required_biregular(layer, k, "ramanujan_ratios")
        bound, second = ramanujan_bound(degrees.fan_out, degrees.fan_in), _second(layer)
        ratios.append(second / bound if bound else math.inf if second else 0.0)
    return tuple(ratios)


def trace_bound(x: Any) -> float:
    r"""Return a lower bound of the second singular value of every layer with the degrees and sizes of this one.

    The squares of all singular values add up to the number of connections, hence
    :math:`\sigma_2^2 \ge (n_l d_l - d_l d_r) / (\min(n_l, n_r) - 1)`, with equality for projective planes.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        One biregular layer.

    Returns
    -------
    float
        0 for a layer of one input or one output.

    Raises
    ------
    SpecError
        If `x` has more than one layer, or is not biregular.

    Examples
    --------
    >>> import topogen as tg
    >>> print(f"{tg.measures.trace_bound([[1, 1, 0], [0, 1, 1], [1, 0, 1]]):.3f}")
    1.000
    """
    degrees = one_biregular_layer(x, "trace_bound")
    return trace_bound_of(degrees)


def trace_bound_of(degrees: Biregular) -> float:
    """Return `trace_bound` from the numbers alone."""
    fan_out, fan_in, n_in, n_out = degrees
    smaller = min(n_in, n_out)
    return math.sqrt((n_in - fan_in) * fan_out / (smaller - 1)) if smaller > 1 else 0.0


def one_biregular_layer(x: Any, owner: str) -> Biregular:
    """Return the degrees of `x`, which must be one biregular layer."""
    topology = as_topology(x)
    if len(topology) != 1:
        checks.refuse("x", owner, "one layer", topology.sizes)
    return required_biregular(topology.layers[0], 0, owner)


def required_biregular(layer: sp.csr_array, k: int, owner: str) -> Biregular:
    """Return the degrees of a layer, which must be biregular."""
    degrees = _biregular(layer)
    if degrees is not None:
        return degrees
    fan_out, fan_in = _degrees(layer)
    raise SpecError(
        f"The 'x' parameter of {owner} must have biregular layers, one fan-out and one fan-in >= 1. Got layer {k} with "
        f"fan-out {fan_out.min()}..{fan_out.max()} and fan-in {fan_in.min()}..{fan_in.max()}."
    )


def _degrees(layer: sp.csr_array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.diff(layer.indptr).astype(np.int64), np.bincount(layer.indices, minlength=layer.shape[1]).astype(np.int64)


def _biregular(layer: sp.csr_array) -> Biregular | None:
    return _equal(*_degrees(layer))


def _equal(fan_out: npt.NDArray[np.int64], fan_in: npt.NDArray[np.int64]) -> Biregular | None:
    """Return the two degrees if they are everywhere the same, and not 0."""
    if fan_out[0] and fan_out.min() == fan_out.max() and fan_in.min() == fan_in.max():
        return Biregular(int(fan_out[0]), int(fan_in[0]), fan_out.size, fan_in.size)
    return None


def _second(layer: sp.csr_array) -> float:
    if not layer.nnz:
        return 0.0
    fan_out, fan_in = _degrees(layer)
    degrees = _equal(fan_out, fan_in)
    without = int(np.count_nonzero(fan_out == 0) + np.count_nonzero(fan_in == 0))
    largest = 1.0 if degrees is None else degrees.largest
    if n_components(layer) - without > 1:  # neurons without connections have no part in the normalised matrix
        return largest
    n_in, n_out = np.count_nonzero(fan_out), np.count_nonzero(fan_in)
    if layer.nnz == n_in * n_out:  # complete, of rank 1
        return 0.0
    # the leading pair of the connected matrix: constant where it is biregular, roots of the degrees where it is not
    left, right = np.sqrt(fan_out / layer.nnz), np.sqrt(fan_in / layer.nnz)
    matrix = layer.astype(np.float64)
    if degrees is None:
        scale_in, scale_out = (1 / np.sqrt(np.maximum(d, 1)) for d in (fan_out, fan_in))
        matrix.data = scale_in[np.repeat(np.arange(layer.shape[0]), fan_out)] * scale_out[layer.indices]
    if math.prod(layer.shape) <= _DENSE:
        return float(_decomposed(matrix.toarray() - largest * np.outer(left, right))[0])
    return largest_singular_value_without(matrix, largest, left, right)


def _decomposed(dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.linalg.svd(dense, compute_uv=False).astype(np.float64, copy=False)
