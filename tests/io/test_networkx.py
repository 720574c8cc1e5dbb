"""to_networkx, from_networkx and layering, against networkx itself and brute force on random graphs."""

from __future__ import annotations

import random
import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import specs, topologies


@st.composite
def dags(draw):
    """A directed acyclic graph with at least one edge, whose nodes are in no particular order."""
    n = draw(st.integers(2, 12))
    density = draw(st.sampled_from([0.1, 0.25, 0.5, 1.0]))
    chance = random.Random(draw(st.integers(0, 10**6)))
    names = [f"n{i}" for i in range(n)]
    graph = nx.DiGraph()
    graph.add_nodes_from(chance.sample(names, n))
    pairs = [(names[i], names[j]) for i in range(n) for j in range(i + 1, n)]
    graph.add_edges_from(pair for pair in pairs if chance.random() < density)
    if not graph.edges:
        graph.add_edge(*chance.choice(pairs))
    return graph


def path_counts(graph):
    """Paths between each two nodes, by dynamic programming in topological order."""
    order = list(nx.topological_sort(graph))
    counts = {}
    for start in order:
        ways = dict.fromkeys(order, 0) | {start: 1}
        for node in order:
            for follower in graph.successors(node):
                ways[follower] += ways[node]
        counts |= {(start, end): ways[end] for end in order}
    return counts


# ---- round trips


@given(topologies())
def test_round_trip_of_every_topology(net):
    assert tg.from_networkx(tg.to_networkx(net)) == net


@pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)
def test_round_trip_of_every_family(family):
    @given(specs(family))
    def check(spec):
        net = tg.generate(spec, rng=0)
        if net.nnz < 3000:
            assert tg.from_networkx(tg.to_networkx(net)) == net

    check()


def test_round_trip_keeps_neurons_without_connections_where_they_are():
    layers = [np.zeros((3, 4)), np.zeros((4, 2)), [[0, 1], [0, 0]]]
    layers[0][1, 2] = layers[1][3, 1] = 1
    net = tg.Topology(layers)
    assert tg.from_networkx(tg.to_networkx(net)) == net
    empty = tg.Topology([np.zeros((2, 2))])
    assert tg.from_networkx(tg.to_networkx(empty)) == empty


@given(dags())
def test_round_trip_keeps_relays(graph):
    net = tg.from_networkx(graph)
    assert tg.from_networkx(tg.to_networkx(net)) == net


def test_what_the_graph_of_a_topology_is():
    net = tg.Topology([[[1, 1, 0], [0, 0, 1]], [[1], [0], [1]]], relays=[[], [2], []])
    graph = tg.to_networkx(net)
    assert type(graph) is nx.DiGraph
    assert list(graph.nodes) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert all(graph.nodes[k, i]["layer"] == k for k, i in graph.nodes)
    assert [node for node in graph if "relay" in graph.nodes[node]] == [(1, 2)]
    for k, layer in enumerate(net):
        rows, columns = [(k, i) for i in range(net.sizes[k])], [(k + 1, j) for j in range(net.sizes[k + 1])]
        block = nx.bipartite.biadjacency_matrix(graph.to_undirected(), rows, columns)
        np.testing.assert_array_equal(block.toarray() != 0, layer.toarray())
    assert graph.number_of_edges() == net.nnz
    assert all(type(i) is int for node in graph for i in node)


def test_a_lazy_topology_and_a_matrix():
    net = tg.generate(tg.RadixNet(systems=[[2, 3]]), lazy=True)
    assert nx.utils.graphs_equal(tg.to_networkx(net), tg.to_networkx(tg.generate(net.spec)))
    assert tg.from_networkx(tg.to_networkx(np.eye(3))).sizes == (3, 3)


# ---- any acyclic graph


@given(dags())
def test_layers_are_longest_paths_and_sinks_are_last(graph):
    found = tg.layering(graph)
    longest = {}
    for node in nx.topological_sort(graph):
        longest[node] = max((longest[before] + 1 for before in graph.predecessors(node)), default=0)
    assert len(found.topology) == nx.dag_longest_path_length(graph) == max(longest.values())
    for node in graph:
        is_output = graph.in_degree(node) and not graph.out_degree(node)
        assert found.places[node][0] == (len(found.topology) if is_output else longest[node])


