"""The graph kernels against dense products and Python integers."""

import threading

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from topogen.kernels import carry, predecessor_sums, predecessor_unions, successor_unions


@st.composite
def problems(draw):
    """Weights of shape (n_in, n_out), zeros where there is no connection, a row length and a seed."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    return (
        draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3))),
        draw(st.integers(1, 9)),
        draw(st.integers(0, 99)),
    )


def sums(weights, values, index=np.int32):
    layer = sp.csc_array(weights)
    out = np.full((weights.shape[1], values.shape[1]), -1, np.int64)
    predecessor_sums(layer.indptr.astype(index), layer.indices.astype(index), layer.data, values, out)
    return out


def unions(weights, values):
    layer = sp.csc_array(weights)
    out = np.full((weights.shape[1], values.shape[1]), 2**64 - 1, np.uint64)
    predecessor_unions(layer.indptr, layer.indices, values, out)
    return out


def unions_over_rows(weights, values):
    layer = sp.csr_array(weights)
    out = np.full((weights.shape[1], values.shape[1]), 2**64 - 1, np.uint64)
    successor_unions(layer.indptr, layer.indices, values, out)
    return out


def expected_unions(weights, values):
    rows = [np.bitwise_or.reduce(values[weights[:, j] != 0], axis=0) for j in range(weights.shape[1])]
    return np.array(rows, np.uint64)


@given(problems())
def test_sums_and_unions_over_predecessors(problem):
    weights, width, seed = problem
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**50, (len(weights), width))
    words = rng.integers(0, 2**64, (len(weights), width), np.uint64)
    np.testing.assert_array_equal(sums(weights, values), weights.T @ values)
    np.testing.assert_array_equal(unions(weights, words), expected_unions(weights, words))
    np.testing.assert_array_equal(unions_over_rows(weights, words), expected_unions(weights, words))


@pytest.mark.parametrize(("n_in", "width"), [(2**15, 150), (2**17, 65), (40, 200)])
def test_rows_wider_than_a_slice(n_in, width):
    rng = np.random.default_rng(0)
    weights = sp.random_array((n_in, 5), density=20 / n_in, rng=rng, data_sampler=lambda size: rng.integers(1, 4, size))
    values = np.arange(n_in * width).reshape(n_in, width)
    np.testing.assert_array_equal(sums(weights, values), weights.T @ values)
    words = values.astype(np.uint64)
    columns = weights.tocsc()
    predecessors = np.split(columns.indices, columns.indptr[1:-1])
    expected = [np.bitwise_or.reduce(words[rows], axis=0) for rows in predecessors]
    np.testing.assert_array_equal(unions(weights, words), expected)


def test_both_widths_of_indices():
    weights, values = np.array([[1, 0], [2, 3]]), np.array([[5, 6, 7], [1, 2, 3]])
    np.testing.assert_array_equal(sums(weights, values, np.int64), [[7, 10, 13], [3, 6, 9]])


def test_several_threads_at_once_agree_with_one():
    rng = np.random.default_rng(1)
    weights = (rng.random((300, 300)) < 0.1).astype(np.int64)
    values = rng.integers(0, 2**40, (300, 500))
    expected, found = weights.T @ values, {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: sums(weights, values)})) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for out in found.values():
        np.testing.assert_array_equal(out, expected)


def as_integers(digits, bits):
    return [
        [sum(int(digit) << bits * t for t, digit in enumerate(digits[j, :, m])) for m in range(digits.shape[2])]
        for j in range(digits.shape[0])
    ]


@given(st.integers(1, 61), st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)), st.integers(0, 99))
def test_carrying_keeps_the_numbers_and_says_when_they_outgrow_their_digits(bits, shape, seed):
    digits = np.random.default_rng(seed).integers(0, 2**62 - 1, shape)
    before = as_integers(digits, bits)
    wants_more = carry(digits, bits)
    assert as_integers(digits, bits) == before
    assert (digits[:, :-1] < 2**bits).all()
    assert wants_more is bool((digits[:, -1] >= 2**bits).any())


def test_a_number_in_normal_form_stays():
    digits = np.array([[[7, 0], [6, 7]]])
    assert carry(digits, 3) is False
    assert digits.tolist() == [[[7, 0], [6, 7]]]
    assert carry(digits, 2) is True
