"""The bfloat16 products by address: against float64, with poisoned memory around and in everything that it uses."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse as sp

from topogen import kernels
from topogen.kernels import _team, short_launch
from topogen.kernels._short_passes import short_gradients_kernel, short_product_kernel

GUARD = 64
POISON = 0x7FC1  # a NaN


def shortened(numbers):
    """The upper halves of float32, rounded down, and what they stand for."""
    halves = (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return halves, (halves.astype(np.uint32) << 16).view(np.float32)


def product(pattern, batch, threads=1, bias=True):
    """Return y as float32 and the float64 truth; everything outside of y must stay as it was."""
    rng = np.random.default_rng(0)
    inputs, outputs = pattern.shape
    x, x_long = shortened(rng.standard_normal((batch, inputs)))
    values, long = shortened(rng.standard_normal(pattern.nnz))
    start = rng.standard_normal(outputs).astype(np.float32)
    order = sp.csr_array((np.arange(pattern.nnz), pattern.indices, pattern.indptr), shape=pattern.shape).T.tocsr()
    order.sort_indices()
    index = [order.data.astype(np.int32), order.indptr.astype(np.int32), order.indices.astype(np.int32)]
    y = np.full(batch * outputs + 2 * GUARD, POISON, np.uint16)
    operands = [array.ctypes.data for array in (x, values, *index)]
    operands += [start.ctypes.data if bias else 0, y.ctypes.data + 2 * GUARD]
    short_launch.short_product(operands, batch, inputs, outputs, pattern.nnz, threads)
    assert (y[:GUARD] == POISON).all()
    assert (y[-GUARD:] == POISON).all()
    weights = sp.csr_array((long, pattern.indices, pattern.indptr), shape=pattern.shape).toarray().astype(np.float64)
    inner = (y[GUARD:-GUARD].astype(np.uint32) << 16).view(np.float32).reshape(batch, outputs)
    return inner, x_long.astype(np.float64) @ weights + (start if bias else 0)


def gradients(pattern, batch, threads=1, need_dx=True):
    """Return dx as float32 and dvalues, and the float64 truth of both; memory around dx must stay as it was."""
    rng = np.random.default_rng(1)
    inputs, outputs = pattern.shape
    (x, x_long), (dy, dy_long) = (shortened(rng.standard_normal((batch, size))) for size in (inputs, outputs))
    values = rng.standard_normal(pattern.nnz).astype(np.float32)
    dx, dvalues = np.full(batch * inputs + 2 * GUARD, POISON, np.uint16), np.full(pattern.nnz, np.nan, np.float32)
    indptr, indices = pattern.indptr.astype(np.int32), pattern.indices.astype(np.int32)
    operands = [array.ctypes.data for array in (dy, x, values, indptr, indices, dx, dvalues)]
    operands[5] = operands[5] + 2 * GUARD if need_dx else 0
    short_launch.short_gradients(operands, batch, inputs, outputs, pattern.nnz, threads)
    inner = dx[GUARD : GUARD + batch * inputs] if need_dx else dx[:0]
    assert (dx[:GUARD] == POISON).all()
    assert (dx[GUARD + len(inner) :] == POISON).all()
    weights = sp.csr_array((values, indices, indptr), shape=pattern.shape).toarray().astype(np.float64)
    rows, columns = pattern.nonzero()
    wide = (inner.astype(np.uint32) << 16).view(np.float32).reshape(-1, inputs)
    true = dy_long.astype(np.float64) @ weights.T, (x_long.T.astype(np.float64) @ dy_long)[rows, columns]
    return (wide, dvalues), true


def pattern_of(inputs, outputs, density=0.2, seed=1):
    pattern = sp.csr_array(np.random.default_rng(seed).random((inputs, outputs)) < density)
    pattern.sort_indices()
    return pattern


@pytest.mark.parametrize("shape", [(1, 1), (15, 17), (16, 16), (48, 33), (130, 200)])
@pytest.mark.parametrize("batch", [1, 16, 31, 32, 33, 64, 96, 100])
def test_equals_float64_and_writes_nothing_else(shape, batch, monkeypatch):
    monkeypatch.setattr(
        short_launch, "borrowed", lambda count, dtype: nullcontext(np.full(count, np.nan, dtype))
    )  # fmt: skip
    y, true = product(pattern_of(*shape), batch, bias=batch % 2 == 0)
    np.testing.assert_array_less(np.abs(y - true), np.abs(true) * 2**-8 + 1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (17, 15), (16, 16), (130, 200)])
@pytest.mark.parametrize("batch", [1, 31, 32, 33, 96, 200])
@pytest.mark.parametrize("need_dx", [True, False])
def test_gradients_equal_float64(shape, batch, need_dx, monkeypatch):
    monkeypatch.setattr(short_launch, "borrowed", lambda count, dtype: nullcontext(np.full(count, np.nan, dtype)))
    (dx, dvalues), (true_dx, true_dvalues) = gradients(pattern_of(*shape), batch, need_dx=need_dx)
    np.testing.assert_allclose(dvalues, true_dvalues, atol=1e-4, rtol=1e-5)
    if need_dx:
        np.testing.assert_array_less(np.abs(dx - true_dx), np.abs(true_dx) * 2**-8 + 1e-4)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_no_thread_runs_ahead_of_what_it_needs(threads, monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_team, "_WORTH_OPENMP", 1)
    monkeypatch.setattr(short_launch, "borrowed", lambda count, dtype: nullcontext(np.full(count, np.nan, dtype)))
    pattern = pattern_of(300, 150)
    alone, _ = product(pattern, 250)
    (dx, dvalues), _ = gradients(pattern, 250)
    for _ in range(10):
        assert np.array_equal(product(pattern, 250, threads)[0], alone)
        found, _ = gradients(pattern, 250, threads)
        assert np.array_equal(found[0], dx)
        assert np.array_equal(found[1], dvalues)


def test_parts_of_a_large_batch_fit_together(monkeypatch):
    pattern = pattern_of(40, 30)
    whole, _ = product(pattern, 500)
    (dx, dvalues), _ = gradients(pattern, 500)
    monkeypatch.setattr(short_launch, "_PANEL_BYTES", 1)
    short_launch._cut.cache_clear()
    assert np.array_equal(product(pattern, 500)[0], whole)
    (parts_dx, parts_dvalues), _ = gradients(pattern, 500)
    short_launch._cut.cache_clear()
    assert np.array_equal(parts_dx, dx)
    np.testing.assert_allclose(parts_dvalues, dvalues, rtol=1e-6)


def test_warm_up_leaves_nothing_to_compile():
    kernels.warm_up()
    product(pattern_of(20, 20), 40)
    gradients(pattern_of(20, 20), 40)
    assert len(short_product_kernel.signatures) == len(short_gradients_kernel.signatures) == 1
