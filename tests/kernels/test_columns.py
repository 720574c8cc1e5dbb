"""The feature-major kernels against dense float64, whatever the shapes and threads."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import _plan, _team

DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-13}
GUARD = 64  # elements before and behind every array that must stay as they were


@st.composite
def problems(draw):
    """A pattern, groups, samples around the edges of vectors and tiles, a dtype and a seed."""
    shape = draw(st.tuples(st.integers(0, 70), st.integers(0, 70)))
    pattern = draw(hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))
    samples = draw(st.one_of(st.integers(0, 40), st.sampled_from([47, 48, 49, 95, 96, 97, 130])))
    return pattern, draw(st.integers(0, 5)), samples, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32 - 1))


def guarded(array):
    """Return a copy in the middle of an array of NaN, and that array."""
    whole = np.full(array.size + 2 * GUARD, np.nan, array.dtype)
    inside = whole[GUARD : GUARD + array.size].reshape(array.shape)
    inside[...] = array
    return inside, whole


def assert_untouched(whole):
    assert np.isnan(whole[:GUARD]).all()
    assert np.isnan(whole[-GUARD:]).all()


class Problem:
    """What a layer's forward and backward pass need, with the dense truth. Whatever is read beyond an array is NaN."""

    def __init__(self, pattern, groups, samples, dtype, seed=0):
        rng = np.random.default_rng(seed)
        n_in, n_out = pattern.shape
        csr = sp.csr_array(pattern)
        places = sp.csr_array((np.arange(csr.nnz, dtype=np.int32), csr.indices, csr.indptr), shape=csr.shape).tocsc()
        self.indptr, self.indices = csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
        self.transposed = tuple(part.astype(np.int32) for part in (places.indptr, places.indices, places.data))
        sizes = (groups, n_in, samples), (groups, n_out, samples), csr.nnz, n_out
        self.x, self.dy, self.values, self.bias = (
            guarded(rng.standard_normal(size).astype(dtype))[0] for size in sizes
        )
        self.pattern, self.tolerance = np.asarray(pattern), TOLERANCE[dtype]

    def forward(self, threads=1):
        indptr, indices, permutation = self.transposed
        out, whole = guarded(np.full_like(self.dy, np.nan))
        kernels.multiply_columns(self.x, self.values, indptr, indices, permutation, self.bias, out=out, threads=threads)
        assert_untouched(whole)
        return out

    def backward(self, threads=1, wanted=("dx", "dvalues", "dbias")):
        shapes = {"dx": self.x, "dvalues": self.values, "dbias": self.bias}
        found = {name: guarded(np.full_like(shapes[name], np.nan)) for name in wanted}
        targets = {name: inside for name, (inside, _) in found.items()}
        kernels.gradients_columns(self.dy, self.x, self.values, self.indptr, self.indices, **targets, threads=threads)
        for _, whole in found.values():
            assert_untouched(whole)
        return targets

    def truth(self):
        weights = np.zeros(self.pattern.shape)
        weights[self.pattern] = self.values
        x, dy = self.x.astype(float), self.dy.astype(float)
        y = np.einsum("gis,io->gos", x, weights) + self.bias[:, None]
        dvalues = np.einsum("gis,gos->io", x, dy)[self.pattern]
        return y, {"dx": np.einsum("gos,io->gis", dy, weights), "dvalues": dvalues, "dbias": dy.sum(axis=(0, 2))}

    def agree(self, mine, true):
        np.testing.assert_allclose(mine, true, rtol=0, atol=self.tolerance * (1 + np.abs(true).max(initial=0)) * 10)


@settings(deadline=None, max_examples=80)
@given(problems(), st.integers(1, 3))
def test_products_equal_dense_float64(problem, threads):
    problem = Problem(*problem)
    y, gradients = problem.truth()
    problem.agree(problem.forward(threads), y)
    for name, found in problem.backward(threads).items():
        problem.agree(found, gradients[name])


