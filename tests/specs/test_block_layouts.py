"""The published block layouts: small-world and scale-free blocks, the identity, the full core, the extra edges."""

from __future__ import annotations

import re
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import seeds, specs

BLOCK = 32
SMALL_WORLDS = [tg.WattsStrogatz(n=20, neighbours=3, rewire=0.2), tg.WattsStrogatz(n=9, neighbours=1, rewire=1.0)]
SCALE_FREE = [tg.BarabasiAlbert(n=20, m=3), tg.BarabasiAlbert(n=9, m=1), tg.BarabasiAlbert(n=12, m=5, extra=7)]


def layout_of(spec, seed=0):
    """Return the blocks of Block(spec, 32), each of which must be all there or all absent."""
    dense = tg.generate(tg.Block(spec, BLOCK), rng=seed)[0].toarray()
    assert dense.shape == (spec.n * BLOCK, spec.n * BLOCK)
    blocks = dense.reshape(spec.n, BLOCK, spec.n, BLOCK).sum(axis=(1, 3))
    assert set(blocks.ravel().tolist()) <= {0, BLOCK**2}
    return (blocks > 0).astype(int)


@pytest.mark.parametrize("spec", SMALL_WORLDS + SCALE_FREE)
def test_every_block_is_joined_to_itself_and_the_layout_is_symmetric(spec):
    layout = layout_of(spec)
    assert layout.diagonal().all()
    np.testing.assert_array_equal(layout, layout.T)
    np.testing.assert_array_equal(layout, tg.generate(spec, rng=0)[0].toarray())


@pytest.mark.parametrize("spec", SMALL_WORLDS)
def test_small_world_blocks_are_as_many_as_networkx_draws(spec):
    graph = nx.watts_strogatz_graph(spec.n, 2 * spec.neighbours, spec.rewire, seed=0)
    assert layout_of(spec).sum() == nx.to_numpy_array(graph).sum() + spec.n


@pytest.mark.parametrize("spec", SCALE_FREE)
def test_the_first_blocks_of_a_scale_free_layout_are_full(spec):
    layout = layout_of(spec)
    assert layout[: spec.m, : spec.m].all()
    plain = layout_of(replace(spec, extra=0))
    assert (np.tril(plain, -1).sum(axis=1)[spec.m :] == spec.m).all()  # the edges that each block comes with
    # networkx' own graph begins with a star in place of the full core, both of which come with the first m neurons
    edges = nx.barabasi_albert_graph(spec.n, spec.m, seed=0).number_of_edges()
    assert (plain.sum() - spec.n) // 2 - spec.m * (spec.m - 1) // 2 == edges


def test_a_layout_without_moves_is_that_of_networkx():
    lattice = nx.to_numpy_array(nx.watts_strogatz_graph(10, 4, 0.0)) + np.eye(10)
    np.testing.assert_array_equal(layout_of(tg.WattsStrogatz(n=10, neighbours=2, rewire=0.0), seed=None), lattice)


@given(specs(tg.WattsStrogatz) | specs(tg.BarabasiAlbert), seeds())
def test_extra_edges_come_on_top(spec, seed):
    for plain, layer in zip(tg.generate(replace(spec, extra=0), rng=seed), tg.generate(spec, rng=seed), strict=True):
        before, after = plain.toarray(), layer.toarray()
        assert (after >= before).all()
        assert (after == after.T).all()
        assert after.sum() - before.sum() == 2 * spec.extra


def test_an_extra_edge_begins_where_there_are_fewest():
    # loops only: the second edge begins at one of the two that the first has not touched, and ends at the other with
    # probability 1/3; then all four are touched
    spec = tg.WattsStrogatz(n=4, neighbours=0, rewire=0.0, extra=2)
    degrees = [np.sort(tg.generate(spec, rng=seed)[0].sum(axis=0)).tolist() for seed in range(1500)]
    assert {tuple(row) for row in degrees} == {(2, 2, 2, 2), (1, 2, 2, 3)}
    assert abs(degrees.count([2, 2, 2, 2]) - 500) < 4 * np.sqrt(1500 * 2 / 9)


def test_extra_edges_can_fill_a_layer():
    full = tg.generate(tg.WattsStrogatz(n=7, neighbours=1, rewire=0.5, extra=14), rng=0)
    assert full[0].toarray().all()


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (tg.WattsStrogatz(n=20, neighbours=2, rewire=0.5, extra=9), "a36c4080fc67bf08"),
        (tg.BarabasiAlbert(n=20, m=2, extra=9), "91a68a27e25226f6"),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digest):
    assert tg.pattern_hash(tg.generate(spec, rng=2026)[0], 1)[:16] == digest


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: tg.WattsStrogatz(n=7, neighbours=1, rewire=0.5, extra=15),
            "The 'extra' parameter of WattsStrogatz (n = 7) must be an int in [0, 14]. Got 15.",
        ),
        (
            lambda: tg.BarabasiAlbert(n=4, m=3, extra=1),
            "The 'extra' parameter of BarabasiAlbert (n = 4) must be an int in [0, 0]. Got 1.",
        ),
        (
            lambda: tg.BarabasiAlbert(n=4, m=1, extra=-1),
            "The 'extra' parameter of BarabasiAlbert (n = 4) must be an int in [0, 3]. Got -1.",
        ),
    ],
)
def test_more_extra_edges_than_there_is_room_for_are_refused(build, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        build()
