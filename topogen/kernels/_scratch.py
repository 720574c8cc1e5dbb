"""Memory that kernel calls use again and again, so that the system need not clear fresh pages for each of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["borrowed"]

_PAGE = 1 << 22  # from 4 MiB on numpy asks for huge pages, which spares the processor's page tables
_KEPT = 4  # buffers in all; more only live as long as more calls run at once

_spare: list[NDArray[np.uint8]] = []


@contextmanager
def borrowed(count: int, dtype: np.dtype[Any]) -> Generator[NDArray[Any]]:
    """Lend `count` uninitialised elements for one call; safe under any number of threads."""
    needed = count * dtype.itemsize
    try:
        buffer = _spare.pop()
    except IndexError:
        buffer = np.empty(0, np.uint8)
    if buffer.nbytes < needed:
        buffer = np.empty(-(-needed // _PAGE) * _PAGE, np.uint8)
    try:
        yield buffer[:needed].view(dtype)
    finally:
        if len(_spare) < _KEPT:
            _spare.append(buffer)
