"""BipartiteReceptiveField: nearest partners, weights, and the neurons that the published centres lose."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.specs import _receptive_field
from topogen.testing import seeds, specs


def dead(sizes, density, centres):
    """How many neurons of the larger side have no connection, with spread 0."""
    spec = tg.BipartiteReceptiveField(sizes=sizes, density=density, spread=0.0, centres=centres)
    return max(len(neurons) for neurons in tg.measures.dead_neurons(tg.generate(spec)))


@pytest.mark.parametrize(
    ("sizes", "density", "lost"),
    [([784, 1000], 0.1, 118), ([784, 1000], 0.01, 208), ([1000, 784], 0.01, 208), ([1568, 3072], 0.01, 1474)],
)
def test_the_programs_centres_lose_neurons_and_even_ones_do_not(sizes, density, lost):
    assert dead(sizes, density, "even") == 0
    # degrees are shared out by another rule than the program's, which can cost one neuron more
    assert lost <= dead(sizes, density, "code") <= lost + 1


@given(st.integers(1, 10), st.integers(1, 10), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.sampled_from(["even", "code"]))
def test_spread_0_takes_the_nearest_and_the_smaller_index_on_a_tie(n_in, n_out, density, centres):
    spec = tg.BipartiteReceptiveField(sizes=[n_in, n_out], density=density, spread=0.0, centres=centres)
    (layer,) = tg.generate(spec)
    a, b = min(n_in, n_out), max(n_in, n_out)
    count = round(density * a * b)
    expected = np.zeros((a, b), dtype=bool)
    for i in range(a):
        centre = int(i * b / a + 1e-9) if centres == "even" else i * (b // a)
        by_distance = sorted(range(b), key=lambda j: (min(abs(j - centre), b - abs(j - centre)), j))
        expected[i, by_distance[: (i + 1) * count // a - i * count // a]] = True
    np.testing.assert_array_equal(layer.toarray(), expected if n_out >= n_in else expected.T)


def test_one_partner_is_drawn_by_its_weight():
    # 2000 neurons of the smaller side, 1 connection each, on 2000: their distances follow the weights
    spec = tg.BipartiteReceptiveField(sizes=[2000, 2000], density=1 / 2000, spread=0.4)
    layer = tg.generate(spec, rng=0)[0]
    apart = np.abs(layer.indices - np.arange(2000))
    distance = np.minimum(apart, 2000 - apart)
    weights = (1 + np.minimum(np.arange(2000), 2000 - np.arange(2000))) ** -1.5
    for d in range(4):
        share = weights[d] * (1 if d == 0 else 2) / weights.sum()
        assert abs((distance == d).mean() - share) < 4 * np.sqrt(share / 2000)


def test_two_partners_are_drawn_one_after_the_other_without_replacement():
    # on a ring of 3 with weights 1, w, w: the set of two lacks the centre with probability 2w/(1+2w) * w/(1+w)
    spec = tg.BipartiteReceptiveField(sizes=[1, 3], density=2 / 3, spread=0.5)
    lacks = np.mean([not tg.generate(spec, rng=seed)[0].toarray()[0, 0] for seed in range(3000)])
    w = 0.5
    expected = 2 * w / (1 + 2 * w) * w / (1 + w)
    assert abs(lacks - expected) < 4 * np.sqrt(expected / 3000)


def test_spread_1_is_uniform():
    spec = tg.BipartiteReceptiveField(sizes=[2, 5], density=0.4, spread=1.0)
    times = sum(tg.generate(spec, rng=seed)[0].toarray().astype(int) for seed in range(2000))
    assert (np.abs(times - 800) < 4 * np.sqrt(2000 * 0.24)).all()


@given(specs(tg.BipartiteReceptiveField), seeds())
def test_degrees_of_the_smaller_side_differ_by_one_at_most(spec, seed):
    for layer, count in zip(tg.generate(spec, rng=seed), spec.connections, strict=True):
        n_in, n_out = layer.shape
        degrees = layer.toarray().sum(axis=1 if n_out >= n_in else 0)
        assert degrees.sum() == count
        assert degrees.max() - degrees.min() <= 1


def test_the_chunks_do_not_change_the_draw(monkeypatch):
    spec = tg.BipartiteReceptiveField(sizes=[30, 40], density=0.2, spread=0.5)
    whole = tg.generate(spec, rng=0)
    monkeypatch.setattr(_receptive_field, "_CHUNK", 100)
    assert tg.generate(spec, rng=0) == whole


def test_a_spread_next_to_nothing_takes_the_nearest():
    spec = tg.BipartiteReceptiveField(sizes=[4, 8], density=1 / 8, spread=5e-324)
    assert tg.generate(spec, rng=0)[0].indices.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (
            tg.BipartiteReceptiveField(sizes=[20, 30, 10], density=0.2, spread=0.5),
            ["04c5e4a59d705dce", "7e4f4a6c1a7f7220"],
        ),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"density": 2}, "The 'density' parameter of {} must be a finite number in [0, 1]. Got 2."),
        ({"spread": -0.5}, "The 'spread' parameter of {} must be a finite number in [0, 1]. Got -0.5."),
        ({"spread": "0.5"}, "The 'spread' parameter of {} must be a finite number in [0, 1]. Got '0.5'."),
        ({"centres": "paper"}, "The 'centres' parameter of {} must be 'even' or 'code'. Got 'paper'."),
        ({"sizes": [4]}, "The 'sizes' parameter of {} must be a sequence of at least 2 ints >= 1. Got [4]."),
    ],
)
def test_impossible_values_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence.format('BipartiteReceptiveField'))}$"):
        tg.BipartiteReceptiveField(**({"sizes": [4, 8], "density": 0.5, "spread": 0.5} | arguments))
