"""The reduced topology against networkx, and against what reducing may not change."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen.testing import topologies


def on_a_path_by_networkx(net):
    graph = nx.DiGraph(
        ((k, int(i)), (k + 1, int(j))) for k, layer in enumerate(net) for i, j in zip(*layer.nonzero(), strict=True)
    )
    return {
        (a, b)
        for a, b in graph.edges
        if (a[0] == 0 or any(k == 0 for k, _ in nx.ancestors(graph, a)))
        and (b[0] == len(net) or any(k == len(net) for k, _ in nx.descendants(graph, b)))
    }


def assert_is_reduced(net):
    reduced = measures.effective_topology(net)
    kept = {
        ((k, int(i)), (k + 1, int(j))) for k, layer in enumerate(reduced) for i, j in zip(*layer.nonzero(), strict=True)
    }
    assert kept == on_a_path_by_networkx(net)
    assert reduced.sizes == net.sizes
    assert reduced.nnz == round(measures.effective_density(net) * net.nnz)
    assert measures.effective_topology(reduced) == reduced
    assert measures.path_counts(reduced) == measures.path_counts(net)
    assert all(layer.has_canonical_format and layer.dtype == bool for layer in reduced)


@given(topologies(max_layers=5))
def test_anything_is_reduced_as_by_networkx(net):
    assert_is_reduced(net)


@pytest.mark.parametrize("seed", range(20))
def test_sparse_chains_are_reduced_as_by_networkx(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 10, 6)
    net = tg.Topology([rng.random(shape) < 1.3 / max(shape) for shape in pairwise(sizes)])
    assert_is_reduced(net)


def test_a_lazy_topology_stays_lazy_and_nothing_is_changed():
    spec = tg.ErdosRenyi(sizes=[30, 30, 30, 30], density=0.05)
    net = tg.generate(spec, rng=1)
    before = [layer.toarray() for layer in net]
    reduced = measures.effective_topology(tg.generate(spec, rng=1, lazy=True))
    assert isinstance(reduced.layers, tg.LazyLayers)
    assert reduced == measures.effective_topology(net)
    assert reduced.spec is None
    assert reduced.nnz < net.nnz
    assert all(np.array_equal(layer.toarray(), then) for layer, then in zip(net, before, strict=True))


def test_relays_that_live_stay_relays():
    net = tg.Topology([[[1, 1, 0], [0, 0, 1]], [[1, 0], [0, 1], [0, 0]]], relays=[[], [0, 1, 2], []])
    assert [row.tolist() for row in measures.effective_topology(net).relays] == [[], [0, 1], []]
