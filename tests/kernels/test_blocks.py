"""The block product kernels against dense float64, whatever the blocks, shapes and threads."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import _blocks_narrow, _blocks_wide, _plan, _team, block_launch

DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-13}
NARROW, WIDE = 6, 48  # block sizes that the two families take, in either dtype
ROUTINES = (
    _blocks_wide.wide_product_kernel,
    _blocks_wide.wide_gradients_kernel,
    _blocks_narrow.narrow_product_kernel,
    _blocks_narrow.narrow_gradients_kernel,
)


@st.composite
def problems(draw):
    """A pattern of blocks, a block size, a batch size around the tiles' edges, a dtype and a seed."""
    block = draw(st.one_of(st.integers(1, 20), st.sampled_from([4, 8, 16, 24, 32, 64, 72, 80, 128])))
    most = max(1, 160 // block)
    shape = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    seed = draw(st.integers(0, 2**32 - 1))
    pattern = np.random.default_rng(seed).random(shape) < draw(st.sampled_from([0.0, 0.1, 0.4, 1.0]))
    batch = draw(st.one_of(st.integers(0, 40), st.sampled_from([47, 64, 95, 97, 255, 257, 300])))
    return pattern, block, batch, draw(st.sampled_from(DTYPES)), seed


class Problem:
    """Everything that a layer's forward and backward pass need, with the dense truth."""

    def __init__(self, pattern, block, batch, dtype, seed=0):
        rng = np.random.default_rng(seed)
        csr = sp.csr_array(pattern)
        places = sp.csr_array((np.arange(csr.nnz, dtype=np.int32), csr.indices, csr.indptr), shape=csr.shape).tocsc()
        self.indptr, self.indices = csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
        self.transposed = tuple(
            part.astype(np.int32) for part in (places.indptr, places.indices, places.data)
        )  # indptr, indices, permutation
        n_in, n_out = (size * block for size in csr.shape)
        self.x, self.dy, self.values, self.bias = (
            rng.standard_normal(size).astype(dtype)
            for size in ((batch, n_in), (batch, n_out), (csr.nnz, block, block), n_out)
        )
        self.corners = list(zip(*(part * block for part in np.nonzero(np.asarray(pattern))), strict=True))
        self.block, self.tolerance = block, TOLERANCE[dtype]

    def forward(self, threads=1):
        indptr, indices, permutation = self.transposed
        out = np.full_like(self.dy, np.nan)
        kernels.multiply_blocks(self.x, self.values, indptr, indices, permutation, self.bias, out=out, threads=threads)
        return out

    def backward(self, threads=1, wanted=("dx", "dvalues", "dbias")):
        shapes = {"dx": self.x, "dvalues": self.values, "dbias": self.bias}
        found = {name: np.full_like(shapes[name], np.nan) for name in wanted}
        kernels.gradients_blocks(self.dy, self.x, self.values, self.indptr, self.indices, **found, threads=threads)
        return found

    def cut(self, matrix):
        """Return the blocks of a dense (inputs, outputs) matrix."""
        blocks = [matrix[i : i + self.block, j : j + self.block] for i, j in self.corners]
        return np.array(blocks).reshape(self.values.shape)

    def truth(self):
        weights = np.zeros((self.x.shape[1], self.dy.shape[1]))
        for (i, j), block in zip(self.corners, self.values, strict=True):
            weights[i : i + self.block, j : j + self.block] = block
        x, dy = self.x.astype(float), self.dy.astype(float)
        gradients = {"dx": dy @ weights.T, "dvalues": self.cut(x.T @ dy), "dbias": dy.sum(axis=0)}
        return x @ weights + self.bias, gradients

    def agree(self, mine, true):
        np.testing.assert_allclose(mine, true, rtol=0, atol=self.tolerance * (1 + np.abs(true).max(initial=0)) * 10)


def some(block, *, size=5, batch=50, dtype=np.float32, density=0.4, seed=1):
    return Problem(np.random.default_rng(seed).random((size, size + 1)) < density, block, batch, dtype, seed)


@settings(deadline=None, max_examples=80)
@given(problems(), st.integers(1, 3))
def test_products_equal_dense_float64(problem, threads):
    problem = Problem(*problem)
    y, gradients = problem.truth()
    problem.agree(problem.forward(threads), y)
    for name, found in problem.backward(threads).items():
        problem.agree(found, gradients[name])


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 32, 40, 48, 56, 64, 100, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_block_size_and_every_rest_of_the_batch(block, dtype):
    for batch in (1, 2, 7, 8, 9, 10, 21, 100):
        problem = some(block, size=2, batch=batch, dtype=dtype, density=0.7)
        y, gradients = problem.truth()
        problem.agree(problem.forward(), y)
        for name, found in problem.backward().items():
            problem.agree(found, gradients[name])


@pytest.mark.parametrize("wanted", [("dx",), ("dvalues",), ("dbias",), ("dx", "dbias"), ("dvalues", "dbias"), ()])
@pytest.mark.parametrize("block", [NARROW, WIDE])
@pytest.mark.parametrize("batch", [3, 50])
def test_each_gradient_can_be_had_alone(wanted, block, batch):
    problem = some(block, batch=batch)
    _, gradients = problem.truth()
    for name, found in problem.backward(wanted=wanted).items():
        problem.agree(found, gradients[name])


@pytest.mark.parametrize("block", [NARROW, WIDE])
def test_without_permutation_bias_and_target_the_blocks_are_taken_in_order(block):
    problem = some(block, dtype=np.float64)
    turned = np.ascontiguousarray(problem.values.transpose(0, 2, 1))
    found = kernels.multiply_blocks(problem.dy, turned, problem.indptr, problem.indices)
    problem.agree(found, problem.truth()[1]["dx"])


@pytest.mark.parametrize("block", [4, 5, 16, 32, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_bit_identical_for_any_number_of_threads(block, dtype, monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    problem = some(block, size=max(2, 300 // block), batch=600, dtype=dtype)
    reference = problem.forward(), problem.backward()
    for threads in (2, 3, 8):
        for _ in range(3):
            assert np.array_equal(problem.forward(threads), reference[0])
            for name, found in problem.backward(threads).items():
                assert np.array_equal(found, reference[1][name])


RACES = {
    "one row of blocks, many tiles": (1, 60, 2000),
    "one column of blocks, many tiles": (60, 1, 2000),
    "much to pack, little to multiply": (300, 2, 300),
}


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("block", [4, 16])
def test_no_thread_runs_ahead_of_what_it_needs(race, block, monkeypatch):
    """Scratch and results start as NaN, so that whatever is read too early or left out shows."""
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(block_launch, "borrowed", lambda count, dtype: nullcontext(np.full(count, np.nan, dtype)))
    rows, columns, batch = RACES[race]
    problem = Problem(np.random.default_rng(2).random((rows, columns)) < 0.2, block, batch, np.float32)
    reference = problem.forward(), problem.backward()
    for _ in range(20):
        assert np.array_equal(problem.forward(threads=3), reference[0])
        for name, found in problem.backward(threads=3).items():
            assert np.array_equal(found, reference[1][name])


@pytest.mark.parametrize("block", [1, 16])
def test_gradients_of_a_large_batch_keep_float32_precision(block):
    """One running sum over 200 000 samples would lose three digits of the bias gradient."""
    problem = Problem(np.ones((1, 1), bool), block, 200_000, np.float32)
    problem.dy[:] = 1.1
    found = problem.backward()
    assert found["dbias"] == pytest.approx(np.full(block, 200_000 * np.float32(1.1)), rel=1e-5)


@pytest.mark.parametrize("block", [NARROW, WIDE])
def test_infinities_and_nans_stay_in_the_blocks_they_meet(block):
    """A multiplication by a padding zero would spread them further."""
    problem = Problem(np.eye(4, 5, dtype=bool), block, 18, np.float32)
    problem.x[3, block + 1], problem.dy[4, 2 * block] = np.inf, np.nan
    y, found = problem.forward(), problem.backward()
    assert set(map(tuple, np.argwhere(~np.isfinite(y)))) == {(3, block + j) for j in range(block)}
    assert set(map(tuple, np.argwhere(~np.isfinite(found["dx"])))) == {(4, 2 * block + i) for i in range(block)}
    spoiled = {(1, 1, j) for j in range(block)} | {(2, i, 0) for i in range(block)}
    assert set(map(tuple, np.argwhere(~np.isfinite(found["dvalues"])))) == spoiled


def test_read_only_arrays_are_accepted():
    problem = some(WIDE)
    reference = problem.forward()
    compiled = [len(routine.signatures) for routine in ROUTINES]
    for array in (problem.x, problem.values, problem.bias, *problem.transposed):
        array.flags.writeable = False
    assert np.array_equal(problem.forward(), reference)
    assert [len(routine.signatures) for routine in ROUTINES] == compiled  # no further variant was compiled


def test_warm_up_leaves_nothing_to_compile():
    kernels.warm_up()
    for dtype in DTYPES:
        for block in (NARROW, WIDE):
            problem = some(block, dtype=dtype)
            problem.forward()
            problem.backward()
    assert [len(routine.signatures) for routine in ROUTINES] == [2] * 4


def test_a_whole_batch_lies_in_tiles_of_nearly_one_size():
    for batch in (1, 8, 255, 256, 257, 300, 1000, 4096):
        tile, packing = block_launch._packing(batch, 320, 32, 4)
        tiles = -(-batch // tile)
        assert tile <= block_launch._TILE
        assert tile * tiles - batch < tiles
        assert packing == (batch * 320 if batch > block_launch._FEW else 0)


def test_tiles_of_vectors_cover_the_batch_and_stay_within_the_cache():
    for itemsize in (4, 8):
        for batch in (1, 15, 16, 17, 64, 255, 256, 1000):
            for neurons in (4, 300, 4096, 10**6):
                tile, packing = block_launch._packing(batch, neurons, 4, itemsize)
                lanes = 64 // itemsize
                assert tile % lanes == 0
                assert lanes <= tile <= 4 * lanes
                assert packing % (tile * neurons) == 0
                assert batch * neurons <= packing < (batch + tile) * neurons
                if tile > 2 * lanes:
                    assert tile * neurons * itemsize <= _plan.CACHE_BYTES


def test_a_batch_of_one_wakes_helpers_for_the_weights_that_it_fetches(monkeypatch):
    woken = []
    monkeypatch.setattr(block_launch, "run", lambda kernel, args, threads: woken.append(threads))
    for size in (2, 64):
        problem = some(32, size=size, batch=1, density=1.0)
        problem.forward(threads=2)
    assert woken == [1, 2]


def bad_arguments():
    problem = Problem(np.eye(3, dtype=bool), 4, 5, np.float32)
    indptr, indices, _ = problem.transposed
    x, values = problem.x, problem.values
    first = "The 'values' parameter of multiply_blocks must"
    shape = f"{first} have shape (blocks, b, b), b >= 1. Got "
    yield (x, values.astype(float), indptr, indices), f"{first} be a C-contiguous array of float32. Got float64."
    yield (x, values[:2], indptr, indices), f"{first} have 48 elements. Got 32."
    yield (x, values[:, :3], indptr, indices), f"{shape}(3, 3, 4)."
    yield (x, values.reshape(-1), indptr, indices), f"{shape}(48,)."
    yield (x, np.empty((0, 0, 0), np.float32), indptr, indices), f"{shape}(0, 0, 0)."
    yield (
        (x[:, :10].copy(), values, indptr, indices),
        "The 'x' parameter of multiply_blocks must have a multiple of 4 columns. Got 10.",
    )
    yield (
        (x, values, indptr, indices.astype(np.int64)),
        "The 'indices' parameter of multiply_blocks must be a C-contiguous array of int32. Got int64.",
    )
    yield (
        (x, values, indptr, indices, indices[:2]),
        "The 'permutation' parameter of multiply_blocks must have 3 elements. Got 2.",
    )
    yield (
        (x, values, indptr, indices, None, problem.bias[:3]),
        "The 'bias' parameter of multiply_blocks must have 12 elements. Got 3.",
    )


@pytest.mark.parametrize(("arguments", "sentence"), list(bad_arguments()))
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        kernels.multiply_blocks(*arguments)


def test_bad_gradients_are_named():
    problem = Problem(np.eye(3, dtype=bool), 4, 5, np.float32)
    arguments = problem.x, problem.values, problem.indptr, problem.indices
    sentence = "The 'dy' parameter of gradients_blocks must have a multiple of 4 columns. Got 10."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        kernels.gradients_blocks(problem.dy[:, :10].copy(), *arguments)
    sentence = "The 'x' parameter of gradients_blocks must have 60 elements. Got 40."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        kernels.gradients_blocks(problem.dy, problem.x[:, :8].copy(), *arguments[1:])
    sentence = "The 'dvalues' parameter of gradients_blocks must have 48 elements. Got 32."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        kernels.gradients_blocks(problem.dy, *arguments, dvalues=problem.values[:2].copy())
