"""Compile every kernel, or load it from the cache, at a moment of the caller's choice."""

from __future__ import annotations

import numpy as np

from topogen.kernels._graphs import carry, predecessor_sums, predecessor_unions, successor_unions
from topogen.kernels._products import gradients, multiply

__all__ = ["warm_up"]


def warm_up() -> None:
    """Make every kernel ready, for each of its number types, so that no later call waits for the compiler.

    Seconds where nothing is cached yet, which a message says; a fraction of a second otherwise.

    Examples
    --------
    >>> from topogen import kernels
    >>> kernels.warm_up()
    """
    index = np.array([0, 1], np.int32)
    for dtype in (np.float32, np.float64):
        one = np.ones((1, 1), dtype)
        multiply(one, one[0], index, index[:1])
        gradients(one, one, one[0], index, index[:1], dx=one.copy(), dvalues=one[0].copy())
    one, words = np.ones((1, 1), np.int64), np.ones((1, 1), np.uint64)
    predecessor_sums(index, index[:1], one[0], one, one.copy())
    predecessor_unions(index, index[:1], words, words.copy())
    successor_unions(index, index[:1], words, words.copy())
    carry(np.ones((1, 2, 1), np.int64), 62)
