"""The shortest cycle of an undirected graph, by breadth-first searches that stop where none can be shorter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from topogen.kernels._compile import kernel

__all__ = ["shortest_cycle"]


@kernel
def shortest_cycle(
    indptr: npt.NDArray[np.integer], indices: npt.NDArray[np.integer], roots: npt.NDArray[np.integer]
) -> int:
    """Return the length of the shortest cycle through any of `roots`, or 0 if there is none.

    Parameters
    ----------
    indptr, indices : ndarray, shape (n + 1,) and (2 * edges,), int32 or int64
        A bipartite graph in csr form, both directions of each edge stored once.
    roots : ndarray, shape (m,), int
        Vertices; those of one side meet every cycle.

    Returns
    -------
    int
    """
    n = indptr.size - 1
    distance = np.full(n, -1, np.int64)
    parent = np.empty(n, np.int64)
    queue = np.empty(n, np.int64)
    best = 0
    for root in roots:
        distance[root] = 0
        parent[root] = -1
        queue[0] = root
        head, tail = 0, 1
        # an edge that closes a cycle at distance d makes one of 2 d + 2, and later ones are no shorter
        while head < tail and (best == 0 or 2 * distance[queue[head]] + 2 < best):
            vertex = queue[head]
            head += 1
            for e in range(indptr[vertex], indptr[vertex + 1]):
                neighbour = indices[e]
                if distance[neighbour] < 0:
                    distance[neighbour] = distance[vertex] + 1
                    parent[neighbour] = vertex
                    queue[tail] = neighbour
                    tail += 1
                elif neighbour != parent[vertex]:
                    length = int(distance[vertex] + distance[neighbour] + 1)
                    if best == 0 or length < best:
                        best = length
        for position in range(tail):
            distance[queue[position]] = -1
        if best == 4:
            break
    return best
