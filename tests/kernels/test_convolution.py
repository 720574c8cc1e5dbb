"""The convolution kernels against a sum over kernel offsets in float64, whatever the shapes, strips and threads."""

import itertools
import re
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import Window, _convolution, _grid, _scratch

DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-13}
GUARD = 64  # elements before and behind every array that must stay as they were
STRIPS = (1, 1 << 10, 1 << 13, 1 << 19)  # bytes: bands of single rows, of several, and whole images together


@contextmanager
def strips_of(size):
    """Set the bytes of a strip, which plans remember."""
    before = _grid._STRIP_BYTES
    try:
        _grid._STRIP_BYTES = size
        _grid.plan.cache_clear()
        yield
    finally:
        _grid._STRIP_BYTES = before
        _grid.plan.cache_clear()


@st.composite
def problems(draw):
    """A window, an image that it fits into, channels, a pattern's kind and density, a dtype and a seed."""
    small = st.integers(1, 4)
    size, stride, dilation = (draw(st.tuples(small, small)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    image = []
    for axis in range(2):
        least = dilation[axis] * (size[axis] - 1) + 1 - padding[2 * axis] - padding[2 * axis + 1]
        image.append(draw(st.integers(max(1, least), max(1, least) + draw(st.sampled_from([3, 12, 40])))))
    batch, channels, outputs = draw(st.integers(0, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 20))
    options = draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), draw(st.sampled_from(DTYPES))
    return Window(size, stride, padding, dilation), (batch, channels, *image), outputs, *options, draw(seeds)


seeds = st.integers(0, 2**32 - 1)


def guarded(array):
    """Return a copy in the middle of an array of NaN, and that array."""
    whole = np.full(array.size + 2 * GUARD, np.nan, array.dtype)
    inside = whole[GUARD : GUARD + array.size].reshape(array.shape)
    inside[...] = array
    return inside, whole


class Problem:
    """What a forward and a backward pass need, with the dense truth. Whatever is read beyond an array is NaN."""

    def __init__(self, window, shape, outputs, listed, density, dtype, seed=0):
        rng = np.random.default_rng(seed)
        offsets = window.size[0] * window.size[1]
        self.mask = rng.random((shape[1] * (offsets if listed else 1), outputs)) < density
        csr = sp.csr_array(self.mask)
        places = sp.csr_array((np.arange(csr.nnz, dtype=np.int32), csr.indices, csr.indptr), shape=csr.shape).tocsc()
        self.indptr, self.indices = csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
        self.transposed = tuple(part.astype(np.int32) for part in (places.indptr, places.indices, places.data))
        self.window, self.listed, self.tolerance = window, listed, TOLERANCE[dtype]
        unit = () if listed else window.size
        sizes = shape, (shape[0], outputs, *window.output(*shape[2:])), (csr.nnz, *unit), outputs
        self.x, self.dy, self.values, self.bias = (
            guarded(rng.standard_normal(size).astype(dtype))[0] for size in sizes
        )

    def forward(self, threads=1):
        out, whole = guarded(np.full_like(self.dy, np.nan))
        kernels.convolve(
            self.x, self.values, self.indptr, *self.transposed, self.bias, window=self.window, out=out, threads=threads
        )
        assert np.isnan(whole[:GUARD]).all()
        assert np.isnan(whole[-GUARD:]).all()
        return out

    def backward(self, threads=1, wanted=("dx", "dvalues")):
        shapes = {"dx": self.x, "dvalues": self.values}
        found = {name: guarded(np.full_like(shapes[name], np.nan)) for name in wanted}
        kernels.convolution_gradients(
            self.dy, self.x, self.values, self.indptr, self.indices, window=self.window, threads=threads,
            **{name: inside for name, (inside, _) in found.items()},
        )  # fmt: skip
        for _, whole in found.values():
            assert np.isnan(whole[:GUARD]).all()
            assert np.isnan(whole[-GUARD:]).all()
        return {name: inside for name, (inside, _) in found.items()}

    def kernel(self):
        """Return the dense weights, shape (kh, kw, in, out)."""
        rows, outputs = self.mask.shape
        if self.listed:
            dense = np.zeros((rows, outputs))
            dense[self.mask] = self.values
            return dense.reshape(*self.window.size, -1, outputs)
        dense = np.zeros((rows, outputs, *self.window.size))
        dense[self.mask] = self.values
        return dense.transpose(2, 3, 0, 1)

    def truth(self):
        (kh, kw), (sh, sw), (top, bottom, left, right), (dh, dw) = self.window
        height, width = self.dy.shape[2:]
        padded = np.pad(self.x.astype(float), ((0, 0), (0, 0), (top, bottom), (left, right)))
        kernel, dy = self.kernel(), self.dy.astype(float)
        y, dpadded, dkernel = np.zeros(dy.shape), np.zeros_like(padded), np.zeros_like(kernel)
        for i, j in itertools.product(range(kh), range(kw)):
            seen = np.s_[..., i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
            y += np.einsum("bchw,co->bohw", padded[seen], kernel[i, j])
            dpadded[seen] += np.einsum("bohw,co->bchw", dy, kernel[i, j])
            dkernel[i, j] = np.einsum("bchw,bohw->co", padded[seen], dy)
        rows, outputs = self.mask.shape
        dvalues = dkernel.reshape(rows, outputs) if self.listed else dkernel.transpose(2, 3, 0, 1)
        dx = dpadded[..., top : top + self.x.shape[2], left : left + self.x.shape[3]]
        return y + self.bias[:, None, None], {"dx": dx, "dvalues": dvalues[self.mask]}

    def agree(self, mine, true):
        np.testing.assert_allclose(mine, true, rtol=0, atol=self.tolerance * (1 + np.abs(true).max(initial=0)) * 10)


SQUARE = Window((3, 3), padding=(1, 1, 1, 1))
DOWN = Window((3, 2), (2, 3), (1, 0, 0, 2), (1, 2))


@settings(deadline=None, max_examples=250)
@given(problem=problems(), threads=st.integers(1, 3), size=st.sampled_from(STRIPS))
def test_convolutions_equal_the_sum_over_offsets(problem, threads, size):
    problem = Problem(*problem)
    y, gradients = problem.truth()
    with strips_of(size):
        problem.agree(problem.forward(threads), y)
        for name, found in problem.backward(threads).items():
            problem.agree(found, gradients[name])


@pytest.mark.parametrize("wanted", [("dx",), ("dvalues",), ()])
@pytest.mark.parametrize("window", [SQUARE, DOWN])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_gradient_can_be_had_alone(wanted, window, dtype):
    problem = Problem(window, (3, 4, 11, 10), 5, False, 0.5, dtype)
    _, gradients = problem.truth()
    for name, found in problem.backward(wanted=wanted).items():
        problem.agree(found, gradients[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [SQUARE, DOWN])
@pytest.mark.parametrize(("shape", "size"), [((1, 20, 30, 31), 1 << 19), ((9, 20, 6, 5), 1 << 13), ((2, 9, 40, 20), 1)])
def test_results_are_bit_identical_for_any_number_of_threads(shape, size, window, dtype, monkeypatch):
    monkeypatch.setattr(_convolution, "useful_threads", lambda threads, _: threads)
    problem = Problem(window, shape, 17, False, 0.3, dtype)
    with strips_of(size):
        reference = problem.forward(), problem.backward()
        for threads in (2, 3, 8):
            for _ in range(3):
                assert np.array_equal(problem.forward(threads), reference[0])
                for name, found in problem.backward(threads).items():
                    assert np.array_equal(found, reference[1][name])


@pytest.mark.parametrize("window", [SQUARE, DOWN])
@pytest.mark.parametrize("size", STRIPS)
def test_what_scratch_memory_holds_reaches_no_result(size, window):
    problem = Problem(window, (5, 3, 9, 8), 4, True, 0.5, np.float64)
    y, gradients = problem.truth()
    with strips_of(size):
        spoil_scratch_memory()
        problem.agree(problem.forward(), y)
        spoil_scratch_memory()
        for name, found in problem.backward().items():
            problem.agree(found, gradients[name])


def spoil_scratch_memory():
    assert _scratch._spare
    for buffer in _scratch._spare:
        buffer[:] = 255  # NaN, in every float


def test_a_channel_that_is_not_read_may_hold_anything():
    problem = Problem(SQUARE, (2, 3, 5, 5), 4, False, 1.0, np.float64)
    problem.indptr[:] = [0, 4, 4, 8]
    outputs = np.arange(5, dtype=np.int32)
    problem.transposed = outputs * 2, np.array([0, 2] * 4, np.int32), np.array([0, 4, 1, 5, 2, 6, 3, 7], np.int32)
    problem.values, problem.indices, problem.mask[1] = problem.values[:8].copy(), problem.indices[:8].copy(), False
    y, _ = problem.truth()
    problem.x[:, 1] = np.nan
    problem.agree(problem.forward(), y)


@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 4), (0, 2)])
def test_a_nan_reaches_the_outputs_and_pixels_that_it_belongs_to_and_no_others(place):
    problem = Problem(SQUARE, (3, 2, 5, 5), 2, False, 1.0, np.float64)
    problem.x[(1, 0, *place)] = np.nan
    found, (true, _) = problem.forward(), problem.truth()
    assert np.array_equal(np.isnan(found), np.isnan(true))
    problem.x[:], problem.dy[(1, 0, *place)] = 0, np.nan
    found, (_, gradients) = problem.backward(), problem.truth()
    assert np.array_equal(np.isnan(found["dx"]), np.isnan(gradients["dx"]))


