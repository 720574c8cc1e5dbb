"""Girth against networkx."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen.testing import topologies


def undirected(net):
    graph = nx.Graph()
    for k, layer in enumerate(net):
        graph.add_edges_from(((k, int(i)), (k + 1, int(j))) for i, j in zip(*layer.nonzero(), strict=True))
    return graph


@given(topologies(max_layers=4))
def test_anything_agrees_with_networkx(net):
    assert measures.girth(net) == nx.girth(undirected(net))


@pytest.mark.parametrize("seed", range(20))
def test_sparse_chains_agree_with_networkx(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 20, 3)
    net = tg.Topology([rng.random(shape) < 1.4 / max(shape) for shape in zip(sizes[:-1], sizes[1:], strict=True)])
    assert measures.girth(net) == nx.girth(undirected(net))


@pytest.mark.parametrize("n", [2, 3, 5, 50])
def test_a_ring_is_its_own_cycle_and_a_path_has_none(n):
    ring = np.eye(n) + np.roll(np.eye(n), 1, axis=1)
    assert measures.girth(ring) == 2 * n
    assert type(measures.girth(ring)) is int
    ring[-1, 0] = 0
    assert measures.girth(ring) == math.inf


def test_a_long_cycle_beside_a_short_one():
    ring = np.eye(20) + np.roll(np.eye(20), 1, axis=1)
    both = np.block([[ring, np.zeros((20, 3))], [np.zeros((3, 20)), np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])]])
    assert measures.girth(both) == 6


@pytest.mark.parametrize(
    ("graph", "girth"),
    [(nx.heawood_graph(), 6), (nx.LCF_graph(30, [-13, -9, 7, -7, 9, 13], 5), 8), (nx.cubical_graph(), 4)],
    ids=["Heawood", "Tutte-Coxeter", "cube"],
)
def test_cages(graph, girth):
    left, right = nx.bipartite.sets(graph)
    assert measures.girth(nx.bipartite.biadjacency_matrix(graph, sorted(left), sorted(right))) == girth


def test_no_connections_no_cycle():
    assert measures.girth(np.zeros((3, 4))) == math.inf
