"""Several pieces of work at once, in as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["together"]

T = TypeVar("T")


def together(tasks: Iterable[Callable[[], T]], *, size: int) -> list[T]:
    """Do all tasks and return their results in order, or raise the error of the first that failed.

    Threads are taken where `size`, the numbers that are worked on, is worth it; a task must not depend on others, nor
    on what belongs to a thread, such as the stream of a card.
    """
    tasks = list(tasks)
    threads = min(torch.get_num_threads(), len(tasks))
    if threads < 2 or size < _WORTH_THREADS:
        return [task() for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


_WORTH_THREADS = 50_000  # numbers; a pool takes about 0.2 ms, a pass over so many less
