"""The product kernels against dense float64, whatever the shapes, threads and processes."""

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import _openmp, _passes, _plan, _single, _team, launch
from topogen.kernels._compile import kernel

DTYPES = (np.float32, np.float64)
KERNELS = (
    _passes.product_kernel,
    _passes.gradients_kernel,
    _passes.move_kernel,
    _single.single_product_kernel,
    _single.single_gradients_kernel,
)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-13}


@st.composite
def problems(draw):
    """A pattern, a batch size around the tile's edges, a dtype and a seed."""
    shape = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    pattern = draw(hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))
    batch = draw(st.one_of(st.integers(0, 40), st.sampled_from([47, 48, 95, 96, 97, 130])))
    return pattern, batch, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32 - 1))


class Problem:
    """Everything that a layer's forward and backward pass need, with the dense truth."""

    def __init__(self, pattern, batch, dtype, seed=0):
        rng = np.random.default_rng(seed)
        n_in, n_out = pattern.shape
        csr = sp.csr_array(pattern)
        places = sp.csr_array((np.arange(csr.nnz, dtype=np.int32), csr.indices, csr.indptr), shape=csr.shape).tocsc()
        self.indptr, self.indices = csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
        self.transposed = tuple(
            part.astype(np.int32) for part in (places.indptr, places.indices, places.data)
        )  # indptr, indices, permutation
        self.x, self.dy, self.values, self.bias = (
            rng.standard_normal(size).astype(dtype) for size in ((batch, n_in), (batch, n_out), csr.nnz, n_out)
        )
        self.pattern = np.asarray(pattern)
        self.tolerance = TOLERANCE[dtype]

    def forward(self, threads=1):
        indptr, indices, permutation = self.transposed
        out = np.full_like(self.dy, np.nan)
        kernels.multiply(self.x, self.values, indptr, indices, permutation, self.bias, out=out, threads=threads)
        return out

    def backward(self, threads=1, wanted=("dx", "dvalues", "dbias")):
        shapes = {"dx": self.x, "dvalues": self.values, "dbias": self.bias}
        found = {name: np.full_like(shapes[name], np.nan) for name in wanted}
        kernels.gradients(self.dy, self.x, self.values, self.indptr, self.indices, **found, threads=threads)
        return found

    def truth(self):
        weights = np.zeros(self.pattern.shape)
        weights[self.pattern] = self.values
        x, dy = self.x.astype(float), self.dy.astype(float)
        gradients = {"dx": dy @ weights.T, "dvalues": (x.T @ dy)[self.pattern], "dbias": dy.sum(axis=0)}
        return x @ weights + self.bias, gradients

    def agree(self, mine, true):
        np.testing.assert_allclose(mine, true, rtol=0, atol=self.tolerance * (1 + np.abs(true).max(initial=0)) * 10)


@settings(deadline=None, max_examples=60)
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
    problem = Problem(np.random.default_rng(1).random((45, 33)) < 0.4, 50, dtype)
    _, gradients = problem.truth()
    for name, found in problem.backward(wanted=wanted).items():
        problem.agree(found, gradients[name])


def test_without_permutation_and_bias_the_values_are_taken_in_order():
    problem = Problem(np.random.default_rng(1).random((45, 33)) < 0.4, 50, np.float64)
    _, gradients = problem.truth()
    found = kernels.multiply(problem.dy, problem.values, problem.indptr, problem.indices)
    problem.agree(found, gradients["dx"])


