"""A sparse matrix written out: against scipy, in parts, by several threads, and what is refused."""

import numpy as np
import pytest
import scipy.sparse as sp

from topogen import kernels
from topogen.errors import SpecError


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 1), (700, 300)])
@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_what_scipy_writes(dtype, shape, threads):
    matrix = sp.random_array(shape, density=0.6, format="csr", dtype=dtype, rng=np.random.default_rng(0))
    parts = (matrix.data, matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32))
    out = np.full(shape, np.nan, dtype)
    assert kernels.scatter(*parts, out=out, threads=threads) is out
    np.testing.assert_array_equal(out, matrix.toarray())


def test_some_rows_are_written_from_the_whole_values():
    matrix = sp.random_array((50, 20), density=0.5, format="csr", rng=np.random.default_rng(1))
    indptr, indices = matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32)
    out = kernels.scatter(matrix.data, indptr[17:38], indices, out=np.empty((20, 20)))
    np.testing.assert_array_equal(out, matrix.toarray()[17:37])


def test_no_rows_and_no_columns_are_legal():
    empty, none = np.zeros(0, np.int32), np.zeros(0)
    assert kernels.scatter(none, np.zeros(1, np.int32), empty, out=np.empty((0, 4))).shape == (0, 4)
    assert kernels.scatter(none, np.zeros(4, np.int32), empty, out=np.empty((3, 0))).shape == (3, 0)


@pytest.mark.parametrize(
    ("values", "out", "threads", "sentence"),
    [
        (np.ones(2, int), np.ones((1, 2)), 1, r"'values' parameter of scatter must be an array of float32 or float64"),
        (np.ones(3), np.ones((1, 2)), 1, r"'values' parameter of scatter must have 2 elements. Got 3\."),
        (np.ones(2), np.ones((2, 2)), 1, r"'indptr' parameter of scatter must have 3 elements. Got 2\."),
        (np.ones(2), np.ones((1, 2), np.float32), 1, r"'out' parameter of scatter must be a C-contiguous array of fl"),
        (np.ones(2), np.ones((1, 2)), 0, r"'threads' parameter of scatter must be an int >= 1. Got 0\."),
    ],
)
def test_what_does_not_fit_is_one_sentence(values, out, threads, sentence):
    index = np.array([0, 2], np.int32)
    with pytest.raises(SpecError, match=sentence):
        kernels.scatter(values, index, index // 2, out=out, threads=threads)
