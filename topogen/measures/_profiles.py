"""How things are spread over a topology: degrees over the neurons, paths over the pairs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from topogen._topology import as_topology
from topogen.measures._degrees import degrees

__all__ = ["DegreeProfile", "degree_profiles", "mean_path_count"]


class DegreeProfile(NamedTuple):
    """How many neurons have which degree.

    Attributes
    ----------
    fan_out : dict of int to int
        Number of connections that leave an input -> how many inputs have it; only degrees that occur, ascending.
    fan_in : dict of int to int
        The same of the connections that arrive at an output.
    """

    fan_out: dict[int, int]
    fan_in: dict[int, int]


def degree_profiles(x: Any) -> tuple[DegreeProfile, ...]:
    """Return the exact distribution of the degrees of each layer.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of DegreeProfile, length L
        The counts of ``.fan_out`` add up to n_k, those of ``.fan_in`` to n_{k+1}.

    Notes
    -----
    Linear in the number of connections; a layer at a time.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.degree_profiles([[1, 1, 0], [1, 0, 0]])
    (DegreeProfile(fan_out={1: 1, 2: 1}, fan_in={0: 1, 1: 1, 2: 1}),)
    """
    return tuple(DegreeProfile(_counted(layer.fan_out), _counted(layer.fan_in)) for layer in degrees(x))


def mean_path_count(x: Any) -> Fraction:
    """Return the mean number of paths over all pairs of an input and an output.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    Fraction
        Exact: the number of all paths / (n_0 n_L). It lies between ``path_counts(x).min`` and ``.max``.

    Notes
    -----
    The number of all paths is one vector of integers multiplied by one layer after the other: linear in the number of
    connections, for each digit in base ``2**b`` that the number has, with the b of `path_counts`. This is all that
    can be had of large networks whose rows do not repeat themselves, where `path_counts` costs n_0 times as much.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.mean_path_count([[[1, 1], [1, 0]], [[1, 0], [1, 1]]])  # 2 and 1, 1 and 0
    Fraction(1, 1)
    """
    from topogen.kernels import carry, predecessor_sums

    topology = as_topology(x)
    bits = 62 - max(topology.sizes).bit_length()
    digits = np.ones((topology.sizes[0], 1, 1), np.int64)  # (neurons, digits, 1): paths from any input to each neuron
    for layer in topology.layers:
        columns = layer.tocsc()
        sums = np.empty((layer.shape[1], digits.shape[1]), np.int64)
        ones = np.ones(layer.nnz, np.int64)
        predecessor_sums(columns.indptr, columns.indices, ones, digits.reshape(len(digits), -1), sums)
        digits = sums.reshape(*sums.shape, 1)
        if carry(digits, bits):
            digits = np.concatenate([digits, np.zeros_like(digits[:, :1])], axis=1)
            carry(digits, bits)
    paths = sum(int(digit) << bits * t for t, digit in enumerate(digits.sum(axis=(0, 2))))
    return Fraction(paths, topology.sizes[0] * topology.sizes[-1])


def _counted(numbers: npt.NDArray[np.int64]) -> dict[int, int]:
    values, counts = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
