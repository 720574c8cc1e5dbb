"""The shortest cycle of the layered graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen._topology import as_topology
from topogen.measures._connectivity import n_components

__all__ = ["girth"]


def girth(x: Any) -> int | float:
    """Return the length of the shortest cycle of the layered graph, its edges taken without direction.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    int or float
        Even, at least 4; ``math.inf`` if there is no cycle.

    Notes
    -----
    Exact. In one layer girth 4 means that two inputs share two outputs; more is as free of repetition as it gets.
    Breadth-first searches from every second layer of nodes, each stopped where it cannot find a shorter cycle: the
    time is that of the balls of radius girth / 2, and at most vertices times connections. A graph without cycles is
    recognised by counting. The graph is held twice, once a direction.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.girth([[1, 1, 0], [0, 1, 1], [1, 0, 1]]), tg.measures.girth([[1, 1, 0], [0, 1, 1]])
    (6, inf)
    """
    topology = as_topology(x)
    n_neurons, n_connections = sum(topology.sizes), sum(layer.nnz for layer in topology.layers)
    if n_connections == n_neurons - n_components(topology):
        return math.inf
    from topogen.kernels._girth import shortest_cycle

    starts: list[int] = np.cumsum((0, *topology.sizes)).tolist()
    sources, targets = zip(
        *(
            (np.repeat(np.arange(n) + starts[k], np.diff(layer.indptr)), layer.indices + starts[k + 1])
            for k, (n, layer) in enumerate(zip(topology.sizes[:-1], topology.layers, strict=True))
        ),
        strict=True,
    )
    rows, columns = np.concatenate(sources + targets), np.concatenate(targets + sources)
    graph = sp.csr_array((np.ones(rows.size, np.bool_), (rows, columns)), shape=(n_neurons, n_neurons))
    # every cycle meets both the even and the odd layers of nodes: the side with fewer neurons will do
    even, odd = (
        np.concatenate([np.arange(*starts[k : k + 2]) for k in range(side, len(topology.sizes), 2)]) for side in (0, 1)
    )
    return int(shortest_cycle(graph.indptr, graph.indices, even if len(even) < len(odd) else odd))
