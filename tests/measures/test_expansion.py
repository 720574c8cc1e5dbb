"""Certificates of expansion against all subsets of small layers."""

from __future__ import annotations

import math
from itertools import chain, combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen import measures
from topogen.errors import SpecError
from topogen.testing import patterns

RING = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
CROOKED = [[1, 1], [0, 1]]
FANO = [[int((line - point) % 7 in (1, 2, 4)) for line in range(7)] for point in range(7)]
LAYERS = [
    RING,
    FANO,
    tg.generate(tg.RandomBiregular(sizes=[8, 6], fan_in=4), rng=0)[0].toarray(),
    tg.generate(tg.RandomBiregular(sizes=[6, 9], fan_in=2), rng=1)[0].toarray(),
    np.kron(np.eye(2), np.ones((3, 3))),  # in two pieces
    np.ones((4, 5)),
]


def subsets(n):
    return chain.from_iterable(combinations(range(n), size) for size in range(n + 1))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(np.shape(layer)))
def test_the_mixing_lemma_holds_for_all_pairs_of_sets(layer):
    layer = np.array(layer)
    (n_in, n_out), d_l = layer.shape, layer[0].sum()
    bounds = np.array([[measures.mixing_bound(layer, s, t) for t in range(n_out + 1)] for s in range(n_in + 1)])
    for inputs in subsets(n_in):
        arriving = layer[list(inputs)].sum(axis=0)
        for outputs in subsets(n_out):
            s, t = len(inputs), len(outputs)
            off = abs(arriving[list(outputs)].sum() - d_l * s * t / n_out)
            assert off <= bounds[s, t] + 1e-9
    assert bounds[0].max() == bounds[-1, -1] == 0


def test_the_mixing_lemma_is_attained_by_a_layer_in_two_pieces():
    """All 9 connections of a piece between 3 inputs and 3 outputs, where 4.5 are expected."""
    assert measures.mixing_bound(np.kron(np.eye(2), np.ones((3, 3))), 3, 3) == pytest.approx(9 - 4.5)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(np.shape(layer)))
def test_tanners_bound_holds_for_all_sets_and_is_attained(layer):
    layer = np.array(layer)
    n_in, n_out = layer.shape
    fewest = dict.fromkeys(range(1, n_in + 1), n_out)
    for inputs in subsets(n_in):
        if inputs:
            fewest[len(inputs)] = min(fewest[len(inputs)], np.count_nonzero(layer[list(inputs)].any(axis=0)))
    for s, found in fewest.items():
        assert measures.vertex_expansion_bound(layer, s) <= found + 1e-9
    assert measures.vertex_expansion_bound(layer, n_in) == pytest.approx(n_out)  # everything reaches everything


def conductance(layer):
    """The least share of connection ends that lead out of a set of neurons with at most half of the ends."""
    graph = nx.bipartite.from_biadjacency_matrix(tg.as_pattern(layer).astype(int))
    total = 2 * graph.number_of_edges()
    found = []
    for some in subsets(len(graph)):
        volume = sum(dict(graph.degree(some)).values())
        if 0 < volume <= total / 2:
            found.append(nx.cut_size(graph, some) / volume)
    return min(found)


@given(
    patterns(max_inputs=4, max_outputs=4).filter(
        lambda p: p.toarray().any(axis=0).all() and p.toarray().any(axis=1).all()
    )
)
def test_cheegers_inequality_holds_both_ways(pattern):
    low, high = measures.cheeger_bounds(pattern)
    assert low - 1e-9 <= conductance(pattern) <= high + 1e-9
    if nx.number_connected_components(nx.bipartite.from_biadjacency_matrix(pattern)) > 1:
        assert (low, high) == (0, 0)


def test_cheegers_inequality_of_a_ring():
    assert measures.cheeger_bounds(RING) == pytest.approx((0.25, 1.0))
    assert conductance(RING) == pytest.approx(1 / 3)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=3))
def test_paths_deviate_from_uniform_by_no_more_than_the_bound(seeds):
    layers = [tg.generate(tg.RandomBiregular(sizes=[9, 6], fan_in=6), rng=seed)[0].toarray() for seed in seeds]
    layers = [layer if k % 2 == 0 else layer.T for k, layer in enumerate(layers)]
    product = np.eye(9)
    for layer in layers:
        product = product @ layer / np.linalg.norm(layer, 2)
    deviation = np.linalg.norm(product - 1 / math.sqrt(math.prod(product.shape)), 2)
    bound = measures.path_deviation_bound(layers)
    assert deviation <= bound + 1e-9
    if bound < 1 / math.sqrt(math.prod(product.shape)):
        assert measures.is_path_connected(layers)


def test_one_layer_deviates_by_exactly_the_bound():
    assert measures.path_deviation_bound(FANO) == pytest.approx(math.sqrt(2) / 3)
    assert measures.path_deviation_bound([FANO, np.ones((7, 2))]) == 0
    assert measures.path_deviation_bound([FANO, np.eye(7)]) == pytest.approx(math.sqrt(2) / 3)


def test_no_bound_is_given_where_its_hypotheses_fail():
    """Three layers with unequal degrees, where the product of normalised values would be too small a bound."""
    for call in (
        lambda: measures.mixing_bound(CROOKED, 1, 1),
        lambda: measures.vertex_expansion_bound(CROOKED, 1),
        lambda: measures.path_deviation_bound([np.ones((2, 2)), CROOKED]),
    ):
        with pytest.raises(SpecError, match=r" must have biregular layers, .* Got layer [01] with fan-out 1\.\.2 and"):
            call()
    with pytest.raises(
        SpecError,
        match=r"^The 'x' parameter of cheeger_bounds must be a layer in which every neuron has a connection\. "
        r"Got 1 inputs and 2 outputs without\.$",
    ):
        measures.cheeger_bounds([[0, 0, 0], [1, 0, 0]])
    with pytest.raises(SpecError, match=r"^The 'x' parameter of cheeger_bounds must be one layer\. Got \(3, 3, 3\)\.$"):
        measures.cheeger_bounds([RING, RING])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: measures.mixing_bound(RING, 4, 1), r"'n_inputs' parameter of mixing_bound must be an int in \[0, 3\]"),
        (
            lambda: measures.mixing_bound(RING, 1, 4),
            r"'n_outputs' parameter of mixing_bound must be an int in \[0, 3\]",
        ),
        (lambda: measures.vertex_expansion_bound(RING, 0), r"vertex_expansion_bound must be an int in \[1, 3\]. Got 0"),
    ],
)
def test_sets_are_no_larger_than_their_side(call, sentence):
    with pytest.raises(SpecError, match=sentence):
        call()
