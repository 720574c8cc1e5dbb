"""Neurons that cannot be told apart are carried once: twins.

Neurons fed by the same neurons have the same past: the same inputs reach them, by the same number of paths. One of
them stands for all, and the connections that leave them are added up. Kronecker-expanded layers are full of twins
(a width of 16 shrinks the work 256-fold), unstructured ones have none, and the result is exact in both cases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import Topology

__all__ = ["Groups", "distinct_inputs", "keys", "merge_twins", "singletons"]


class Groups(NamedTuple):
    """A partition of n things.

    Attributes
    ----------
    first : ndarray, shape (groups,), int
        One member of each group.
    of : ndarray, shape (n,), int
        The group of each thing.
    """

    first: npt.NDArray[np.intp]
    of: npt.NDArray[np.intp]

    @property
    def trivial(self) -> bool:
        """Whether everything is alone in its group."""
        return len(self.first) == len(self.of)


def singletons(n: int) -> Groups:
    """Return the partition of n things into groups of one."""
    return Groups(np.arange(n), np.arange(n))


def distinct_inputs(topology: Topology) -> Groups:
    """Return the groups of inputs with equal rows in the first layer: their paths are the same from then on."""
    first = topology.layers[0]
    n_in, n_out = first.shape
    rows = sp.csc_array((np.ones(first.nnz, np.int64), first.indices, first.indptr), shape=(n_out, n_in))
    return _equal_columns(rows)


def merge_twins(layer: sp.csr_array, groups: Groups) -> tuple[sp.csc_array, Groups]:
    """Return a layer between groups of neurons in place of neurons.

    Parameters
    ----------
    layer : csr_array, shape (n_in, n_out)
    groups : Groups
        The groups of its inputs.

    Returns
    -------
    csc_array, shape (groups of inputs, groups of outputs), int64
        How many connections run from the members of one group to any one member of the other.
    Groups
        The groups of its outputs: outputs in one group have equal columns.
    """
    columns = sp.csr_array((np.ones(layer.nnz, np.int64), layer.indices, layer.indptr), shape=layer.shape).tocsc()
    if not groups.trivial:
        merged = groups.of.astype(columns.indices.dtype)[columns.indices]
        columns = sp.csc_array((columns.data, merged, columns.indptr), shape=(len(groups.first), layer.shape[1]))
        columns.sum_duplicates()
    twins = _equal_columns(columns)
    return (columns if twins.trivial else columns[:, twins.first]), twins


def _equal_columns(columns: sp.csc_array) -> Groups:
    """Return the groups of equal columns of a canonical csc array of integers."""
    n_in, n_out = columns.shape
    running = np.zeros(columns.nnz + 1, np.int64)
    np.cumsum(columns.data * keys(n_in)[columns.indices], out=running[1:])
    digests = running[columns.indptr[1:]] - running[columns.indptr[:-1]]
    _, first, of = np.unique(digests, return_index=True, return_inverse=True)
    if len(first) == n_out or _differ(columns, columns[:, first[of]]):
        return singletons(n_out)
    return Groups(first, of)


def keys(n: int) -> npt.NDArray[np.int64]:
    """Return n fixed random integers: equal sequences have equal sums of products with them, modulo 2^64.

    Different ones almost never have, which is why equality is always verified after it has been guessed from the sums.
    """
    return np.random.default_rng(0).integers(-(2**63), 2**63, n)


def _differ(a: sp.csc_array, b: sp.csc_array) -> bool:
    return not all(np.array_equal(getattr(a, part), getattr(b, part)) for part in ("indptr", "indices", "data"))
