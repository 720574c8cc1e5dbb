"""Random subsets: every one of the size equally often, rows independent, whatever the density."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from topogen.specs import _subsets


@given(st.integers(0, 8), st.integers(1, 12), st.data())
def test_rows_are_sorted_and_distinct(n_rows, n, data):
    size = data.draw(st.integers(0, n))
    drawn = _subsets.subsets(n_rows, n, size, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert drawn.shape == (n_rows, size)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert ((drawn >= 0) & (drawn < n)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_every_subset_comes_up_equally_often(size):
    sets = list(combinations(range(6), size))
    drawn = _subsets.subsets(300 * len(sets), 6, size, np.random.default_rng(size))
    _, times = np.unique(drawn, axis=0, return_counts=True)
    assert len(times) == len(sets)
    assert stats.chisquare(times).pvalue > 1e-3


def test_neighbouring_rows_are_independent():
    drawn = _subsets.subsets(20_000, 4, 2, np.random.default_rng(0))
    label = np.unique(drawn, axis=0, return_inverse=True)[1]
    table = np.zeros((6, 6))
    np.add.at(table, (label[::2], label[1::2]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_random_columns_are_random_rows_seen_from_the_other_side():
    rows = _subsets.random_rows(5, 9, 3, np.random.default_rng(4))
    columns = _subsets.random_columns(9, 5, 3, np.random.default_rng(4))
    np.testing.assert_array_equal(rows.toarray(), columns.toarray().T)
    assert (rows.toarray().sum(axis=1) == 3).all()
