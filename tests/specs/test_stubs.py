"""The configuration model: degrees, distributions, and what its rows answer, against counting."""

from __future__ import annotations

from itertools import chain, combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import topogen as tg
from topogen.errors import GenerationError
from topogen.specs import _stubs


def is_canonical(pattern):
    rows = np.split(pattern.indices, pattern.indptr[1:-1])
    return pattern.dtype == bool and pattern.data.all() and all((np.diff(row) > 0).all() for row in rows)


def feasible(limit):
    return [
        (n_in, n_out, fan_in)
        for n_in in range(1, limit + 1)
        for n_out in range(1, limit + 1)
        for fan_in in range(1, n_in + 1)
        if n_out * fan_in % n_in == 0
    ]


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
        order = tuple(_stubs.shuffled_stubs(3, 2, rng).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 90  # 6! / 2!^3
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@given(st.integers(1, 70), st.integers(1, 5))
def test_shuffled_stubs_are_what_they_say(n, times):
    stubs = _stubs.shuffled_stubs(n, times, np.random.default_rng(0))
    assert sorted(stubs.tolist()) == [number for number in range(n) for _ in range(times)]


@pytest.mark.parametrize("rng", [np.random.default_rng(4), NoBits()], ids=["random", "ties"])
def test_blocks_change_nothing(monkeypatch, rng):
    """Ties are looked for block by block: those that lie across a border are ties too."""
    state = rng.bit_generator.state if hasattr(rng, "bit_generator") else None
    whole = _stubs.shuffled_stubs(7, 5, rng)
    if state is None:
        rng = NoBits()
    else:
        rng.bit_generator.state = state
    monkeypatch.setattr(_stubs, "_BLOCK", 2)
    np.testing.assert_array_equal(_stubs.shuffled_stubs(7, 5, rng), whole)


rows_of_columns = st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=6).filter(any)
regular_rows = st.integers(1, 9).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 6), min_size=width, max_size=width), min_size=1, max_size=6)
)


@given(rows_of_columns | regular_rows, st.data())
def test_rows_answer_as_lists_do(lists, data):
    """Of unequal lengths, empty ones among them, and of equal lengths, where they are those of a matrix."""
    indptr = np.append(0, np.cumsum([len(row) for row in lists]))
    rows = _stubs._Rows(indptr, np.array(list(chain(*lists)), dtype=np.int32), 7)
    chosen = data.draw(st.sets(st.integers(0, len(lists) - 1)))
    rows.sort(np.array(sorted(chosen), dtype=np.intp))
    expected = [sorted(row) if i in chosen else row for i, row in enumerate(lists)]
    assert rows.columns.tolist() == list(chain(*expected))
    rows.sort()
    lists = list(map(sorted, lists))
    assert rows.columns.tolist() == list(chain(*lists))
    owners = [i for i, row in enumerate(lists) for _ in row]
    assert rows.of(np.arange(len(owners))).tolist() == owners
    double = [e for e in range(1, len(owners)) if owners[e] == owners[e - 1] and rows.columns[e] == rows.columns[e - 1]]
    assert rows.doubles().tolist() == double
    asked = np.array(list(product(range(len(lists)), range(7))))
    assert rows.have(asked[:, 0], asked[:, 1]).tolist() == [j in lists[i] for i, j in asked.tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_biregular_has_exact_degrees_wherever_they_are_feasible(seed):
    cases = feasible(9)
    assert len(cases) > 100
    for n_in, n_out, fan_in in cases:
        pattern = _stubs.biregular(n_in, n_out, fan_in, np.random.default_rng(seed))
        dense = pattern.toarray()
        assert (dense.sum(axis=0) == fan_in).all()
        assert (dense.sum(axis=1) == n_out * fan_in // n_in).all()
        assert pattern.nnz == n_out * fan_in
        assert is_canonical(pattern)


def test_biregular_of_degree_one_is_a_uniform_permutation():
    rng = np.random.default_rng(1)
    counts = dict.fromkeys(permutations(range(4)), 0)
    for _ in range(2400):
        counts[tuple(_stubs.biregular(4, 4, 1, rng).indices.tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_biregular_reaches_every_graph_with_its_degrees():
    rng = np.random.default_rng(2)
    pairs = list(combinations(range(4), 2))
    every = {rows for rows in product(pairs, repeat=4) if (np.bincount(np.ravel(rows), minlength=4) == 2).all()}
    assert len(every) == 90  # 4 x 4 matrices of zeros and ones with all sums 2
    drawn = {tuple(map(tuple, _stubs.biregular(4, 4, 2, rng).indices.reshape(4, 2).tolist())) for _ in range(3000)}
    assert drawn == every


def test_biregular_gives_up_after_its_bound(monkeypatch):
    monkeypatch.setattr(_stubs, "_MAX_ROUNDS", 1)
    with pytest.raises(
        GenerationError,
        match=r"^No simple graph was found with the given degrees of 40 inputs and 40 outputs: "
        r"\d+ double connections are left after 1 rounds of swaps\.$",
    ):
        _stubs.biregular(40, 40, 20, np.random.default_rng(0))


def test_rows_of_different_lengths_lose_their_doubles_and_keep_their_degrees():
    fan_out = np.array([0, 5, 3, 0, 4, 0])
    indptr = np.append(0, np.cumsum(fan_out))
    for seed in range(50):
        rng = np.random.default_rng(seed)
        right = _stubs.shuffled_stubs(6, 2, rng)
        pattern = _stubs.without_doubles(indptr, right, (6, 6), rng)
        assert is_canonical(pattern)
        assert pattern.toarray().sum(axis=1).tolist() == fan_out.tolist()
        assert (pattern.toarray().sum(axis=0) == 2).all()


@pytest.mark.parametrize(
    ("sizes", "fan_in", "digest"),
    [
        ((64, 64), 31, "aaf67866ebabf6f0"),
        ((3000, 1000), 30, "c3f1825ddf982e05"),
        ((70_000, 70_000), 3, "50fb3ab574147a8c"),
    ],
)
def test_dense_and_large_layers_are_drawn_as_they_always_were(sizes, fan_in, digest):
    (layer,) = tg.generate(tg.RandomBiregular(sizes=sizes, fan_in=fan_in), rng=2026)
    assert tg.pattern_hash(layer, 1)[:16] == digest
