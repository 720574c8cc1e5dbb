"""Kernels on the threads of torch's OpenMP runtime."""

import multiprocessing
import os
import threading

import numba
import numpy as np
import pytest
import torch

import topogen_torch as tt
from topogen import kernels
from topogen.kernels import _openmp, _team
from topogen.kernels._atomics import SLOT, claim
from topogen.kernels._openmp import ALONE
from topogen.kernels._spread import spread

tt.SparseLinear  # noqa: B018  # its operators join torch's runtime

pytestmark = pytest.mark.skipif(
    "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info(), reason="this torch has no OpenMP"
)


@pytest.fixture(autouse=True)
def fresh_team(monkeypatch):
    """Every call is worth several threads, and helpers of our own would show."""
    monkeypatch.setattr(_team, "_WORTH_OPENMP", 1)
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_team, "_team", _team._Team())


@numba.njit(nogil=True)
def count(team, counters, failures):
    if spread(team):
        return
    if claim(counters, 0) < failures:
        raise MemoryError


@numba.njit(nogil=True)
def note(team, seen):
    if spread(team):
        return
    seen[team[1]] = team[2]


def products(seed, threads):
    """Results of one product and its gradients, of a random pattern and batch."""
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((70, 120)), rng.standard_normal((70, 120))
    pattern = rng.random((120, 120)) < 0.3
    indptr = np.concatenate([[0], pattern.sum(axis=1).cumsum()]).astype(np.int32)
    indices, values = np.nonzero(pattern)[1].astype(np.int32), rng.standard_normal(pattern.sum())
    dx, dvalues, dbias = np.empty_like(x), np.empty_like(values), np.empty(120)
    kernels.gradients(dy, x, values, indptr, indices, dx=dx, dvalues=dvalues, dbias=dbias, threads=threads)
    return kernels.multiply(x, values, indptr, indices, threads=threads), dx, dvalues, dbias


def agree(found, expected):
    return all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_torchs_runtime_was_joined():
    assert all(_openmp.runtime)
    assert kernels.join_openmp(torch._C.__file__)


@pytest.mark.parametrize("library", ["no_such_library.so", np.random.mtrand.__file__])
def test_a_library_without_a_runtime_changes_nothing(library):
    before = _openmp.runtime
    assert not kernels.join_openmp(library)
    assert _openmp.runtime == before


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_kernel_runs_once_in_each_thread(threads):
    counters = np.zeros(SLOT, np.int64)
    _team.run(count, (counters, 0), threads)
    assert counters[0] == threads


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_thread_knows_its_number(threads):
    seen = np.full(4, -1)
    _team.run(note, (seen,), threads)
    assert seen.tolist() == [threads] * threads + [-1] * (4 - threads)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_results_are_those_of_one_thread_and_no_helper_is_started(threads):
    expected = products(0, 1)
    for _ in range(10):
        assert agree(products(0, threads), expected)
    assert not _team._team._helpers


def test_threads_without_memory_leave_their_part_to_the_others():
    for failures in range(3):
        _team.run(count, (np.zeros(SLOT, np.int64), failures), 3)
    with pytest.raises(MemoryError):
        _team.run(count, (np.zeros(SLOT, np.int64), 3), 3)
    with pytest.raises(MemoryError):
        count(ALONE, np.zeros(SLOT, np.int64), 1)


def test_many_python_threads_may_call_at_once():
    expected, wrong = [products(seed, 1) for seed in range(4)], []

    def work(seed):
        wrong.extend(seed for _ in range(30) if not agree(products(seed, 3), expected[seed]))

    callers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    """The runtime's threads do not live on in the child: waiting for them, it would wait for ever."""
    expected = products(0, 3)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        queue.put((agree(products(0, 3), expected), _openmp.runtime, len(_team._team._helpers)))

    process = context.Process(target=child, daemon=True)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert queue.get() == (True, (0, 0), 2)


def test_of_openmp_one_thread_is_useful_or_all(monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_OPENMP", 1000)
    assert [_team.useful_threads(8, work) for work in (999, 1000, 10**9)] == [1, 8, 8]
    monkeypatch.setattr(_openmp, "runtime", (0, 0))
    assert [_team.useful_threads(8, work) for work in (1, 3)] == [2, 4]
