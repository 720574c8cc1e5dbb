"""Topologies to networkx graphs, and any directed acyclic graph to a topology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from topogen import checks
from topogen._topology import Topology, as_topology
from topogen.errors import SpecError
from topogen.from_data._layering import Graph, Layering, chained, depths, with_sinks_last

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["from_networkx", "layering", "to_networkx"]


def to_networkx(net: Any) -> nx.DiGraph[Any, Any, Any]:
    """Return a topology as a directed graph.

    Parameters
    ----------
    net : Topology, sequence of matrices, or one matrix
        What to convert; layers are read one at a time.

    Returns
    -------
    networkx.DiGraph
        Nodes (k, i), neuron i of layer of nodes k, in that order, with the attributes ``layer`` = k and, of relays
        alone, ``relay`` = True. An edge ((k, i), (k + 1, j)) for each connection.

    Raises
    ------
    SpecError
        If `net` is no topology.

    Notes
    -----
    ``from_networkx(to_networkx(net)) == net`` for every topology; spec and seed are not part of the graph. networkx
    takes about 1 kB a connection: for measuring, `topogen.measures` and scipy do without the graph.

    Examples
    --------
    >>> import topogen as tg
    >>> graph = tg.to_networkx([[1, 0], [1, 1]])
    >>> list(graph.edges)
    [((0, 0), (1, 0)), ((0, 1), (1, 0)), ((0, 1), (1, 1))]
    >>> graph.nodes[1, 0]
    {'layer': 1}
    """
    import networkx as nx

    net = as_topology(net, name="net")
    graph: nx.DiGraph[Any, Any, Any] = nx.DiGraph()
    for k, (size, relays) in enumerate(zip(net.sizes, net.relays, strict=True)):
        graph.add_nodes_from(((k, i) for i in range(size)), layer=k)
        graph.add_nodes_from(((k, i) for i in relays.tolist()), relay=True)
    for k, layer in enumerate(net):
        rows, columns = layer.nonzero()
        graph.add_edges_from(((k, i), (k + 1, j)) for i, j in zip(rows.tolist(), columns.tolist(), strict=True))
    return graph


def from_networkx(graph: Any) -> Topology:
    """Return the topology of a directed acyclic graph.

    Parameters
    ----------
    graph : networkx.DiGraph
        As for `layering`, which also tells where each node is.

    Returns
    -------
    Topology
        Without spec and seed; `Topology.relays` are the neurons that carry edges over layers.

    Raises
    ------
    SpecError
        As for `layering`.

    Examples
    --------
    >>> import networkx as nx, topogen as tg
    >>> tg.from_networkx(nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")]))
    Topology(sizes=(1, 2, 1), n_relays=1)
    """
    return _layering(graph, "from_networkx").topology


def layering(graph: Any) -> Layering:
    """Place the nodes of a directed acyclic graph in layers, and relays where an edge skips some.

    Parameters
    ----------
    graph : networkx.DiGraph
        Edges run from input to output; what they carry (weights) is ignored. If nodes have the attribute ``layer``, an
        int >= 0, they are placed in it: all of them, every edge to a later layer. Otherwise layers are found. Nodes
        with a true attribute ``relay`` become relays: each must have exactly one in-edge.

    Returns
    -------
    Layering
        ``(topology, places, names)``: where each node is, and the node behind each neuron.

    Raises
    ------
    SpecError
        If `graph` is no networkx graph, is undirected, has parallel edges, has a cycle (which is named) or nothing to
        place, the attributes ``layer`` or ``relay`` are impossible, or the relays would not fit in memory.

    Notes
    -----
    Found layers: a node is in layer k if the longest path that ends in it has k edges, so that nodes without in-edges
    are the inputs; but every node with in-edges and no out-edges is in the last layer, where it is an output. A node
    without edges is an input that leads nowhere. Within a layer, nodes keep the order of the graph; relays follow, in
    the order of the nodes whose values they pass on.

    Relays are shared: one line for each node, whatever the number of its edges that skip layers. Node v in layer l(v)
    takes ``max(l(w) over edges v -> w) - l(v) - 1`` of them, the fewest that any chain with these layers can have.
    They change neither what reaches what nor the number of paths between any two nodes.

    Linear in the number of nodes, edges and relays, but for sorting them.

    References
    ----------
    P. Healy, N. S. Nikolov, "Hierarchical drawing algorithms", in: Handbook of Graph Drawing and Visualization, 2013:
    layers by longest path.

    Examples
    --------
    >>> import networkx as nx, topogen as tg
    >>> found = tg.layering(nx.DiGraph([("a", "b"), ("b", "c"), ("a", "d")]))
    >>> found.topology.sizes, found.places["d"]
    ((1, 2, 2), (2, 1))
    >>> found.names                                     # the value of a is passed on to the layer of d
    (('a',), ('b', 'a'), ('c', 'd'))
    """
    return _layering(graph, "layering")


def _layering(graph: Any, owner: str) -> Layering:
    _check_kind(graph, owner)
    nodes = list(graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    ends = np.array([(number[tail], number[head]) for tail, head in graph.edges], np.int64).reshape(-1, 2)
    numbered = Graph(nodes, ends[:, 0], ends[:, 1], "graph", owner)
    depth = depths(numbered)
    layer = _given_layers(graph, numbered)
    if layer is None:
        if not ends.size:
            raise SpecError(f"{numbered.described} must have at least one edge. Got {len(nodes)} nodes and none.")
        layer = with_sinks_last(numbered, depth)
    is_relay = np.array([bool(graph.nodes[node].get("relay")) for node in nodes])
    inputs = np.flatnonzero(is_relay & (np.bincount(numbered.heads, minlength=len(nodes)) != 1))
    if inputs.size:
        raise SpecError(
            f"{numbered.described} must have one in-edge at every node that is a relay. "
            f"Got {graph.in_degree(nodes[inputs[0]])} at {nodes[inputs[0]]!r}."
        )
    return chained(numbered, layer, is_relay)


def _check_kind(graph: Any, owner: str) -> None:
    import networkx as nx

    kinds: type[Any] = nx.Graph  # the base of all kinds
    if not isinstance(graph, kinds):
        checks.refuse("graph", owner, "a networkx DiGraph", graph)
    kind = type(graph).__name__
    if not graph.is_directed():
        raise SpecError(
            f"The 'graph' parameter of {owner} must be directed, from inputs to outputs. Got an undirected {kind}."
        )
    if graph.is_multigraph():
        raise SpecError(
            f"The 'graph' parameter of {owner} must have no parallel edges. Got a {kind}; networkx.DiGraph(graph) "
            "merges them."
        )


def _given_layers(graph: Any, numbered: Graph) -> npt.NDArray[np.int64] | None:
    """Return the attributes ``layer`` of the nodes, or None where no node has one."""
    given: list[Any] = [graph.nodes[node].get("layer") for node in numbered.nodes]
    if all(value is None for value in given):
        return None
    for node, value in zip(numbered.nodes, given, strict=True):
        if type(value) is bool or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**31:
            raise SpecError(
                f"{numbered.described} must have an int >= 0 as the attribute 'layer' of every node, or of none. "
                f"Got {value!r} at {node!r}."
            )
    layer = np.array(given, np.int64)
    wrong = np.flatnonzero(layer[numbered.heads] <= layer[numbered.tails])
    if wrong.size:
        tail, head = (int(ends[wrong[0]]) for ends in (numbered.tails, numbered.heads))
        raise SpecError(
            f"{numbered.described} must have edges to later layers only. Got {numbered.nodes[tail]!r} -> "
            f"{numbered.nodes[head]!r}, from layer {layer[tail]} to layer {layer[head]}."
        )
    if not layer.any():
        raise SpecError(f"{numbered.described} must have at least two layers. Got {layer.size} nodes in layer 0.")
    return layer
