"""The processor's peak: what is counted is done, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import _peak
from topogen.kernels._atomics import SLOT
from topogen.kernels._openmp import ALONE


@pytest.mark.parametrize(("dtype", "lanes"), [(np.float32, 16), (np.float64, 8)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_rate_is_what_was_counted_over_the_seconds(dtype, lanes, threads, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(_peak, "perf_counter", lambda: float(next(ticks)))  # each run takes one second
    monkeypatch.setattr(_peak, "_CHUNKS", 3)
    monkeypatch.setattr(_peak, "_ROUNDS", 50)
    assert kernels.fma_peak(dtype, threads=threads, repeats=1) == 2 * 12 * lanes * 50 * 3 * threads


def test_the_counted_operations_are_done():
    for chains in (6, 12):
        sums = np.ones(1)
        _peak._multiply_adds(ALONE, sums, chains, 1, 5, np.zeros(2 * SLOT, np.int64))
        assert sums[0] == chains * (1 + 5)  # each chain starts at 1 and adds 1 * 1 five times


@pytest.mark.parametrize(
    ("dtype", "threads", "sentence"),
    [
        (np.int32, 1, r"'dtype' parameter of fma_peak must be an array of float32 or float64. Got int32\."),
        (np.float32, 0, r"'threads' parameter of fma_peak must be an int >= 1. Got 0\."),
    ],
)
def test_what_does_not_fit_is_one_sentence(dtype, threads, sentence):
    with pytest.raises(SpecError, match=sentence):
        kernels.fma_peak(dtype, threads=threads)
