"""Counted off the layers one by one: connections, density, degrees."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import as_topology

__all__ = ["Degrees", "Range", "connections", "degrees", "density", "exact_density", "fan_in", "fan_out"]


class Range(NamedTuple):
    """The smallest and the largest of some integers; prints as ``30`` where they are equal, else as ``70..80``."""

    min: int
    max: int

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}..{self.max}"


class Degrees(NamedTuple):
    """The degrees of one layer.

    Attributes
    ----------
    fan_out : ndarray, shape (n_in,), int64
        Connections that leave each input.
    fan_in : ndarray, shape (n_out,), int64
        Connections that arrive at each output.
    """

    fan_out: npt.NDArray[np.int64]
    fan_in: npt.NDArray[np.int64]


def connections(x: Any) -> tuple[int, ...]:
    """Return the number of stored connections of each layer.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of int, length L

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.connections([[[1, 0], [1, 1]], [[1], [1]]])
    (3, 2)
    """
    return tuple(int(layer.nnz) for layer in as_topology(x).layers)


def exact_density(x: Any) -> Fraction:
    """Return stored connections / possible connections of the whole chain, as an exact fraction.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    Fraction
        ``sum_k nnz_k / sum_k n_k n_{k+1}``, in [0, 1].

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.exact_density([[[1, 0], [1, 1]], [[1], [1]]])
    Fraction(5, 6)
    """
    topology = as_topology(x)
    possible = sum(n_in * n_out for n_in, n_out in zip(topology.sizes[:-1], topology.sizes[1:], strict=True))
    return Fraction(sum(connections(topology)), possible)


def density(x: Any) -> float:
    """Return stored connections / possible connections of the whole chain: the float nearest to `exact_density`.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.density([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    0.1
    """
    return float(exact_density(x))


def degrees(x: Any) -> tuple[Degrees, ...]:
    """Return how many connections leave each input and arrive at each output of each layer.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of Degrees, length L
        ``.fan_out`` of shape (n_k,) and ``.fan_in`` of shape (n_{k+1},), both int64.

    Examples
    --------
    >>> import topogen as tg
    >>> layer, = tg.measures.degrees([[1, 0], [1, 1]])
    >>> layer.fan_out.tolist(), layer.fan_in.tolist()
    ([1, 2], [2, 1])
    """
    return tuple(Degrees(_fan_out(layer), _fan_in(layer)) for layer in as_topology(x).layers)


def fan_out(x: Any) -> tuple[Range, ...]:
    """Return the smallest and the largest fan-out of each layer.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of Range, length L

    Examples
    --------
    >>> import topogen as tg
    >>> print(*tg.measures.fan_out([[[1, 0], [1, 1]], [[1], [1]]]))
    1..2 1
    """
    return tuple(_range(_fan_out(layer)) for layer in as_topology(x).layers)


def fan_in(x: Any) -> tuple[Range, ...]:
    """Return the smallest and the largest fan-in of each layer.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of Range, length L

    Examples
    --------
    >>> import topogen as tg
    >>> print(*tg.measures.fan_in([[[1, 0], [1, 1]], [[1], [1]]]))
    1..2 2
    """
    return tuple(_range(_fan_in(layer)) for layer in as_topology(x).layers)


def _fan_out(layer: sp.csr_array) -> npt.NDArray[np.int64]:
    return np.diff(layer.indptr).astype(np.int64)


def _fan_in(layer: sp.csr_array) -> npt.NDArray[np.int64]:
    return np.bincount(layer.indices, minlength=layer.shape[1]).astype(np.int64)


def _range(counts: npt.NDArray[np.int64]) -> Range:
    return Range(int(counts.min()), int(counts.max()))