@given(dags())
def test_neither_reachability_nor_path_counts_change(graph):
    net, places, _ = tg.layering(graph)
    chain = tg.to_networkx(net)
    mine, truth = path_counts(chain), path_counts(graph)
    for start in graph:
        descendants = nx.descendants(graph, start)
        for end in graph:
            assert mine[places[start], places[end]] == truth[start, end]
            assert (places[end] in nx.descendants(chain, places[start])) == (end in descendants)


@given(dags())
def test_relays_are_all_there_is_besides_and_there_are_as_many_as_promised(graph):
    net, places, names = tg.layering(graph)
    relays = {(k, i) for k, row in enumerate(net.relays) for i in row.tolist()}
    assert {(k, i) for k, n in enumerate(net.sizes) for i in range(n)} == relays | set(places.values())
    assert not relays & set(places.values())
    layer = {node: places[node][0] for node in graph}
    promised = {
        node: max((layer[head] - layer[node] - 1 for head in graph.successors(node)), default=0) for node in graph
    }
    assert {node: sum(names[k][i] == node for k, i in relays) for node in graph} == promised
    chain = tg.to_networkx(net)
    for k, i in relays:  # the name is that of the node at the other end of the line
        node = (k, i)
        while node in relays:
            (node,) = chain.predecessors(node)
        assert node == places[names[k][i]]
    assert all(names[k][i] == node for node, (k, i) in places.items())


@given(dags())
def test_nodes_keep_the_order_of_the_graph_and_relays_follow(graph):
    net, places, _ = tg.layering(graph)
    for k, size in enumerate(net.sizes):
        inside = [places[node][1] for node in graph if places[node][0] == k]
        assert inside == list(range(len(inside)))
        assert net.relays[k].tolist() == list(range(len(inside), size))


def test_one_line_of_relays_serves_all_edges_of_a_node():
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("a", "d"), ("a", "e"), ("a", "c")])
    found = tg.layering(graph)
    assert found.topology.sizes == (1, 2, 2, 2, 1)
    assert found.names == (("a",), ("b", "a"), ("c", "a"), ("d", "a"), ("e",))
    assert found.topology.nnz == 4 + 3 + 3  # the path, the line, and its three exits


def test_isolated_nodes_are_inputs():
    graph = nx.DiGraph([("a", "b")])
    graph.add_node("z")
    found = tg.layering(graph)
    assert found.places == {"a": (0, 0), "z": (0, 1), "b": (1, 0)}
    assert found.topology.sizes == (2, 1)


def test_a_large_graph():
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(0, 3000, (8000, 2)), axis=1)
    graph = nx.DiGraph(ends[ends[:, 0] < ends[:, 1]].tolist())
    net = tg.from_networkx(graph)
    assert len(net) == nx.dag_longest_path_length(graph)
    inputs = [node for node in graph if not graph.in_degree(node)]
    outputs = [node for node in graph if not graph.out_degree(node)]
    assert (net.sizes[0], net.sizes[-1]) == (len(inputs), len(outputs))


def test_given_layers_are_taken_as_they_stand():
    graph = nx.DiGraph()
    graph.add_node("out", layer=3)
    graph.add_node("in", layer=np.int64(0))
    graph.add_node("early end", layer=1)
    graph.add_node("late start", layer=2)
    graph.add_edges_from([("in", "out"), ("in", "early end"), ("late start", "out")])
    found = tg.layering(graph)
    assert found.names == (("in",), ("early end", "in"), ("late start", "in"), ("out",))
    assert [row.tolist() for row in found.topology.relays] == [[], [1], [1], []]


# ---- what is refused


def attributed(edges, **attributes):
    graph = nx.DiGraph(edges)
    for name, values in attributes.items():
        nx.set_node_attributes(graph, values, name)
    return graph


