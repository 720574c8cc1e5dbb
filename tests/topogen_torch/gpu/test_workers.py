"""Processes that carry out tasks: what one of them does to itself reaches no other task."""

import time

import pytest
import torch

pytest.importorskip("triton")

from topogen_torch._gpu import _workers
from topogen_torch._gpu._workers import Failure, Workers

TASKS = """
import os, time
def name(device): return device.type, os.getpid()
def crash(device): os._exit(3)
def hang(device): time.sleep(1000)
def fail(device): raise ValueError("no such thing")
def lose(device):
    from topogen_torch._gpu import _workers
    _workers._is_sound = lambda device: False
    return "lost"
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module that other processes can import."""
    (tmp_path / "odd_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    import odd_tasks

    return odd_tasks


def test_a_process_that_fails_is_replaced_and_the_others_go_on(tasks):
    names = ["name", "crash", "fail", "lose", "name", "hang", "name"]
    given = [(place, getattr(tasks, name)) for place, name in enumerate(names)]
    with Workers(torch.device("cpu")) as workers:
        found = dict(workers.outcomes(given, processes=1, seconds=3.0, end=time.perf_counter() + 600))
        (still,) = (worker.process for worker in workers._idle)
        assert still.is_alive()
    assert not still.is_alive()
    assert found[1] == Failure("its process ended with code 3")
    assert found[2] == Failure("ValueError: no such thing")
    assert found[3] == "lost"
    assert found[5] == Failure("no result within 3 s")
    kinds, processes = zip(*(found[place] for place in (0, 4, 6)), strict=True)
    assert set(kinds) == {"cpu"}
    assert len(set(processes)) == 3  # after the crash, the loss and the hanging one


def test_nothing_is_begun_after_the_end_and_what_runs_is_stopped(tasks):
    given = [("hangs", tasks.hang), ("late", tasks.name)]
    start = time.perf_counter()
    with Workers(torch.device("cpu")) as workers:
        found = list(workers.outcomes(given, processes=1, seconds=0.2, end=start + 0.1))
        assert found == [("hangs", Failure("no result within 0.2 s"))]
        assert list(workers.outcomes(given, processes=1, seconds=9, end=start)) == []


def test_what_is_left_alone_is_stopped(tasks, monkeypatch):
    killed, kill = [], _workers._Worker.kill
    monkeypatch.setattr(_workers._Worker, "kill", lambda worker: (killed.append(worker), kill(worker)))
    with Workers(torch.device("cpu")) as workers:
        outcomes = workers.outcomes([("a", tasks.name), ("b", tasks.hang)], processes=2, seconds=60, end=1e9)
        assert next(outcomes)[0] == "a"
        outcomes.close()
    assert len(killed) == 2
    assert not any(worker.process.is_alive() for worker in killed)
