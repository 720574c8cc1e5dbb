"""The functions that families share, against numpy's dense arithmetic and against counting."""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from topogen.errors import GenerationError
from topogen.specs import _patterns
from topogen.testing import patterns


def is_canonical(pattern):
    rows = np.split(pattern.indices, pattern.indptr[1:-1])
    return pattern.dtype == bool and pattern.data.all() and all((np.diff(row) > 0).all() for row in rows)


@given(st.integers(1, 9), st.integers(1, 9))
def test_full(n_in, n_out):
    pattern = _patterns.full(n_in, n_out)
    assert pattern.shape == (n_in, n_out)
    assert pattern.toarray().all()
    assert is_canonical(pattern)


@given(st.integers(1, 40), st.data())
def test_circulant_is_a_sum_of_rolled_identities(n, data):
    offsets = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=n)))
    signs = [offset - n * data.draw(st.integers(0, 1)) for offset in offsets]
    pattern = _patterns.circulant(n, np.array(signs, dtype=int))
    rolled = sum((np.roll(np.eye(n, dtype=int), t, axis=1) for t in signs), np.zeros((n, n), dtype=int))
    np.testing.assert_array_equal(pattern.toarray().astype(int), rolled)
    assert is_canonical(pattern)


@given(patterns(), st.integers(1, 3), st.integers(1, 3))
def test_kron_ones_is_numpys_kron(pattern, rows, columns):
    ones = np.ones((rows, columns), dtype=bool)
    for order, expected in (
        ("reference", np.kron(ones, pattern.toarray())),
        ("blocks", np.kron(pattern.toarray(), ones)),
    ):
        expanded = _patterns.kron_ones(pattern, rows, columns, order)
        np.testing.assert_array_equal(expanded.toarray(), expected)
        assert expanded.nnz == pattern.nnz * rows * columns
        assert is_canonical(expanded)


class NoBits:
    """A generator whose integers are all equal: whatever sorts by them sees nothing but ties."""

    def __init__(self):
        self._rng = np.random.default_rng(5)
        self.random = self._rng.random

    def integers(self, *_, size, **__):
        return np.zeros(size, np.uint64)


@pytest.mark.parametrize("rng", [np.random.default_rng(4), NoBits()], ids=["random", "ties"])
def test_shuffled_stubs_come_in_every_order_equally_often(rng):
    counts = {}
    for _ in range(2400):
        order = tuple(_patterns.shuffled_stubs(3, 2, rng).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 90  # 6! / 2!^3
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@given(st.integers(1, 70), st.integers(1, 5))
def test_shuffled_stubs_are_what_they_say(n, times):
    stubs = _patterns.shuffled_stubs(n, times, np.random.default_rng(0))
    assert sorted(stubs.tolist()) == [number for number in range(n) for _ in range(times)]


def test_uniform_count_knows_more_positions_than_32_bits():
    pattern = _patterns.uniform_count(2**17, 2**16, 20_000, np.random.default_rng(0))
    assert pattern.nnz == 20_000
    assert is_canonical(pattern)
    rows = np.repeat(np.arange(2**17), np.diff(pattern.indptr))
    for drawn, n in ((rows, 2**17), (pattern.indices, 2**16)):
        assert stats.kstest(drawn / n, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
def test_uniform_count_draws_every_set_of_positions_equally_often(count):
    rng = np.random.default_rng(count)
    sets = {frozenset(chosen): 0 for chosen in combinations(range(6), count)}
    for _ in range(150 * len(sets)):
        pattern = _patterns.uniform_count(2, 3, count, rng)
        sets[frozenset(np.flatnonzero(pattern.toarray()).tolist())] += 1
    assert min(sets.values()) > 0
    if len(sets) > 1:
        assert stats.chisquare(list(sets.values())).pvalue > 1e-3


def test_uniform_count_favours_no_position_where_draws_collide():
    # 900 of 2000 positions: the first round falls short or overshoots, both of which must be put right without bias
    rng = np.random.default_rng(0)
    hits = sum(_patterns.uniform_count(40, 50, 900, rng).toarray().ravel().astype(int) for _ in range(200))
    p = 900 / 2000
    # without replacement: the counts of the 2000 positions have one constraint, and this variance
    statistic = ((hits - 200 * p) ** 2).sum() / (200 * p * (1 - p)) * 1999 / 2000
    assert 1e-3 < stats.chi2.sf(statistic, 1999) < 1 - 1e-3


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_uniform_count_is_exact(n_in, n_out, data):
    count = data.draw(st.integers(0, n_in * n_out))
    pattern = _patterns.uniform_count(n_in, n_out, count, np.random.default_rng(0))
    assert pattern.shape == (n_in, n_out)
    assert pattern.nnz == pattern.toarray().sum() == count
    assert is_canonical(pattern)


def feasible(limit):
    return [
        (n_in, n_out, fan_in)
        for n_in in range(1, limit + 1)
        for n_out in range(1, limit + 1)
        for fan_in in range(1, n_in + 1)
        if n_out * fan_in % n_in == 0
    ]


@pytest.mark.parametrize("seed", range(3))
def test_biregular_has_exact_degrees_wherever_they_are_feasible(seed):
    cases = feasible(9)
    assert len(cases) > 100
    for n_in, n_out, fan_in in cases:
        pattern = _patterns.biregular(n_in, n_out, fan_in, np.random.default_rng(seed))
        dense = pattern.toarray()
        assert (dense.sum(axis=0) == fan_in).all()
        assert (dense.sum(axis=1) == n_out * fan_in // n_in).all()
        assert pattern.nnz == n_out * fan_in
        assert is_canonical(pattern)


def test_biregular_of_degree_one_is_a_uniform_permutation():
    rng = np.random.default_rng(1)
    counts = dict.fromkeys(permutations(range(4)), 0)
    for _ in range(2400):
        counts[tuple(_patterns.biregular(4, 4, 1, rng).indices.tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_biregular_reaches_every_graph_with_its_degrees():
    rng = np.random.default_rng(2)
    pairs = list(combinations(range(4), 2))
    every = {rows for rows in product(pairs, repeat=4) if (np.bincount(np.ravel(rows), minlength=4) == 2).all()}
    assert len(every) == 90  # 4 x 4 matrices of zeros and ones with all sums 2
    drawn = {tuple(map(tuple, _patterns.biregular(4, 4, 2, rng).indices.reshape(4, 2).tolist())) for _ in range(3000)}
    assert drawn == every


def test_biregular_gives_up_after_its_bound(monkeypatch):
    monkeypatch.setattr(_patterns, "_MAX_ROUNDS", 1)
    with pytest.raises(
        GenerationError,
        match=r"^No simple graph was found with the given degrees of 40 inputs and 40 outputs: "
        r"\d+ double connections are left after 1 rounds of swaps\.$",
    ):
        _patterns.biregular(40, 40, 20, np.random.default_rng(0))
