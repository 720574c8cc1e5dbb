"""The functions that families share, against numpy's dense arithmetic and against counting."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from topogen import pattern_hash
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


@pytest.mark.parametrize(
    ("n_in", "n_out", "count"), [(40, 50, 900), (40, 50, 20), (300, 2, 100), (2, 300, 100), (9, 9, 70)]
)
def test_blocks_change_nothing(monkeypatch, n_in, n_out, count):
    whole = _patterns.uniform_count(n_in, n_out, count, np.random.default_rng(0))
    monkeypatch.setattr(_patterns, "_BLOCK", 3)
    in_blocks = _patterns.uniform_count(n_in, n_out, count, np.random.default_rng(0))
    np.testing.assert_array_equal(in_blocks.toarray(), whole.toarray())
    assert is_canonical(in_blocks)
    assert in_blocks.nnz == count


@pytest.mark.parametrize(
    ("sizes", "count", "digest"),
    [
        ((1000, 1000), 10_000, "cdeb8881a513d360"),
        ((300, 400), 50_000, "758a6f017a47e8d0"),
        ((100_000, 70_000), 30_000, "756ed73e9abe3968"),
    ],
)
def test_uniform_count_draws_what_it_always_drew(sizes, count, digest):
    pattern = _patterns.uniform_count(*sizes, count, np.random.default_rng(2026))
    assert pattern_hash(pattern, 1)[:16] == digest