@given(problems(), st.integers(1, 3))
def test_a_single_sample_equals_dense_float64(problem, threads):
    pattern, _, dtype, seed = problem
    problem = Problem(pattern, 1, dtype, seed)
    found = kernels.multiply_vector(
        problem.x[0], problem.values, problem.indptr, problem.indices, pattern.shape[1], problem.bias, threads=threads
    )
    problem.agree(found, problem.truth()[0][0])
    with pytest.raises(SpecError, match=r"^The 'bias' parameter of multiply_vector must have 99 elements\. Got \d+\.$"):
        kernels.multiply_vector(problem.x[0], problem.values, problem.indptr, problem.indices, 99, problem.bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_bit_identical_for_any_number_of_threads(dtype, monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    problem = Problem(np.random.default_rng(2).random((301, 203)) < 0.2, 333, dtype)
    reference = problem.forward(), problem.backward()
    for threads in (2, 3, 8):
        for _ in range(5):
            assert np.array_equal(problem.forward(threads), reference[0])
            for name, found in problem.backward(threads).items():
                assert np.array_equal(found, reference[1][name])


RACES = {
    "one stripe of inputs, many tiles": (30, 1500, 700),
    "one stripe of outputs, many tiles": (20_000, 30, 200),
    "much to pack, little to multiply": (4000, 60, 200),
}


@pytest.mark.parametrize("race", RACES)
def test_no_thread_runs_ahead_of_what_it_needs(race, monkeypatch):
    """Scratch and results start as NaN, so that whatever is read too early or left out shows."""
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(launch, "borrowed", lambda count, dtype: nullcontext(np.full(count, np.nan, dtype)))
    n_in, n_out, batch = RACES[race]
    problem = Problem(np.random.default_rng(2).random((n_in, n_out)) < 0.1, batch, np.float32)
    reference = problem.forward(), problem.backward()
    for _ in range(60):
        assert np.array_equal(problem.forward(threads=3), reference[0])
        for name, found in problem.backward(threads=3).items():
            assert np.array_equal(found, reference[1][name])


def test_gradients_of_a_large_batch_keep_float32_precision():
    """One running sum over 200 000 samples would lose three digits of the bias gradient."""
    problem = Problem(np.ones((1, 1), bool), 200_000, np.float32)
    problem.dy[:] = 1.1
    found = problem.backward()
    assert found["dbias"][0] == pytest.approx(200_000 * np.float32(1.1), rel=1e-5)


def test_infinities_and_nans_stay_where_they_belong():
    """A multiplication by a padding zero would spread them over the whole row."""
    pattern = np.eye(20, 24, dtype=bool)
    problem = Problem(pattern, 18, np.float32)
    problem.x[3, 5], problem.dy[4, 6] = np.inf, np.nan
    y, found = problem.forward(), problem.backward()
    assert np.argwhere(~np.isfinite(y)).tolist() == [[3, 5]]
    assert np.argwhere(~np.isfinite(found["dx"])).tolist() == [[4, 6]]
    assert np.argwhere(~np.isfinite(found["dvalues"])).tolist() == [[5], [6]]


def test_read_only_arrays_are_accepted():
    problem = Problem(np.random.default_rng(1).random((20, 20)) < 0.4, 20, np.float32)
    reference = problem.forward()
    compiled = len(_passes.product_kernel.signatures)
    for array in (problem.x, problem.values, problem.bias, *problem.transposed):
        array.flags.writeable = False
    assert np.array_equal(problem.forward(), reference)
    assert len(_passes.product_kernel.signatures) == compiled  # no further variant was compiled


def test_many_python_threads_may_call_at_once(monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    problems = [Problem(np.random.default_rng(k).random((120 + k, 90)) < 0.3, 64 + k, np.float32, k) for k in range(6)]
    expected = [(problem.forward(), problem.backward()["dvalues"]) for problem in problems]
    wrong = []

    def work(problem, truth):
        for _ in range(30):
            y, dvalues = problem.forward(threads=3), problem.backward(threads=3)["dvalues"]
            if not (np.array_equal(y, truth[0]) and np.array_equal(dvalues, truth[1])):
                wrong.append(problem)

    callers = [threading.Thread(target=work, args=pair) for pair in zip(problems, expected, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_can_use_several_threads(monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    problem = Problem(np.random.default_rng(0).random((200, 200)) < 0.3, 100, np.float32)
    expected = problem.forward(threads=3)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        queue.put((np.array_equal(problem.forward(threads=3), expected), len(_team._team._helpers)))

    process = context.Process(target=child)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert queue.get() == (True, 2)  # helpers of its own, not the parent's


def test_a_call_needs_no_helper_to_finish(monkeypatch):
    """Helpers that never come leave all the work to the caller."""
    team = _team._Team()
    monkeypatch.setattr(_team, "_team", team)
    monkeypatch.setattr(_openmp, "runtime", (0, 0))
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_team.threading.Thread, "start", lambda self: None)
    problem = Problem(np.random.default_rng(0).random((100, 100)) < 0.3, 100, np.float32)
    problem.agree(problem.forward(threads=4), problem.truth()[0])


def test_jobs_that_no_helper_took_keep_no_array_alive(monkeypatch):
    team = _team._Team()
    monkeypatch.setattr(_team.threading.Thread, "start", lambda self: None)
    array = np.zeros(3)
    alive = weakref.ref(array)
    team.run(lambda array: None, (array,), 4)
    del array
    assert team._jobs.qsize() == 3
    assert alive() is None


def test_a_helper_without_memory_leaves_its_part_to_the_others():
    team = _team._Team()
    caller, called = threading.current_thread(), threading.Event()

    def kernel():
        if threading.current_thread() is not caller:
            called.set()
            raise MemoryError

    team.run(lambda: (kernel(), called.wait(10)), (), 2)
    called.clear()
    team.run(lambda: (kernel(), called.wait(10)), (), 2)  # the helper is still there
    assert called.is_set()
    team.stop()
    assert not any(helper.is_alive() for helper in team._helpers)


AT_EXIT = """
import numpy as np
from topogen import kernels
from topogen.kernels import _team
_team._WORTH_A_THREAD = 1
x, index = np.ones((64, 1), np.float32), np.array([0, 1], np.int32)
for _ in range(int(__import__("sys").argv[1])):
    kernels.multiply(x, x[0], index, index[:1], threads=4)
"""


def test_the_interpreter_ends_cleanly_with_helpers_at_work():
    """A thread that returns from compiled code into a dying interpreter would abort the process."""
    for calls in range(1, 4):
        assert subprocess.run([sys.executable, "-c", AT_EXIT, str(calls)], check=False).returncode == 0


def test_a_kernel_from_no_file_is_compiled_without_a_cache():
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)
    double = kernel(namespace["double"])
    assert double(21) == 42
    assert double.stats.cache_path is None


def test_small_work_stays_on_the_calling_thread():
    assert _team.useful_threads(8, 1000) == 1
    assert _team.useful_threads(8, 10**9) == 8


def test_groups_cover_the_batch_and_stay_within_the_cache():
    for itemsize in (4, 8):
        lanes = 64 // itemsize
        for batch in (1, 15, 16, 17, 64, 255, 256, 1000):
            for neurons in (1, 300, 4096, 10**6):
                samples = _plan.samples_per_group(batch, neurons, itemsize)
                assert samples % lanes == 0
                assert lanes <= samples <= 6 * lanes
                assert -batch % samples <= batch // 2 + lanes
                if samples > 2 * lanes:
                    assert samples * neurons * itemsize <= _plan.CACHE_BYTES
    assert _plan.samples_per_group(256, 1024, 4) == 64  # 4 groups without padding, not 3 of 96 with


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_many_panels_gives_the_same(dtype, monkeypatch):
    problem = Problem(np.random.default_rng(3).random((40, 30)) < 0.3, 700, dtype)
    y, gradients = problem.truth()
    monkeypatch.setattr(launch, "_PANEL_BYTES", 1)
    problem.agree(problem.forward(threads=2), y)
    for name, found in problem.backward(threads=2).items():
        problem.agree(found, gradients[name])
    problem.agree(problem.backward(wanted=("dx", "dbias"))["dbias"], gradients["dbias"])


def test_bad_arguments_are_named():
    problem = Problem(np.eye(3, dtype=bool), 4, np.float32)
    indptr, indices, _permutation = problem.transposed
    with pytest.raises(
        SpecError, match=r"^The 'values' parameter of multiply must be a C-contiguous array of float32\. Got float64\.$"
    ):
        kernels.multiply(problem.x, problem.values.astype(float), indptr, indices)
    with pytest.raises(
        SpecError, match=r"^The 'indices' parameter of multiply must be a C-contiguous array of int32\. Got int64\.$"
    ):
        kernels.multiply(problem.x, problem.values, indptr, indices.astype(np.int64))
    with pytest.raises(
        SpecError,
        match=r"^The 'x' parameter of multiply must be a C-contiguous array of float32\. Got a strided one\.$",
    ):
        kernels.multiply(problem.x[:, ::-1], problem.values, indptr, indices)
    with pytest.raises(
        SpecError, match=r"^The 'x' parameter of multiply must be an array of float32 or float64\. Got int32\.$"
    ):
        kernels.multiply(problem.x.astype(np.int32), problem.values, indptr, indices)
    with pytest.raises(SpecError, match=r"^The 'bias' parameter of multiply must have 3 elements\. Got 2\.$"):
        kernels.multiply(problem.x, problem.values, indptr, indices, bias=problem.bias[:2])
    with pytest.raises(SpecError, match=r"^The 'dx' parameter of gradients must have 12 elements\. Got 8\.$"):
        kernels.gradients(
            problem.dy,
            problem.x,
            problem.values,
            problem.indptr,
            problem.indices,
            dx=problem.x[:2, :].repeat(2, 1)[:2, :4].copy(),
        )
    with pytest.raises(SpecError, match=r"^The 'threads' parameter of multiply must be an int >= 1\. Got 0\.$"):
        kernels.multiply(problem.x, problem.values, indptr, indices, threads=0)


COMPILE_TWICE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
import numpy as np
from topogen import kernels
x = np.ones((2, 1), np.float32)
index = np.array([0, 1], np.int32)
for _ in range(2):
    kernels.multiply(x, x[:1, 0].copy(), index, index[:1])
"""


def test_compilation_is_announced_once_and_cached(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", COMPILE_TWICE], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    )
    assert first.stdout.count("topogen WARNING Compiling the CPU kernels") == 1
    assert str(tmp_path) in first.stdout
    assert second.stdout == ""


def test_importing_topogen_does_not_import_numba():
    expected = {"topogen": False, "topogen.kernels": False, "topogen.kernels.launch": True}  # the check can fail
    for module, loads in expected.items():
        code = f"import sys, {module}; print('numba' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == f"{loads}\n"


def test_warm_up_leaves_nothing_to_compile(caplog):
    kernels.warm_up()
    caplog.clear()
    compiled = {function: len(function.signatures) for function in KERNELS}
    with caplog.at_level(logging.WARNING, "topogen"):
        for dtype in DTYPES:
            problem = Problem(np.eye(9, dtype=bool), 4, dtype)
            problem.forward()
            problem.backward()
    assert {function: len(function.signatures) for function in compiled} == compiled
    assert set(compiled.values()) == {2}
    assert not caplog.records
