"""Choosing places: exact numbers, ties by index, and lots that are fair."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from topogen_torch.controllers._places import (
    best,
    best_within,
    count_of,
    drawn_empty,
    largest_remainders,
    nearest_to_zero,
    rounded_down,
    whole_units,
    without,
    worst,
)


@given(st.lists(st.integers(-3, 3), max_size=20), st.integers(0, 25))
def test_best_is_a_sort_by_score_and_index(scores, count):
    expected = sorted(sorted(range(len(scores)), key=lambda k: (-scores[k], k))[:count])
    assert best(np.array(scores, float), count).tolist() == expected


@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([1, 2, 5])), max_size=20), st.integers(0, 60))
def test_best_within_takes_one_after_the_other_as_long_as_they_fit(rows, budget):
    scores, sizes = (np.array([row[k] for row in rows], dtype) for k, dtype in ((0, float), (1, np.int64)))
    expected, left = [], budget
    for k in sorted(range(len(rows)), key=lambda k: (-scores[k], k)):
        if sizes[k] <= left:
            expected.append(k)
            left -= sizes[k]
    assert best_within(scores, sizes, budget).tolist() == sorted(expected)


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 4, 9])), min_size=1, max_size=6), st.integers(1, 100))
def test_whole_units_have_the_weights_of_the_density(rows, percent):
    possible, sizes = ([row[k] for row in rows] for k in (0, 1))
    counts = whole_units(percent / 100, possible, sizes)
    weights = sum(count * size for count, size in zip(counts, sizes, strict=True))
    exact = Fraction(percent, 100) * sum(a * b for a, b in rows)
    assert all(0 <= count <= most for count, most in zip(counts, possible, strict=True))
    assert abs(weights - exact) < max(sizes)
    if sum(a for a, b in rows if b == 1) >= 9 * len(rows) and percent <= 50:
        assert weights == round(exact)
    assert whole_units(1.0, possible, sizes) == possible


@given(st.integers(1, 10**9).flatmap(lambda whole: st.tuples(st.integers(1, whole), st.just(whole))))
def test_a_density_is_named_from_below(pair):
    part, whole = pair
    named = Fraction(rounded_down(part, whole))
    assert Fraction(part, whole) * Fraction(99999, 100000) < named <= Fraction(part, whole)


@given(st.lists(st.integers(-3, 3), max_size=20), st.integers(0, 20))
def test_worst_are_those_that_are_not_best(scores, count):
    scores, count = np.array(scores, float), min(count, len(scores))
    chosen = worst(scores, count)
    assert chosen.dtype == np.bool_
    np.testing.assert_array_equal(np.flatnonzero(~chosen), best(scores, len(scores) - count))


NUMBERS = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 0.5, -0.5, 1.0, -1.0, np.inf, -np.inf])


@given(st.lists(NUMBERS, max_size=25), st.floats(0, 1, exclude_max=True), st.sampled_from([np.float32, np.float64]))
def test_nearest_to_zero_are_the_ends_of_two_sorts(numbers, fraction, dtype):
    """-0 is no less than 0; of equal ones the last go."""
    numbers = np.array(numbers, dtype)
    expected = set()
    for side in (numbers >= 0, numbers < 0):
        own = sorted(np.flatnonzero(side), key=lambda k: (abs(numbers[k]), -k))
        expected |= set(own[: int(fraction * len(own))])
    assert set(np.flatnonzero(nearest_to_zero(numbers, fraction))) == expected


@pytest.mark.parametrize(
    ("density", "possible", "count"), [(0.8, 1000, 800), (0.9, 1000, 900), (0.1, 266200, 26620), (0.5, 5, 2), (1, 7, 7)]
)
def test_a_density_is_the_decimal_that_was_written(density, possible, count):
    """``1000 - floor((1 - 0.9) * 1000)`` would be 901."""
    assert count_of(density, possible) == count


@given(st.lists(st.fractions(0, 50, max_denominator=30), min_size=1, max_size=8))
def test_largest_remainders_add_up(shares):
    counts = largest_remainders(shares)
    assert sum(counts) == round(sum(shares))
    assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))


def test_of_equal_remainders_the_first_is_rounded_up():
    assert largest_remainders([Fraction(1, 3)] * 3) == [1, 0, 0]


@given(st.integers(1, 60), st.data())
def test_drawn_places_are_empty_distinct_and_rising(possible, data):
    occupied = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=possible, max_size=possible)))
    count = data.draw(st.integers(0, possible - len(occupied)))
    drawn = drawn_empty(np.random.default_rng(data.draw(st.integers(0, 99))), occupied, possible, count)
    assert len(drawn) == count
    assert (np.diff(drawn) > 0).all()
    assert not np.isin(drawn, occupied).any()
    assert ((drawn >= 0) & (drawn < possible)).all()


@pytest.mark.parametrize("count", [2, 5])
def test_every_set_of_empty_places_is_equally_likely(count):
    """Both ways of drawing, few and most of the empty places: chi-squared over all sets, fixed seed."""
    rng, occupied, possible = np.random.default_rng(0), np.array([0, 3, 4, 9]), 11
    drawn = [tuple(drawn_empty(rng, occupied, possible, count)) for _ in range(6000)]
    sets, seen = np.unique(drawn, axis=0, return_counts=True)
    assert len(sets) == 21  # binomial(7, 2) and binomial(7, 5)
    assert stats.chisquare(seen).pvalue > 1e-3


def test_a_few_places_of_many_cost_little():
    """A dense mask of this layer would take 10^18 bytes."""
    drawn = drawn_empty(np.random.default_rng(0), np.arange(1000), 10**18, 50)
    assert len(np.unique(drawn)) == 50


def test_without():
    assert without(np.array([3, 5, 8]), np.array([0, 2])).tolist() == [5]
    assert without(np.array([3, 5, 8]), np.array([True, False, True])).tolist() == [5]
