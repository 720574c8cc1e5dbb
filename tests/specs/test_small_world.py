"""Small worlds: the ring against its formula and networkx, the moves counted and uniform."""

from __future__ import annotations

import re
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import topogen as tg
from topogen.errors import SpecError
from topogen.specs import _small_world
from topogen.testing import seeds, specs


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8, 1.0]))
def test_the_ring_is_what_its_formula_says(n_in, n_out, density):
    (layer,) = tg.generate(tg.BipartiteSmallWorld(sizes=[n_in, n_out], density=density, rewire=0.0))
    a, b = min(n_in, n_out), max(n_in, n_out)
    count = round(density * a * b)
    expected = np.zeros((b, a), dtype=bool)
    for j in range(b):
        degree = (j + 1) * count // b - j * count // b
        start = int(np.floor(j * a / b - degree / 2 + 1e-9))
        expected[j, [(start + t) % a for t in range(degree)]] = True
    np.testing.assert_array_equal(layer.toarray(), expected.T if n_out >= n_in else expected)
    degrees = expected.sum(axis=1)
    assert degrees.max() - degrees.min() <= 1
    assert expected.sum() == count


@pytest.mark.parametrize("rewire", [0.0, 0.3, 1.0])
def test_as_many_connections_move_as_asked_for(rewire):
    ring = tg.generate(tg.BipartiteSmallWorld(sizes=[60, 80], density=0.1, rewire=0.0))[0].toarray()
    spec = tg.BipartiteSmallWorld(sizes=[60, 80], density=0.1, rewire=rewire)
    (layer,) = tg.generate(spec, rng=0) if rewire else tg.generate(spec)
    assert spec.moved == (round(rewire * 480),)
    stayed = (layer.toarray() & ring).sum()
    # what moves may fall on places of the ring that are free again, with probability 1/10 at most
    assert 480 - spec.moved[0] <= stayed <= 480 - spec.moved[0] + 0.2 * spec.moved[0]
    assert layer.nnz == layer.toarray().sum() == 480


def test_moving_everything_is_uniform():
    times = np.zeros((3, 4), dtype=int)
    spec = tg.BipartiteSmallWorld(sizes=[3, 4], density=0.5, rewire=1.0)
    for seed in range(1000):
        times += tg.generate(spec, rng=seed)[0].toarray()
    assert times.sum() == 6000
    assert (np.abs(times - 500) < 4 * np.sqrt(1000 * 0.25)).all()


def test_a_moved_connection_lands_on_every_free_place_equally_often():
    places = np.zeros(12, dtype=int)
    rng = np.random.default_rng(0)
    keys = np.array([1, 2, 5, 9])
    for _ in range(3000):
        moved = _small_world._moved(keys, 1, 12, rng)
        assert moved.size == 4
        assert (np.diff(moved) > 0).all()
        places[np.setdiff1d(moved, keys)] += 1
    assert places[keys].sum() == 0
    assert stats.chisquare(np.delete(places, keys)).pvalue > 1e-3


@given(specs(tg.BipartiteSmallWorld), seeds())
def test_nothing_is_drawn_where_nothing_moves(spec, seed):
    assert spec.is_random is any(spec.moved)
    net = tg.generate(spec, rng=seed)
    assert [layer.toarray().sum() for layer in net] == list(spec.connections)


@pytest.mark.parametrize(("n", "neighbours"), [(1, 0), (5, 1), (9, 3), (9, 4), (20, 0)])
def test_without_moves_watts_strogatz_is_the_ring_lattice_of_networkx(n, neighbours):
    (layer,) = tg.generate(tg.WattsStrogatz(n=n, neighbours=neighbours, rewire=0.0))
    lattice = nx.watts_strogatz_graph(n, 2 * neighbours, 0.0)
    np.testing.assert_array_equal(layer.toarray().astype(int), nx.to_numpy_array(lattice) + np.eye(n))


@given(specs(tg.WattsStrogatz), seeds())
def test_watts_strogatz_is_symmetric_with_every_edge_at_its_first_end(spec, seed):
    for layer in tg.generate(replace(spec, extra=0), rng=seed):
        dense = layer.toarray()
        assert (dense == dense.T).all()
        assert dense.diagonal().all()
        assert dense.sum() == spec.n * (1 + 2 * spec.neighbours)
        assert (dense.sum(axis=1) >= 1 + spec.neighbours).all()


def test_a_small_world_is_clustered_and_short():
    # the property the model is named for, against networkx' own draws: same size, same share of moves
    def measured(dense):
        graph = nx.from_numpy_array(dense - np.eye(len(dense)))
        return nx.average_clustering(graph), nx.average_shortest_path_length(graph)

    ours = measured(tg.generate(tg.WattsStrogatz(n=200, neighbours=4, rewire=0.1), rng=0)[0].toarray().astype(int))
    theirs = [measured(nx.to_numpy_array(nx.watts_strogatz_graph(200, 8, 0.1, seed=s)) + np.eye(200)) for s in range(8)]
    for value, others in zip(ours, np.transpose(theirs), strict=True):
        assert abs(value - others.mean()) < 6 * others.std()


def test_chosen_edges_move_unless_their_end_is_joined_to_all():
    ring = tg.generate(tg.WattsStrogatz(n=100, neighbours=2, rewire=0.0))[0].toarray()
    moved = tg.generate(tg.WattsStrogatz(n=100, neighbours=2, rewire=0.5), rng=0)[0].toarray()
    gone = (ring & ~moved).sum() // 2
    assert 90 <= gone <= 100  # of 100 chosen; few fall on places that others have left
    assert tg.WattsStrogatz(n=9, neighbours=4, rewire=1.0).is_random is False


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (tg.BipartiteSmallWorld(sizes=[20, 30, 10], density=0.2, rewire=0.3), ["2b68daf49d53e334", "9363b23598a2cb46"]),
        (tg.WattsStrogatz(n=20, neighbours=3, rewire=0.3, layers=2), ["988314c33507a458", "1cd2c4e00f2df3c0"]),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: tg.BipartiteSmallWorld(sizes=[4, 5], density=1.5, rewire=0.1),
            "The 'density' parameter of BipartiteSmallWorld must be a finite number in [0, 1]. Got 1.5.",
        ),
        (
            lambda: tg.BipartiteSmallWorld(sizes=[4, 5], density=0.5, rewire=float("nan")),
            "The 'rewire' parameter of BipartiteSmallWorld must be a finite number in [0, 1]. Got nan.",
        ),
        (
            lambda: tg.WattsStrogatz(n=8, neighbours=4, rewire=0.1),
            "The 'neighbours' parameter of WattsStrogatz (n = 8) must be an int in [0, 3]. Got 4.",
        ),
        (
            lambda: tg.WattsStrogatz(n=0, neighbours=0, rewire=0.1),
            "The 'n' parameter of WattsStrogatz must be an int >= 1. Got 0.",
        ),
        (
            lambda: tg.WattsStrogatz(n=8, neighbours=3, rewire=-1),
            "The 'rewire' parameter of WattsStrogatz must be a finite number in [0, 1]. Got -1.",
        ),
        (
            lambda: tg.WattsStrogatz(n=8, neighbours=3, rewire=0.1, layers=0),
            "The 'layers' parameter of WattsStrogatz must be an int >= 1. Got 0.",
        ),
    ],
)
def test_impossible_values_are_refused(build, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        build()
