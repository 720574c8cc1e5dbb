"""BlockDiagonal and NOfM, each against its definition in dense numpy."""

from __future__ import annotations

import re
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import seeds, specs


@given(specs(tg.BlockDiagonal))
def test_block_diagonal_is_a_direct_sum_of_dense_blocks(spec):
    for k, layer in enumerate(tg.generate(spec)):
        g = spec.groups[k]
        n_in, n_out = layer.shape
        block = np.ones((n_in // g, n_out // g), dtype=int)
        np.testing.assert_array_equal(layer.toarray().astype(int), np.kron(np.eye(g, dtype=int), block))


@given(specs(tg.BlockDiagonal))
def test_components_are_those_that_networkx_counts(spec):
    graph = nx.Graph()
    for k, layer in enumerate(tg.generate(spec)):
        graph.add_edges_from(((k, int(i)), (k + 1, int(j))) for i, j in np.argwhere(layer.toarray()))
    claimed = {claim.name: claim.bound for claim in spec.claims()}
    assert claimed["components"] == nx.number_connected_components(graph)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_blocks_that_do_not_fit_are_refused_with_the_nearest_that_do(n_in, n_out, blocks):
    fits = [g for g in range(1, min(n_in, n_out) + 1) if n_in % g == n_out % g == 0]
    if blocks in fits:
        assert tg.BlockDiagonal(sizes=[n_in, n_out], blocks=blocks).groups == (blocks,)
        return
    with pytest.raises(SpecError) as refusal:
        tg.BlockDiagonal(sizes=[n_in, n_out], blocks=blocks)
    if blocks <= min(n_in, n_out):
        nearest = int(re.search(r"Got \d+; the nearest that does is (\d+)\.$", str(refusal.value))[1])
        assert nearest in fits
        assert abs(nearest - blocks) == min(abs(g - blocks) for g in fits)


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        (
            5,
            "The 'blocks' parameter of BlockDiagonal must divide both sizes of layer 0, 12 and 18. Got 5; the nearest "
            "that does is 6.",
        ),
        (
            [6, 4],
            "The 'blocks[1]' parameter of BlockDiagonal must divide both sizes of layer 1, 18 and 6. Got 4; the "
            "nearest that does is 3.",
        ),
        (7, "The 'blocks' parameter of BlockDiagonal (layer 1, 18 x 6) must be an int in [1, 6]. Got 7."),
        (0, "The 'blocks' parameter of BlockDiagonal must be an int >= 1. Got 0."),
        ([2], "The 'blocks' parameter of BlockDiagonal must be an int or a sequence of 2 ints, one a layer. Got [2]."),
    ],
)
def test_impossible_blocks_are_refused(blocks, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.BlockDiagonal(sizes=[12, 18, 6], blocks=blocks)


@given(specs(tg.NOfM), seeds())
def test_every_output_takes_n_of_every_m_inputs(spec, seed):
    for layer in tg.generate(spec, rng=seed):
        n_in, n_out = layer.shape
        groups = layer.toarray().T.reshape(n_out, n_in // spec.m, spec.m)
        assert (groups.sum(axis=2) == spec.n).all()


def test_the_claim_about_groups_sees_a_connection_that_left_its_group():
    spec = tg.NOfM(sizes=[8, 3], n=2, m=4)
    pattern = tg.generate(spec, rng=0)[0].toarray()
    column = pattern[:, 1]
    column[np.flatnonzero(column[:4])[0]] = False
    column[4 + np.flatnonzero(~column[4:])[0]] = True
    report = tg.verify([pattern], claims=spec.claims())
    assert report["fan-in"].holds is True
    assert report["connections per 4 inputs"].holds is False
    assert report["connections per 4 inputs"].measured == (tg.measures.Range(1, 3),)


def test_groups_beyond_the_last_full_one_are_measured_too():
    claim = tg.NOfM(sizes=[4, 1]).claims()[-1]
    assert claim.measure.of(tg.as_topology([np.ones((6, 2))])) == (tg.measures.Range(2, 4),)


def test_every_choice_is_equally_likely():
    (layer,) = tg.generate(tg.NOfM(sizes=[4, 6000], n=2, m=4), rng=0)
    chosen = dict.fromkeys(combinations(range(4), 2), 0)
    for column in layer.toarray().T:
        chosen[tuple(np.flatnonzero(column).tolist())] += 1
    assert stats.chisquare(list(chosen.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (tg.NOfM(sizes=[16, 12, 5]), ["fadf4af875f13b38", "0009b1929b842690"]),
        (tg.NOfM(sizes=[16, 8], n=6, m=8), ["0294c7487111e1bc"]),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"sizes": [8, 10, 3]},
            "The 'sizes[1]' parameter of NOfM must be a multiple of m = 4, the groups of inputs. Got 10. "
            "The nearest is 12.",
        ),
        (
            {"sizes": [1, 3]},
            "The 'sizes[0]' parameter of NOfM must be a multiple of m = 4, the groups of inputs. Got 1. "
            "The nearest is 4.",
        ),
        ({"sizes": [8, 3], "n": 5}, "The 'n' parameter of NOfM (m = 4) must be an int in [1, 4]. Got 5."),
        ({"sizes": [8, 3], "n": 0}, "The 'n' parameter of NOfM (m = 4) must be an int in [1, 4]. Got 0."),
        ({"sizes": [8, 3], "m": 0}, "The 'm' parameter of NOfM must be an int >= 1. Got 0."),
        ({"sizes": [8, 3], "n": 2.0}, "The 'n' parameter of NOfM (m = 4) must be an int in [1, 4]. Got 2.0."),
    ],
)
def test_impossible_groups_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.NOfM(**arguments)
