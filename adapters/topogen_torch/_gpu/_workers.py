"""Tasks in processes of their own: one that crashes, hangs or loses the card takes no other with it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from time import perf_counter
from typing import Any, NamedTuple, Self

import torch

from topogen_torch._gpu._clock import captures_are_sound

__all__ = ["Failure", "Task", "Workers"]

Task = Callable[[torch.device], Any]
"""What a process does: with its arguments and its result it can be pickled."""

_START = 60.0  # seconds that a process may take to import what it needs, beside those of its first task


class Failure(NamedTuple):
    """What stands in place of a result."""

    text: str


class _Worker:
    """A process that carries out one task after the other."""

    def __init__(self, device: torch.device) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, str(device)), daemon=True)
        self.process.start()
        other.close()
        self.key: Any = None
        self.deadline = perf_counter() + _START
        self.is_sound = True

    def give(self, key: Any, task: Task, seconds: float, end: float) -> None:
        self.key = key
        self.deadline = min(max(perf_counter(), self.deadline) + seconds, end)
        with suppress(BrokenPipeError):  # `take` says what became of the process
            self.connection.send(task)

    def take(self) -> Any:
        try:
            found, self.is_sound = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.is_sound = False
            return Failure(f"its process ended with code {self.process.exitcode}")
        self.deadline = 0.0
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Workers:
    """Processes that share a card; those that have lost it, or do not answer, are replaced."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._idle: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().kill()

    def outcomes(
        self, tasks: Iterable[tuple[Any, Task]], *, processes: int, seconds: float, end: float
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the key of each task and its result, or a `Failure`, as they come.

        Parameters
        ----------
        tasks : iterable of (key, task)
        processes : int
            At the same time.
        seconds : float
            That a task may take; after that it has failed.
        end : float
            On the clock of `time.perf_counter`: no task is begun then, and what runs `seconds` later has failed.
        """
        waiting, busy = iter(tasks), list[_Worker]()
        while len(self._idle) > processes:
            self._idle.pop().kill()
        try:
            while True:
                while len(busy) < processes and perf_counter() < end:
                    given = next(waiting, None)
                    if given is None:
                        break
                    worker = self._idle.pop() if self._idle else _Worker(self._device)
                    worker.give(*given, seconds, end + seconds)
                    busy.append(worker)
                if not busy:
                    return
                soonest = min(worker.deadline for worker in busy)
                ready = wait([worker.connection for worker in busy], max(0.0, soonest - perf_counter()))
                for worker in [*busy]:
                    if worker.connection in ready:
                        found = worker.take()
                    elif perf_counter() > worker.deadline:
                        found, worker.is_sound = Failure(f"no result within {seconds:g} s"), False
                    else:
                        continue
                    busy.remove(worker)
                    if worker.is_sound:
                        self._idle.append(worker)
                    else:
                        worker.kill()
                    yield worker.key, found
        finally:
            for worker in busy:
                worker.kill()


def _serve(connection: Connection, name: str) -> None:
    """Carry out what is sent, until nothing more is, or the card no longer answers."""
    device, is_sound = torch.device(name), True
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current one
    else:
        from topogen_torch._gpu._interpreted import take_cpu_as_card

        take_cpu_as_card()
    gc.freeze()  # torch looks for garbage before it captures a graph: not among all its own modules
    with suppress(EOFError, KeyboardInterrupt):
        while is_sound:
            task = connection.recv()
            try:
                found = task(device)
            except Exception as error:  # of whatever kind: the other tasks are carried out
                found = Failure(f"{type(error).__name__}: {error}")
            is_sound = _is_sound(device)
            connection.send((found, is_sound))


def _is_sound(device: torch.device) -> bool:
    """Whether the card still does what this process asks: an address out of bounds is the end of that."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return captures_are_sound()
