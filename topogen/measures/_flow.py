"""What gets from the inputs to the outputs: how many paths side by side, and which connections they use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse import csgraph

from topogen._topology import Topology, as_topology
from topogen.measures._connectivity import dead_neurons

__all__ = ["effective_density", "structural_rank"]


def structural_rank(x: Any) -> int:
    """Return the rank that the product of the layers has for almost all weights on these connections.

    Of one layer it is the size of a largest matching; of a chain it is the largest number of paths from inputs to
    outputs that share no neuron. No choice of weights gives a linear network of this pattern a higher rank.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    int
        In [0, min(sizes)].

    Notes
    -----
    Exact: a bipartite matching for one layer, a maximum flow through neurons of capacity 1 for a chain (Menger). The
    products' minors are sums over families of disjoint paths (Lindstrom, Gessel and Viennot), which cannot cancel for
    independent weights. The chain is held at once.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.structural_rank([[1, 1, 0], [1, 0, 0], [1, 0, 0]])
    2
    >>> tg.measures.structural_rank([[[1, 0], [0, 1]], [[1, 0], [1, 0]]])  # both ways end in one neuron
    1
    """
    topology = as_topology(x)
    if len(topology) == 1:
        return int(csgraph.structural_rank(topology.layers[0].astype(np.int8)))
    return _disjoint_paths(topology)


def effective_density(x: Any) -> float:
    """Return the share of connections that lie on some path from an input to an output.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    float
        In [0, 1]: effective connections / *stored* connections; 1 if every connection counts, 0 if there is none.

    Notes
    -----
    Linear in the number of connections. The rest can be removed without changing any output by more than a constant.
    Times `density` it is the share of all *possible* connections that are effective, which Vysogorets and Kempe
    subtract from 1 to get their effective sparsity.

    References
    ----------
    A. Vysogorets, J. Kempe, "Connectivity matters: neural network pruning through the lens of effective sparsity",
    Journal of Machine Learning Research 2023.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.effective_density([[[1, 1], [1, 1]], [[1, 0], [0, 0]]])  # 3 of 5: hidden neuron 1 leads nowhere
    0.6
    """
    topology = as_topology(x)
    alive = [_flags(n, dead) for n, dead in zip(topology.sizes, dead_neurons(topology), strict=True)]
    stored = effective = 0
    for k, layer in enumerate(topology.layers):
        sources = np.repeat(alive[k], np.diff(layer.indptr))
        effective += int(np.count_nonzero(sources & alive[k + 1][layer.indices]))
        stored += layer.nnz
    return effective / stored if stored else 0.0


def _flags(n: int, dead: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    alive = np.ones(n, np.bool_)
    alive[dead] = False
    return alive


def _disjoint_paths(topology: Topology) -> int:
    """Return the maximum flow when every neuron lets one unit through: an edge from its entry to its exit."""
    n = sum(topology.sizes)
    starts = np.cumsum((0, *topology.sizes))
    neurons = np.arange(n)
    source, sink = 2 * n, 2 * n + 1  # neuron i has its entry at i, its exit at n + i
    tails, heads = [np.full(topology.sizes[0], source), neurons], [neurons[: topology.sizes[0]], n + neurons]
    for k, layer in enumerate(topology.layers):
        tails.append(n + np.repeat(neurons[starts[k] : starts[k + 1]], np.diff(layer.indptr)))
        heads.append(starts[k + 1] + layer.indices)
    tails.append(n + neurons[starts[-2] :])
    heads.append(np.full(topology.sizes[-1], sink))
    edges = (np.concatenate(tails).astype(np.int32), np.concatenate(heads).astype(np.int32))
    capacities = sp.csr_array((np.ones(len(edges[0]), np.int32), edges), shape=(2 * n + 2, 2 * n + 2))
    return int(csgraph.maximum_flow(capacities, source, sink).flow_value)
