"""A directed acyclic graph as a chain of layers, with relays where an edge skips some."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._topology import Topology
from topogen.errors import SpecError

__all__ = ["Graph", "Layering", "chained", "depths", "with_sinks_last"]

Ints = npt.NDArray[np.int64]


class Layering(NamedTuple):
    """A graph as a topology, and where each of its nodes is.

    Attributes
    ----------
    topology : Topology
        The chain of layers; its `relays` are the neurons that the graph does not have, and nodes that it calls relays.
    places : mapping of node to (int, int)
        (layer of nodes, index) of every node of the graph.
    names : tuple of tuples
        The node behind each neuron, one tuple for each layer of nodes; behind a relay that was added, the node whose
        value it passes on.

    Examples
    --------
    >>> import networkx as nx, topogen as tg
    >>> net, places, names = tg.layering(nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")]))
    >>> places["c"], names, net.relays[1].tolist()
    ((2, 0), (('a',), ('b', 'a'), ('c',)), [1])
    """

    topology: Topology
    places: Mapping[Any, tuple[int, int]]
    names: tuple[tuple[Any, ...], ...]


class Graph(NamedTuple):
    """Edges between the numbers of nodes, and the parameter that they come from."""

    nodes: Sequence[Hashable]
    tails: Ints
    heads: Ints
    name: str
    owner: str

    @property
    def described(self) -> str:
        """How an error sentence about the graph starts."""
        return f"The '{self.name}' parameter of {self.owner}"


def depths(graph: Graph) -> Ints:
    """Return the length of the longest path that ends in each node; SpecError, with a cycle, where there is one."""
    n = len(graph.nodes)
    order = np.argsort(graph.tails, kind="stable")
    heads = graph.heads[order]
    starts = np.searchsorted(graph.tails[order], np.arange(n + 1))
    waiting = np.bincount(graph.heads, minlength=n)
    depth = np.full(n, -1, np.int64)
    level, ready = 0, np.flatnonzero(waiting == 0)
    while ready.size:
        depth[ready] = level
        reached, times = np.unique(heads[_ranges(starts[ready], starts[ready + 1])], return_counts=True)
        waiting[reached] -= times
        level, ready = level + 1, reached[waiting[reached] == 0]
    if (depth < 0).any():
        raise SpecError(f"{graph.described} must be acyclic. Got the cycle {_cycle(graph, depth < 0)}.")
    return depth


def with_sinks_last(graph: Graph, depth: Ints) -> Ints:
    """Return `depth` with every node that has in-edges and no out-edges in the last layer: these are the outputs."""
    sinks = (np.bincount(graph.tails, minlength=len(depth)) == 0) & (depth > 0)
    return np.where(sinks, depth.max(initial=0), depth)


def chained(graph: Graph, layer: Ints, is_relay: npt.NDArray[np.bool_]) -> Layering:
    """Return the graph as a chain, its nodes in the layers that `layer` says, those of a layer in the graph's order.

    Every edge must go to a later layer. A node whose edges skip layers gets one line of relays, as long as its longest
    edge needs and shared by all its edges: ``max(layer[heads]) - layer - 1`` relays, however many edges skip.
    """
    n, last = len(layer), int(layer.max())
    furthest = layer.copy()
    np.maximum.at(furthest, graph.tails, layer[graph.heads])
    lengths = np.maximum(furthest - layer - 1, 0)
    # the index arrays of neurons and connections, copies of them while they are sorted, and the names
    checks.fits_in_memory(100 * (n + int(lengths.sum()) + graph.tails.size + last), graph.name, graph.owner)

    # neurons are numbered: nodes first, then the relays, line after line
    of = np.repeat(np.arange(n), lengths)
    first = n + np.cumsum(lengths) - lengths
    step = np.arange(of.size) + n - first[of]
    source = np.concatenate([np.arange(n), of])
    level = np.concatenate([layer, layer[of] + 1 + step])

    order = np.argsort(level, kind="stable")
    bounds = np.searchsorted(level[order], np.arange(last + 2))
    sizes = np.diff(bounds)
    if (sizes == 0).any():
        raise SpecError(
            f"{graph.described} must have a node in every layer, or an edge that passes it. "
            f"Got none in layer {int(np.argmin(sizes))} of {last + 1}."
        )
    index = np.empty(level.size, np.int64)
    index[order] = np.arange(level.size) - np.repeat(bounds[:-1], sizes)

    # a node's value is had in layer k from the node itself, or from its relay there
    skipped = layer[graph.heads] - layer[graph.tails] - 1
    carriers = np.where(skipped == 0, graph.tails, first[graph.tails] + skipped - 1)
    relays = np.arange(n, level.size)
    tails = np.concatenate([carriers, np.where(step == 0, of, relays - 1)])
    heads = np.concatenate([graph.heads, relays])
    patterns = _patterns(index[tails], index[heads], level[heads], sizes)

    relayed = np.concatenate([is_relay, np.ones(of.size, np.bool_)])
    groups = [order[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    return Layering(
        Topology(patterns, relays=[np.flatnonzero(relayed[group]) for group in groups]),
        {node: (int(k), int(i)) for node, k, i in zip(graph.nodes, layer, index[:n], strict=True)},
        tuple(tuple(graph.nodes[node] for node in source[group]) for group in groups),
    )


def _patterns(rows: Ints, columns: Ints, level: Ints, sizes: Ints) -> list[sp.coo_array]:
    """Return a matrix for each pair of neighbouring layers; `level` is the layer of nodes that an edge ends in."""
    order = np.argsort(level, kind="stable")
    bounds = np.searchsorted(level[order], np.arange(1, len(sizes) + 1))
    patterns: list[sp.coo_array] = []
    for k, edges in enumerate(order[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)):
        connections = (np.ones(edges.size, np.bool_), (rows[edges], columns[edges]))
        patterns.append(sp.coo_array(connections, shape=(int(sizes[k]), int(sizes[k + 1]))))
    return patterns


def _ranges(starts: Ints, stops: Ints) -> Ints:
    """Return the numbers of all half-open ranges, one range after the other."""
    lengths = stops - starts
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def _cycle(graph: Graph, stuck: npt.NDArray[np.bool_]) -> str:
    """Name a cycle among the nodes that never got ready: each of them has a predecessor that did not either."""
    inner = stuck[graph.tails] & stuck[graph.heads]
    before = dict(zip(graph.heads[inner].tolist(), graph.tails[inner].tolist(), strict=True))
    node = next(iter(before))
    seen: dict[int, int] = {}
    path: list[int] = []
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        node = before[node]
    cycle = path[seen[node] :][::-1]
    start = cycle.index(min(cycle))
    names = [repr(graph.nodes[node]) for node in (*cycle[start:], *cycle[: start + 1])]
    if len(names) > 9:
        names[4:-4] = [f"... {len(names) - 8} more ..."]
    return " -> ".join(names)