def test_a_stride_that_leaves_pixels_out_gives_them_no_gradient():
    problem = Problem(Window((1, 1), (3, 3)), (2, 2, 7, 8), 3, False, 1.0, np.float64)
    dx = problem.backward()["dx"]
    dx[..., ::3, ::3] = 0
    assert not dx.any()


def test_images_of_millions_of_channels_need_no_dense_kernel():
    n = 1 << 18
    indptr, indptr_t = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)
    indptr[6:], indptr_t[8:] = 1, 1
    x = np.ones((1, n, 1, 1), np.float32)
    args = np.array([5], np.int32), np.array([0], np.int32)
    values = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    y = kernels.convolve(x, values, indptr, indptr_t, *args, window=SQUARE)
    assert (y.sum(), y[0, 7, 0, 0]) == (4, 4)
    dx, dvalues = np.empty_like(x), np.empty_like(values)
    seven = np.array([7], np.int32)
    kernels.convolution_gradients(y, x, values, indptr, seven, window=SQUARE, dx=dx, dvalues=dvalues)
    assert (dx.sum(), dx[0, 5, 0, 0], dvalues.ravel().tolist()) == (16, 16, [0, 0, 0, 0, 4, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"x": np.zeros((2, 3, 5))},
            "The arrays of convolve must have 4 axes: batch, channels, height, width. Got shape (2, 3, 5).",
        ),
        (
            {"window": Window((6, 3), padding=(0, 0, 1, 1))},
            "The 'window' parameter of convolve must fit into the padded 5 x 5 image. Got Window(size=(6, 3), "
            "stride=(1, 1), padding=(0, 0, 1, 1), dilation=(1, 1)).",
        ),
        ({"x": np.zeros((2, 4, 5, 5))}, "The 'indptr' parameter of convolve must have 5 elements. Got 4."),
        (
            {"x": np.zeros((2, 3, 5, 5), np.int64)},
            "The 'x' parameter of convolve must be an array of float32 or float64. Got int64.",
        ),
        ({"threads": 0}, "The 'threads' parameter of convolve must be an int >= 1. Got 0."),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    problem = Problem(SQUARE, (2, 3, 5, 5), 4, False, 1.0, np.float64)
    arguments = {"x": problem.x, "window": SQUARE} | change
    x = arguments.pop("x")
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        kernels.convolve(x, problem.values, problem.indptr, *problem.transposed, **arguments)


def test_gradients_of_another_size_are_named():
    problem = Problem(SQUARE, (2, 3, 5, 5), 4, False, 1.0, np.float64)
    problem.dy = problem.dy[..., :4].copy()
    sentence = "The 'dy' parameter of convolution_gradients must have 200 elements. Got 160."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        problem.backward()


def test_a_row_that_int32_cannot_address_is_refused():
    sentence = "The 'x' parameter of convolve must have fewer than 2^31 elements in one row of outputs. Got 2155872256."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        _grid.plan((1, 1 << 19, 1, 4096 + 7), 1, Window((1, 1)), True, 4, False)