@pytest.mark.parametrize("wanted", [("dx",), ("dvalues",), ("dbias",), ("dx", "dbias"), ("dvalues", "dbias"), ()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_gradient_can_be_had_alone(wanted, dtype):
    problem = Problem(np.random.default_rng(1).random((45, 33)) < 0.4, 3, 21, dtype)
    _, gradients = problem.truth()
    for name, found in problem.backward(wanted=wanted).items():
        problem.agree(found, gradients[name])


def test_without_permutation_and_bias_the_values_are_taken_in_order():
    problem = Problem(np.random.default_rng(1).random((45, 33)) < 0.4, 2, 50, np.float64)
    found = kernels.multiply_columns(problem.dy, problem.values, problem.indptr, problem.indices)
    problem.agree(found, problem.truth()[1]["dx"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "samples", "cache"), [(1, 333, 1 << 20), (40, 49, 1 << 20), (7, 100, 1 << 12)])
def test_results_are_bit_identical_for_any_number_of_threads(groups, samples, cache, dtype, monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_plan, "CACHE_BYTES", cache)
    problem = Problem(np.random.default_rng(2).random((101, 203)) < 0.2, groups, samples, dtype)
    reference = problem.forward(), problem.backward()
    for threads in (2, 3, 8):
        for _ in range(3):
            assert np.array_equal(problem.forward(threads), reference[0])
            for name, found in problem.backward(threads).items():
                assert np.array_equal(found, reference[1][name])


def test_the_layout_does_not_change_a_bit_of_the_product():
    """A tile's rows are summed in one order, whether the tile is packed or strided."""
    problem = Problem(np.random.default_rng(2).random((60, 40)) < 0.3, 1, 48, np.float32)
    rows = kernels.multiply(
        np.ascontiguousarray(problem.x[0].T), problem.values, *problem.transposed, bias=problem.bias
    )
    assert np.array_equal(problem.forward()[0].T, rows)


def test_sums_over_many_samples_keep_float32_precision():
    problem = Problem(np.ones((1, 1), bool), 200, 1000, np.float32)
    problem.dy[:] = 1.1
    assert problem.backward()["dbias"][0] == pytest.approx(200_000 * np.float32(1.1), rel=1e-6)


@pytest.mark.parametrize("samples", [18, 33, 5])
def test_infinities_and_nans_stay_where_they_belong(samples):
    problem = Problem(np.eye(20, 24, dtype=bool), 2, samples, np.float32)
    problem.x[1, 5, samples - 1], problem.dy[0, 6, samples - 1] = np.inf, np.nan
    y, found = problem.forward(), problem.backward()
    assert np.argwhere(~np.isfinite(y)).tolist() == [[1, 5, samples - 1]]
    assert np.argwhere(~np.isfinite(found["dx"])).tolist() == [[0, 6, samples - 1]]
    assert np.argwhere(~np.isfinite(found["dvalues"])).tolist() == [[5], [6]]
    assert np.argwhere(~np.isfinite(found["dbias"])).tolist() == [[6]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "samples", "batch"), [(1, 16, 1), (3, 32, 65), (3, 48, 100), (2, 200, 230)])
def test_padding_is_read_by_nobody_and_zero_in_every_result(groups, samples, batch, dtype):
    """Whatever stands there: NaN here. A product with zeros would not do, since 0 * inf is NaN."""
    problem = Problem(np.random.default_rng(5).random((40, 30)) < 0.3, groups, samples, dtype)
    last = batch - (groups - 1) * samples
    for array in (problem.x, problem.dy):
        array[-1, :, last:] = 0
    y, gradients = problem.truth()
    for array in (problem.x, problem.dy):
        array[-1, :, last:] = np.nan
    indptr, indices, permutation = problem.transposed
    found = kernels.multiply_columns(
        problem.x, problem.values, indptr, indices, permutation, problem.bias, batch=batch, threads=2
    )
    assert np.all(found[-1, :, last:] == 0)
    problem.agree(found[-1, :, :last], y[-1, :, :last])
    problem.agree(found[:-1], y[:-1])
    dx, dvalues, dbias = np.full_like(problem.x, np.nan), np.empty_like(problem.values), np.empty_like(problem.bias)
    kernels.gradients_columns(
        problem.dy, problem.x, problem.values, problem.indptr, problem.indices,
        dx=dx, dvalues=dvalues, dbias=dbias, batch=batch, threads=2,
    )  # fmt: skip
    for name, array in {"dx": dx, "dvalues": dvalues, "dbias": dbias}.items():
        problem.agree(array, gradients[name])
    assert np.all(dx[-1, :, last:] == 0)


def test_plans_cover_the_samples_and_stay_within_the_cache():
    for itemsize in (4, 8):
        lanes = 64 // itemsize
        for samples in (1, 15, 16, 49, 256, 1000, 50_176):
            for gathered in (0, 1, 64, 4096, 10**6):
                plan = _plan.Plan.of(3, samples, samples, gathered, 300, itemsize)
                assert plan.tile % lanes == 0
                assert lanes <= plan.tile <= min(6 * lanes, -(-samples // lanes) * lanes)
                if plan.tile > 2 * lanes:
                    assert plan.run * plan.tile * gathered * itemsize <= _plan.CACHE_BYTES


def test_bad_arguments_are_named():
    problem = Problem(np.eye(3, dtype=bool), 2, 4, np.float32)
    indptr, indices, _permutation = problem.transposed
    axes = r"must have 3 axes: groups, neurons, samples\. Got shape \(3, 4\)\.$"
    with pytest.raises(SpecError, match=r"^The 'x' parameter of multiply_columns " + axes):
        kernels.multiply_columns(problem.x[0], problem.values, indptr, indices)
    with pytest.raises(SpecError, match=r"^The 'dy' parameter of gradients_columns " + axes):
        kernels.gradients_columns(problem.dy[0], problem.x, problem.values, problem.indptr, problem.indices)
    with pytest.raises(SpecError, match=r"^The 'dy' parameter of gradients_columns must have 24 elements\. Got 12\.$"):
        kernels.gradients_columns(problem.dy[:1], problem.x, problem.values, problem.indptr, problem.indices)
    fixed = np.zeros(3, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(
        SpecError, match=r"^The 'dvalues' parameter of gradients_columns must be writable\. Got a read-only array\.$"
    ):
        kernels.gradients_columns(problem.dy, problem.x, problem.values, problem.indptr, problem.indices, dvalues=fixed)
    with pytest.raises(
        SpecError,
        match=r"^The 'batch' parameter of multiply_columns must end in the last of 2 groups of 4 samples, "
        r"in \[5, 8\]\. Got 4\.$",
    ):
        kernels.multiply_columns(problem.x, problem.values, indptr, indices, batch=4)