LONG = nx.cycle_graph(30, create_using=nx.DiGraph)
BAD = [
    (
        nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]),
        r"must be acyclic\. Got the cycle 'b' -> 'c' -> 'b'\.$",
    ),
    (nx.DiGraph([(1, 2), (2, 2), (2, 3)]), r"must be acyclic\. Got the cycle 2 -> 2\."),
    (LONG, r"must be acyclic\. Got the cycle 0 -> 1 -> 2 -> 3 -> \.\.\. 23 more \.\.\. -> 27 -> 28 -> 29 -> 0\.$"),
    (
        attributed([("a", "b"), ("b", "a")], layer={"a": 0, "b": 1}),
        r"must be acyclic\. Got the cycle 'a' -> 'b' -> 'a'\.$",
    ),
    (nx.Graph([(1, 2)]), r"must be directed, from inputs to outputs\. Got an undirected Graph\."),
    (nx.MultiGraph([(1, 2)]), r"must be directed, from inputs to outputs\. Got an undirected MultiGraph\."),
    (
        nx.MultiDiGraph([(1, 2), (1, 2)]),
        r"must have no parallel edges\. Got a MultiDiGraph; networkx\.DiGraph\(graph\) merges them\.",
    ),
    ([(1, 2)], r"must be a networkx DiGraph\. Got \[\(1, 2\)\]\."),
    (nx.DiGraph(), r"must have at least one edge\. Got 0 nodes and none\."),
    (nx.empty_graph(3, create_using=nx.DiGraph), r"must have at least one edge\. Got 3 nodes and none\."),
    (
        attributed([("a", "b")], layer={"a": 0}),
        r"must have an int >= 0 as the attribute 'layer' of every node, or of none\. Got None at 'b'\.",
    ),
    (attributed([("a", "b")], layer={"a": 0, "b": True}), r"or of none\. Got True at 'b'\."),
    (attributed([("a", "b")], layer={"a": -1, "b": 0}), r"or of none\. Got -1 at 'a'\."),
    (attributed([("a", "b")], layer={"a": 0.5, "b": 2**40}), r"or of none\. Got 0\.5 at 'a'\."),
    (
        attributed([("a", "b")], layer={"a": 1, "b": 1}),
        r"must have edges to later layers only\. Got 'a' -> 'b', from layer 1 to layer 1\.",
    ),
    (
        attributed([("a", "b")], layer={"a": 1, "b": 3}),
        r"must have a node in every layer, or an edge that passes it\. Got none in layer 0 of 4\.",
    ),
    (
        attributed([("a", "b")], relay={"a": True}),
        r"must have one in-edge at every node that is a relay\. Got 0 at 'a'\.",
    ),
    (attributed([(1, 3), (2, 3)], relay={3: True}), r"at every node that is a relay\. Got 2 at 3\."),
]


@pytest.mark.parametrize(("graph", "message"), BAD, ids=[re.sub(r"\W+", " ", message)[:40] for _, message in BAD])
@pytest.mark.parametrize("function", [tg.from_networkx, tg.layering], ids=["from_networkx", "layering"])
def test_what_is_no_acyclic_graph_is_refused(function, graph, message):
    with pytest.raises(SpecError, match=f"^The 'graph' parameter of {function.__name__} .*{message}"):
        function(graph)


def test_one_layer_of_nodes_is_refused():
    graph = nx.DiGraph()
    graph.add_nodes_from("ab", layer=0)
    with pytest.raises(SpecError, match=r"must have at least two layers\. Got 2 nodes in layer 0\.$"):
        tg.from_networkx(graph)


@given(dags(), st.randoms(use_true_random=False))
def test_the_cycle_that_is_named_is_one(graph, chance):
    tail, head = chance.choice(list(graph.edges))
    graph.add_edge(head, tail)
    with pytest.raises(SpecError) as caught:
        tg.from_networkx(graph)
    names = re.findall(r"'(n\d+)'", str(caught.value))
    if "more" not in str(caught.value):
        assert names[0] == names[-1]
        assert len(set(names)) == len(names) - 1
        assert nx.is_path(graph, names)


def test_relays_that_would_not_fit_in_memory_are_refused(monkeypatch):
    monkeypatch.setattr(tg.checks, "_available_bytes", lambda: 10**6)
    graph = nx.DiGraph()
    graph.add_node("a", layer=0)
    graph.add_node("b", layer=2**30)
    graph.add_edge("a", "b")
    with pytest.raises(SpecError, match=r"^The 'graph' parameter of layering must describe something that fits in"):
        tg.layering(graph)


def test_what_is_no_topology_has_no_graph():
    with pytest.raises(SpecError, match=r"^The 'net' parameter of topogen must be a Topology, a sequence of"):
        tg.to_networkx(3)
