"""What network science asks of a graph: clustering and distances, of the layered graph without directions.

Neighbouring layers of nodes lie on opposite sides of it, so that the whole chain is one bipartite graph between the
even and the odd layers of nodes, and measures of a bipartite graph are defined for chains as they are for one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import Topology, as_topology

__all__ = ["Distances", "clustering", "distances", "local_clustering"]

_BLOCK_PATHS = 2**22  # paths of length two at once: where there are more, vertices are taken in turns
_BLOCK_BYTES = 2**26  # of flags at once: where all vertices need more, they are taken in turns


class Distances(NamedTuple):
    """Distances in the layered graph, its edges taken without direction.

    Attributes
    ----------
    mean : Fraction
        Exact, over all pairs of different neurons that are joined by a walk; 0 if there is none.
    longest : int
        The largest of these distances; the diameter where the graph is connected.
    pairs : int
        How many unordered pairs are joined: ``n * (n - 1) / 2`` of n neurons exactly where the graph is connected.
    """

    mean: Fraction
    longest: int
    pairs: int


def clustering(x: Any) -> Fraction:
    r"""Return how often a walk over three connections closes to a cycle of four: Robins' and Alexander's coefficient.

    .. math::
        C = \frac{4 C_4}{L_3}

    with the number :math:`C_4` of cycles of length 4 and the number :math:`L_3` of paths of length 3 of the layered
    graph, its edges taken without direction.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    Fraction
        Exact, in [0, 1]: 1 for a dense layer, 0 if the girth exceeds 4 and where there is no path of length 3.

    Notes
    -----
    Of all pairs of neurons on one side the common neighbours are counted, on the side where that is less work: as many
    additions as there are paths of length 2 through the other side, ``sum of d^2`` of its degrees d. The graph is held
    once, and up to 2^22 such paths, or those of one neuron, at a time.

    References
    ----------
    G. Robins, M. Alexander, "Small worlds among interlocking directors: network structure and distance in bipartite
    graphs", Computational & Mathematical Organization Theory 2004.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.clustering([[1, 1, 0], [1, 1, 1]])  # one cycle of four, six paths of length 3
    Fraction(2, 3)
    """
    even_odd = _biadjacency(as_topology(x))
    even, odd = _degrees(even_odd)
    three_paths = sum(((even - 1) * (even_odd @ (odd - 1))).tolist())
    if not three_paths:
        return Fraction(0)
    if (odd**2).sum() > (even**2).sum():
        even_odd, even = even_odd.T.tocsr(), odd
    ordered = sum(int((common.data * (common.data - 1)).sum()) for _, common in _common_neighbours(even_odd))
    ordered -= int((even * (even - 1)).sum())  # every vertex beside itself; twice two diagonals are left of each cycle
    return Fraction(ordered, three_paths)


def local_clustering(x: Any) -> tuple[npt.NDArray[np.float64], ...]:
    r"""Return of each neuron how many neighbours it shares with its second neighbours: Latapy's coefficient.

    .. math::
        c_u = \frac{1}{|N_2(u)|} \sum_{v \in N_2(u)} \frac{|N(u) \cap N(v)|}{|N(u) \cup N(v)|}

    with the neighbours N(u) of a neuron in the layered graph, its edges taken without direction, and its second
    neighbours :math:`N_2(u)`: the other neurons that share one with it.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of ndarray, length L + 1, float64
        One of shape (n_k,) for each layer of nodes, in [0, 1]; 0 for a neuron without second neighbours. In a chain
        the second neighbours of a neuron are in its own layer of nodes and in those two before and behind.

    Notes
    -----
    As many additions as there are paths of length 2, ``sum of d^2`` of all degrees d; memory as of `clustering`.

    References
    ----------
    M. Latapy, C. Magnien, N. Del Vecchio, "Basic notions for the analysis of large two-mode networks", Social Networks
    2008.

    Examples
    --------
    >>> import topogen as tg
    >>> inputs, outputs = tg.measures.local_clustering([[1, 1, 0], [1, 1, 1]])
    >>> inputs.round(3).tolist(), outputs.round(3).tolist()
    ([0.667, 0.667], [0.75, 0.75, 0.5])
    """
    topology = as_topology(x)
    even_odd = _biadjacency(topology)
    values = (_similarity(even_odd), _similarity(even_odd.T.tocsr()))
    starts = _starts(topology.sizes)
    return tuple(values[k % 2][starts[k] : starts[k] + n] for k, n in enumerate(topology.sizes))


def distances(x: Any) -> Distances:
    """Return the mean and the largest distance between two neurons of the layered graph, directions left out.

    The distance of two neurons is the number of connections on a shortest walk between them, which may lead forwards
    and backwards.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    Distances
        Over the pairs of neurons of any two layers of nodes, the same one included.

    Notes
    -----
    Exact. Balls around all neurons grow at the same time, 64 of them in a word: ``longest * nnz * n / 32`` word
    operations for n neurons. The graph is held once, both directions of each connection, and twice 64 MiB of flags,
    or twice 8 n bytes where that is more.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.distances([[1, 1, 0], [1, 1, 1]])  # 5 at distance 1, 4 at distance 2, 1 at distance 3
    Distances(mean=Fraction(8, 5), longest=3, pairs=10)
    """
    from topogen.kernels import predecessor_unions

    even_odd = _biadjacency(as_topology(x))
    itself = [sp.eye_array(n, dtype=np.bool_) for n in even_odd.shape]
    balls = sp.block_array([[itself[0], even_odd], [even_odd.T, itself[1]]], format="csr")
    n = sum(even_odd.shape)
    step = 64 * max(1, _BLOCK_BYTES // (8 * n))
    total = ordered = longest = 0
    for start in range(0, n, step):
        number = np.arange(min(step, n - start))
        words = np.zeros((n, -(-len(number) // 64)), np.uint64)
        words[start + number, number // 64] = np.uint64(1) << (number % 64).astype(np.uint64)
        grown, within = np.empty_like(words), [len(number)]  # within[d]: pairs at distance d or less
        while True:
            predecessor_unions(balls.indptr, balls.indices, words, grown)
            words, grown = grown, words
            within.append(int(np.bitwise_count(words).sum(dtype=np.int64)))
            if within[-1] == within[-2]:
                break
        total += sum(within[-1] - count for count in within)
        ordered += within[-1] - len(number)
        longest = max(longest, len(within) - 2)
    return Distances(Fraction(total, ordered) if ordered else Fraction(0), longest, ordered // 2)


def _starts(sizes: tuple[int, ...]) -> list[int]:
    """Return at which vertex of its side each layer of nodes begins."""
    return [sum(sizes[k % 2 : k : 2]) for k in range(len(sizes))]


def _biadjacency(topology: Topology) -> sp.csr_array:
    """Return the layered graph as one matrix of int64 ones: rows are the even layers of nodes, columns the odd ones."""
    sizes, starts = topology.sizes, _starts(topology.sizes)
    rows: list[npt.NDArray[np.int64]] = []
    columns: list[npt.NDArray[np.int64]] = []
    for k, layer in enumerate(topology.layers):
        sources = np.repeat(np.arange(starts[k], starts[k] + sizes[k]), np.diff(layer.indptr))
        targets = starts[k + 1] + layer.indices.astype(np.int64)
        rows.append(targets if k % 2 else sources)
        columns.append(sources if k % 2 else targets)
    edges = np.concatenate(rows), np.concatenate(columns)
    return sp.csr_array((np.ones(len(edges[0]), np.int64), edges), shape=(sum(sizes[::2]), sum(sizes[1::2])))


def _degrees(layer: sp.csr_array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.diff(layer.indptr).astype(np.int64), np.bincount(layer.indices, minlength=layer.shape[1]).astype(np.int64)


def _common_neighbours(layer: sp.csr_array) -> Iterator[tuple[int, sp.csr_array]]:
    """Yield the numbers of columns that two rows share: the first of some rows, and a matrix of those by all rows."""
    columns = layer.T.tocsr()
    costs = np.cumsum(layer @ np.diff(columns.indptr).astype(np.int64))
    start = 0
    while start < len(costs):
        before = costs[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(costs, before + _BLOCK_PATHS, side="right")))
        yield start, layer[start:stop] @ columns
        start = stop


def _similarity(layer: sp.csr_array) -> npt.NDArray[np.float64]:
    """Return of each row the mean share of columns that it has in common with the other rows that share any with it."""
    degree, _ = _degrees(layer)
    means = np.zeros(len(degree))
    for start, common in _common_neighbours(layer):
        u = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        v = common.indices
        shares = common.data / (degree[start + u] + degree[v] - common.data)
        shares[v == start + u] = 0
        others = np.diff(common.indptr) - 1
        sums = np.bincount(u, shares, minlength=common.shape[0])
        means[start : start + common.shape[0]] = sums / np.maximum(others, 1)
    return means
