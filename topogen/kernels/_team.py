"""Threads that help the calling thread with one kernel call: an OpenMP runtime's, or some of our own."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from topogen.kernels import _openmp
from topogen.kernels._openmp import ALONE

__all__ = ["run", "useful_threads"]

_WORTH_A_THREAD = 2_000_000  # multiply-adds, about 50 microseconds; waking a helper takes 20
_WORTH_OPENMP = 300_000  # its threads stay awake for a while and take 2

Job = list[tuple[Callable[..., Any], tuple[Any, ...]]]  # one call, or none any more


class _Team:
    """Helpers that sleep until a kernel call is put on their queue.

    Helpers belong to no caller: any number of Python threads may call at once. A kernel shares its work through
    counters, so that it is complete when the caller's own call returns, even if every helper comes too late: such a
    helper finds nothing left to claim.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._helpers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, kernel: Callable[..., Any], args: tuple[Any, ...], threads: int) -> None:
        if threads - 1 > len(self._helpers):
            self._grow(threads - 1)
        job: Job = [(kernel, args)]
        for _ in range(threads - 1):
            self._jobs.put(job)
        try:
            kernel(*args)
        finally:
            job.clear()  # what still waits in the queue must keep no array alive

    def stop(self) -> None:
        """End all helpers; later calls do their work alone."""
        with self._lock:
            self._stopped = True
            for _ in self._helpers:
                self._jobs.put(None)
            for helper in self._helpers:
                helper.join()

    def _grow(self, size: int) -> None:
        with self._lock:
            while len(self._helpers) < size and not self._stopped:
                helper = threading.Thread(target=self._serve, name=f"topogen-{len(self._helpers)}", daemon=True)
                helper.start()
                self._helpers.append(helper)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            for kernel, args in job[:]:
                with suppress(MemoryError):  # before it has claimed anything: the others do its part
                    kernel(*args)
                del kernel, args  # nor may a sleeping helper
            del job


def run(kernel: Callable[..., Any], args: tuple[Any, ...], threads: int) -> None:
    """Call ``kernel(team, *args)`` in this thread and in up to `threads` - 1 others; return when all work is done."""
    if threads <= 1:
        kernel(ALONE, *args)
    elif _openmp.runtime[0]:
        kernel((*_openmp.runtime, threads), *args)
    else:
        _team.run(kernel, ((0, 0, threads), *args), threads)


def useful_threads(threads: int, multiply_adds: int) -> int:
    """Return how many of so many threads are worth waking.

    Of OpenMP's it is one or all: the runtime ends threads that one call leaves out and starts them for the next.
    """
    if _openmp.runtime[0]:
        return threads if multiply_adds >= _WORTH_OPENMP else 1
    return min(threads, 1 + multiply_adds // _WORTH_A_THREAD)


def _renew() -> None:
    """Start afresh: a forked child has its parent's team, but none of its threads."""
    global _team
    _team = _Team()


_team = _Team()
# A thread that comes back from compiled code while the interpreter is being torn down would abort the process.
atexit.register(lambda: _team.stop())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
