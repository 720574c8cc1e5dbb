"""Clustering and distances against networkx; the depth of path-connectedness against that of every prefix."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen.measures import _connectivity, _network
from topogen.testing import topologies


def undirected(net):
    graph = nx.Graph()
    graph.add_nodes_from((k, i) for k, n in enumerate(net.sizes) for i in range(n))
    for k, layer in enumerate(net):
        graph.add_edges_from(((k, int(i)), (k + 1, int(j))) for i, j in zip(*layer.nonzero(), strict=True))
    return graph


def random_chain(seed, connections=2.5):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 13, 6)
    return tg.Topology([rng.random(shape) < connections / max(shape) for shape in pairwise(sizes)])


def assert_clustering_agrees_with_networkx(net):
    graph = undirected(net)
    coefficient = measures.clustering(net)
    assert type(coefficient) is Fraction
    assert float(coefficient) == pytest.approx(nx.bipartite.robins_alexander_clustering(graph), abs=1e-15)
    latapy = nx.bipartite.latapy_clustering(graph, mode="dot")
    local = measures.local_clustering(net)
    assert [values.shape for values in local] == [(n,) for n in net.sizes]
    for k, values in enumerate(local):
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, [latapy[k, i] for i in range(net.sizes[k])], rtol=0, atol=1e-14)


def assert_distances_agree_with_networkx(net):
    lengths = Counter(
        distance for _, row in nx.all_pairs_shortest_path_length(undirected(net)) for distance in row.values()
    )
    del lengths[0]
    ordered = lengths.total()
    found = measures.distances(net)
    assert (found.longest, found.pairs) == (max(lengths, default=0), ordered // 2)
    assert {type(found.longest), type(found.pairs)} == {int}
    assert found.mean == (Fraction(sum(d * n for d, n in lengths.items()), ordered) if ordered else 0)


@given(topologies(max_layers=4))
def test_anything_clusters_as_networkx_says(net):
    assert_clustering_agrees_with_networkx(net)


@given(topologies(max_layers=4))
def test_anything_is_as_far_apart_as_networkx_says(net):
    assert_distances_agree_with_networkx(net)


@pytest.mark.parametrize("seed", range(20))
def test_sparse_chains_agree_with_networkx(seed, monkeypatch):
    net = random_chain(seed)
    assert_clustering_agrees_with_networkx(net)
    assert_distances_agree_with_networkx(net)
    monkeypatch.setattr(_network, "_BLOCK_PATHS", 1)  # one neuron at a time
    monkeypatch.setattr(_network, "_BLOCK_BYTES", 1)  # one word at a time
    assert_clustering_agrees_with_networkx(net)
    assert_distances_agree_with_networkx(net)


def test_the_mean_distance_of_a_connected_graph_is_that_of_networkx():
    net = tg.generate(tg.RadixNet(systems=[[2, 3, 4], [24]]))
    graph = undirected(net)
    found = measures.distances(net)
    assert float(found.mean) == pytest.approx(nx.average_shortest_path_length(graph), rel=1e-14)
    assert found.longest == nx.diameter(graph)
    assert found.pairs == len(graph) * (len(graph) - 1) // 2


def test_more_neurons_than_a_word_holds(monkeypatch):
    net = tg.generate(tg.RadixNet(systems=[[5, 14]]))  # 210 neurons: three words and 18 bits
    assert_distances_agree_with_networkx(net)
    monkeypatch.setattr(_network, "_BLOCK_BYTES", 8 * 210)
    assert_distances_agree_with_networkx(net)
    ring = np.zeros((80, 80))
    ring[:20, :20] = np.eye(20) + np.roll(np.eye(20), 1, axis=1)  # the last words are those of lonely neurons
    assert_distances_agree_with_networkx(tg.Topology([ring]))


@pytest.mark.parametrize("shape", [(2, 2), (5, 3), (40, 70)])
def test_a_dense_layer_is_as_clustered_as_can_be(shape):
    net = tg.generate(tg.Dense(sizes=shape))
    assert measures.clustering(net) == 1
    assert [set(values.tolist()) for values in measures.local_clustering(net)] == [{1.0}, {1.0}]


def test_the_southern_women():
    graph = nx.davis_southern_women_graph()
    layer = nx.bipartite.biadjacency_matrix(graph, graph.graph["top"], graph.graph["bottom"])
    assert round(float(measures.clustering(layer)), 3) == 0.468  # as networkx documents it
    assert_clustering_agrees_with_networkx(tg.Topology([layer]))
    assert float(measures.distances(layer).mean) == pytest.approx(nx.average_shortest_path_length(graph), rel=1e-14)


def test_nothing_that_closes_and_nothing_that_is_joined():
    triangle = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]  # girth 6
    assert measures.clustering(triangle) == 0
    empty = np.zeros((3, 4))
    assert measures.clustering(empty) == 0
    assert [values.tolist() for values in measures.local_clustering(empty)] == [[0.0] * 3, [0.0] * 4]
    assert measures.distances(empty) == (0, 0, 0)


def first_path_connected_prefix(net):
    return next((k for k in range(1, len(net) + 1) if measures.is_path_connected(net[:k])), None)


@given(topologies(max_layers=5))
def test_path_connected_depth_is_that_of_the_first_such_prefix(net):
    assert measures.path_connected_depth(net) == first_path_connected_prefix(net)


@pytest.mark.parametrize("seed", range(40))
def test_path_connected_depth_of_chains_in_one_sweep_and_in_many(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    net = tg.Topology([rng.random((130, 130)) < 0.03 for _ in range(7)])
    depth = first_path_connected_prefix(net)
    assert measures.path_connected_depth(net) == depth
    monkeypatch.setattr(_connectivity, "_BLOCK_BYTES", 1)  # 64 inputs at a time
    assert measures.path_connected_depth(net) == depth


def test_inputs_of_different_sweeps_may_spread_at_different_speeds(monkeypatch):
    monkeypatch.setattr(_connectivity, "_BLOCK_BYTES", 1)
    shift = np.roll(np.eye(128), 1, axis=1)
    first_half = shift.copy()
    first_half[:64] = 1
    assert measures.path_connected_depth([first_half, np.roll(np.eye(128), 64, axis=1), np.ones((128, 128))]) == 3
    assert measures.path_connected_depth([shift, np.ones((128, 128)), shift]) == 2
    assert measures.path_connected_depth([np.ones((128, 128)), np.zeros((128, 5)), shift[:5]]) == 1
    assert measures.path_connected_depth([shift, shift]) is None


@pytest.mark.parametrize("slow", range(0, 128, 16))
def test_the_slowest_input_tells_the_depth_in_whatever_sweep_it_is(slow, monkeypatch):
    monkeypatch.setattr(_connectivity, "_BLOCK_BYTES", 1)
    eye, everything = np.eye(128), np.ones((128, 128))
    nearly_all = everything - eye
    nearly_all[slow] = eye[slow]
    assert measures.path_connected_depth([eye, nearly_all, eye + np.roll(eye, 1, axis=1), everything]) == 4


def test_path_connected_depth_visits_no_layer_behind_the_answer():
    def build(k):
        assert k < 2, f"layer {k} was built"
        return np.ones((4, 4)) if k else np.eye(4)

    assert measures.path_connected_depth(tg.Topology(tg.LazyLayers([4] * 6, build))) == 2
