"""Several pieces of work at once, in as many threads as torch may use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import torch

__all__ = ["in_turns", "together"]

T = TypeVar("T")
Work = Generator[None, None, T]


def together(tasks: Iterable[Callable[[], T]], *, size: int) -> list[T]:
    """Do all tasks and return their results in order, or raise the error of the first that failed.

    Threads are taken where `size`, the numbers that are worked on, is worth it; a task must not depend on others, nor
    on what belongs to a thread, such as the stream of a card.
    """
    return in_turns([_at_once(task) for task in tasks], size=size)


def in_turns(works: Iterable[Work[T]], *, size: int) -> list[T]:
    """Do pieces of work that make way for others wherever they yield; for the rest, as `together`.

    Three pieces of work on two threads take little more than one and a half of them that way, not two.
    """
    works = list(works)
    results: list[Any] = [None] * len(works)
    errors: dict[int, BaseException] = {}
    waiting = deque(enumerate(works))

    def carry_on() -> None:
        while waiting and not errors:
            try:
                number, work = waiting.popleft()
            except IndexError:  # another thread was faster; it will do what it holds itself
                return
            try:
                next(work)
                waiting.append((number, work))
            except StopIteration as end:
                results[number] = end.value
            except BaseException as error:
                errors[number] = error

    threads = min(torch.get_num_threads(), len(works))
    if threads < 2 or size < _WORTH_THREADS:
        carry_on()
    else:
        with ThreadPoolExecutor(threads - 1) as pool:
            with suppress(RuntimeError):  # where the system grants no thread, those that are there do it all
                for _ in range(threads - 1):
                    pool.submit(carry_on)
            carry_on()
    if errors:
        raise errors[min(errors)]
    return results


def _at_once(task: Callable[[], T]) -> Work[T]:
    return task()
    yield


_WORTH_THREADS = 50_000  # numbers; a pool takes about 0.2 ms, a pass over so many less
