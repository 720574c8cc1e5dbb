"""Several pieces of work at once: what they return, what they raise, and when each of them goes on."""

import threading

import pytest
import torch

from topogen_torch import _together
from topogen_torch._together import in_turns, together


@pytest.fixture(params=[1, 2, 4], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


LARGE = 10 * _together._WORTH_THREADS


def counting(log, name, steps):
    for step in range(steps):
        log.append((name, step))
        yield
    return name, steps


@pytest.mark.parametrize("size", [0, LARGE])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order(size, count):
    assert together([lambda k=k: k * k for k in range(count)], size=size) == [k * k for k in range(count)]
    log = []
    works = [counting(log, name, name % 3) for name in range(count)]
    assert in_turns(works, size=size) == [(name, name % 3) for name in range(count)]
    assert sorted(log) == [(name, step) for name in range(count) for step in range(name % 3)]


def test_where_the_system_grants_no_thread_one_does_it_all(monkeypatch):
    def refuse(pool, work):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_together.ThreadPoolExecutor, "submit", refuse)
    assert together([lambda k=k: k * k for k in range(7)], size=LARGE) == [k * k for k in range(7)]


def test_where_one_yields_the_next_goes_on():
    log = []
    in_turns([counting(log, name, 2) for name in "abc"], size=0)
    assert log == [(name, step) for step in range(2) for name in "abc"]


def test_threads_are_taken_where_it_is_worth_it(threads):
    """Two tasks that wait for each other finish only side by side."""
    barrier = threading.Barrier(2, timeout=0.5 if threads == 1 else 30)
    tasks = [barrier.wait, barrier.wait]
    if threads == 1:
        with pytest.raises(threading.BrokenBarrierError):
            together(tasks, size=LARGE)
    else:
        assert sorted(together(tasks, size=LARGE)) == [0, 1]


@pytest.mark.parametrize("size", [0, LARGE])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_when_nothing_runs_any_more(size, error):
    running = threading.active_count()

    def fails():
        raise error("here")

    with pytest.raises(error, match="here"):
        together([lambda: 1, fails, lambda: 3], size=size)
    assert threading.active_count() == running


def test_of_two_errors_the_first_in_order_is_raised(threads):
    """Both have failed before either is looked at, where there are threads for both."""
    barrier = threading.Barrier(min(threads, 2), timeout=30)

    def fails(number):
        barrier.wait()
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 0"):
        together([lambda: fails(0), lambda: fails(1)], size=LARGE)
