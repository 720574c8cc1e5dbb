"""Scale-free layers: Barabasi-Albert against its definition and networkx, BSF's weighted draw against arithmetic."""

from __future__ import annotations

import re
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

import topogen as tg
from topogen.errors import SpecError
from topogen.specs import _scale_free
from topogen.testing import seeds, specs


@given(specs(tg.BarabasiAlbert), seeds())
def test_every_neuron_comes_with_m_edges_to_earlier_ones(spec, seed):
    for layer in tg.generate(replace(spec, extra=0), rng=seed):
        dense = layer.toarray()
        assert (dense == dense.T).all()
        assert dense.diagonal().all()
        assert dense[: spec.m, : spec.m].all()
        assert (np.tril(dense, -1).sum(axis=1)[spec.m :] == spec.m).all()
        assert dense[spec.m, : spec.m].all()


def test_the_third_neuron_is_joined_by_degree():
    # n = 4, m = 1: edges 1-0, then 2 to 0 or 1 by 1/2, then 3 by degree: to 0 with 1/2 (2/4 or 1/4, by what 2 took)
    times = np.zeros((4, 4), dtype=int)
    for seed in range(4000):
        times += tg.generate(tg.BarabasiAlbert(n=4, m=1), rng=seed)[0].toarray()
    for row, expected in ((2, [1 / 2, 1 / 2]), (3, [3 / 8, 3 / 8, 1 / 4])):
        assert stats.chisquare(times[row, :row], np.array(expected) * 4000).pvalue > 1e-3


def test_hubs_are_as_large_as_those_of_networkx():
    def largest(degrees):
        return np.sort(degrees)[::-1][:10].mean()

    ours = [largest(_scale_free._degrees(1000, 3, np.random.default_rng(s))) for s in range(20)]
    theirs = [largest([d for _, d in nx.barabasi_albert_graph(1000, 3, seed=s).degree]) for s in range(20)]
    assert abs(np.mean(ours) - np.mean(theirs)) < 6 * np.std(theirs) / np.sqrt(20) + 0.05 * np.mean(theirs)


@pytest.mark.parametrize("race", [0, 10**9])
def test_pairs_are_drawn_by_weight_whichever_way(race, monkeypatch):
    monkeypatch.setattr(_scale_free, "_RACE", race)
    left, right = np.array([1, 2]), np.array([1, 3])
    weights = np.array([1, 3, 2, 6]) / 12
    expected = {}
    for first in range(4):
        for second in set(range(4)) - {first}:
            pair = tuple(sorted((first, second)))
            expected[pair] = expected.get(pair, 0) + weights[first] * weights[second] / (1 - weights[first])
    rng = np.random.default_rng(0)
    drawn = [tuple(_scale_free._weighted_pairs(left, right, 2, rng).tolist()) for _ in range(6000)]
    times = [drawn.count(pair) for pair in expected]
    assert sum(times) == 6000
    assert stats.chisquare(times, np.array(list(expected.values())) * 6000).pvalue > 1e-3


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_the_count_is_exact_and_degrees_are_spread_further_than_at_random(density):
    (layer,) = tg.generate(tg.BipartiteScaleFree(sizes=[300, 400], density=density), rng=0)
    assert layer.nnz == layer.toarray().sum() == round(density * 120_000)
    for axis in (0, 1):
        degrees = layer.toarray().sum(axis=axis)
        if density < 1:  # the variance of a random layer is the mean at most
            assert degrees.var() > 2 * degrees.mean()


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (tg.BarabasiAlbert(n=20, m=3, layers=2), ["e059a982c8e6d6f7", "ecf64ba0f2d44bf2"]),
        (tg.BipartiteScaleFree(sizes=[20, 30, 10], density=0.2), ["f85ed0f5d7b69649", "83c8495f2942c375"]),
        (tg.BipartiteScaleFree(sizes=[30, 40], density=0.02), ["3cf0dcb8a1c25d35"]),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: tg.BarabasiAlbert(n=1, m=1), "The 'n' parameter of BarabasiAlbert must be an int >= 2. Got 1."),
        (
            lambda: tg.BarabasiAlbert(n=8, m=8),
            "The 'm' parameter of BarabasiAlbert (n = 8) must be an int in [1, 7]. Got 8.",
        ),
        (
            lambda: tg.BarabasiAlbert(n=8, m=2.0),
            "The 'm' parameter of BarabasiAlbert (n = 8) must be an int in [1, 7]. Got 2.0.",
        ),
        (
            lambda: tg.BarabasiAlbert(n=8, m=2, layers=0),
            "The 'layers' parameter of BarabasiAlbert must be an int >= 1. Got 0.",
        ),
        (
            lambda: tg.BipartiteScaleFree(sizes=[4, 5], density=1.5),
            "The 'density' parameter of BipartiteScaleFree must be a finite number in [0, 1]. Got 1.5.",
        ),
        (
            lambda: tg.BipartiteScaleFree(sizes=[4, 0], density=0.5),
            "The 'sizes[1]' parameter of BipartiteScaleFree must be an int >= 1. Got 0.",
        ),
    ],
)
def test_impossible_values_are_refused(build, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        build()
