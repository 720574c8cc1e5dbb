"""Work in several threads: results in order, and no error is lost."""

import threading

import pytest
import torch

from topogen_torch._together import together


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_tasks_run_at_the_same_time_and_results_are_in_order(two_threads):
    both = threading.Barrier(2, timeout=20)
    assert together([lambda k=k: (both.wait(), k)[1] for k in range(4)], size=1 << 30) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_the_first_error_is_raised(two_threads, size):
    def fail(k):
        raise ValueError(f"task {k}")

    with pytest.raises(ValueError, match="task 1"):
        together([lambda: 0, lambda: fail(1), lambda: fail(2)], size=size)


def test_what_is_small_stays_in_the_thread(two_threads):
    assert set(together([threading.get_ident] * 3, size=10)) == {threading.get_ident()}
