"""Products of bfloat16 samples, and their gradients, by address, as `topogen.kernels.launch` has the other types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from topogen.kernels._atomics import SLOT
from topogen.kernels._plan import CACHE_BYTES
from topogen.kernels._scratch import borrowed
from topogen.kernels._short_passes import short_gradients_kernel, short_product_kernel
from topogen.kernels._short_vector import MAX_PAIRS, PAIR
from topogen.kernels._team import run, useful_threads

__all__ = ["short_gradients", "short_product"]

_PANEL_BYTES = 1 << 24  # of packed samples: a larger batch is walked in panels
_STRIPE, _STRIPES = 64, 16  # rows at most; a small matrix is cut into so many stripes
_SQUARE = PAIR // 2
_FLOAT = np.dtype(np.float32)


def short_product(
    operands: Sequence[int], batch: int, inputs: int, outputs: int, connections: int, threads: int
) -> None:
    """Fill y (batch, outputs), bfloat16, from x and values, bfloat16, and a float32 bias; batch > 0.

    The result is each float32 sum rounded once, and does not depend on `threads`.
    """
    x, values, permutation, indptr, indices, bias, y = operands
    samples, panel, stripe = _cut(batch, inputs, outputs)
    with borrowed(connections + -(-panel // samples) * samples // 2 * inputs, _FLOAT) as scratch:
        for start in range(0, batch, panel):
            count = min(panel, batch - start)
            args = (
                scratch, np.zeros((4 + -(-outputs // stripe)) * SLOT, np.int64), x + 2 * start * inputs, values,
                permutation, indptr, indices, bias, y + 2 * start * outputs, count, inputs, outputs, connections,
                samples, stripe, start == 0,
            )  # fmt: skip
            run(short_product_kernel, args, useful_threads(threads, connections * count))


def short_gradients(
    operands: Sequence[int], batch: int, inputs: int, outputs: int, connections: int, threads: int
) -> None:
    """Fill dx (batch, inputs), bfloat16, if it has an address, and dvalues, float32; batch > 0.

    dy and x are bfloat16, values float32 in the order of the rows of W, which are inputs.
    """
    dy, x, values, indptr, indices, dx, dvalues = operands
    samples, panel, stripe = _cut(batch, outputs, inputs)
    with borrowed(-(-panel // samples) * samples // 2 * (inputs + outputs), _FLOAT) as scratch:
        for start in range(0, batch, panel):
            count = min(panel, batch - start)
            args = (
                scratch, np.zeros((6 + -(-inputs // stripe)) * SLOT, np.int64), dy + 2 * start * outputs,
                x + 2 * start * inputs, values, indptr, indices, dx and dx + 2 * start * inputs, dvalues, count,
                inputs, outputs, connections, samples, stripe, start == 0,
            )  # fmt: skip
            run(short_gradients_kernel, args, useful_threads(threads, 2 * connections * count))


@lru_cache(maxsize=1024)
def _cut(batch: int, gathered: int, rows: int) -> tuple[int, int, int]:
    """Return the samples of a tile, those that are packed at a time, and the rows of a stripe, which are whole squares.

    Neurons are read at random `gathered` at a time, by so many rows.
    """
    samples = _samples(batch, gathered)
    panel = min(batch, max(1, _PANEL_BYTES // (2 * samples * gathered or 1)) * samples)
    return samples, panel, min(_STRIPE, -(-max(1, -(-rows // _STRIPES)) // _SQUARE) * _SQUARE)


@lru_cache(maxsize=1024)
def _samples(batch: int, inputs: int) -> int:
    """Return the samples of a tile: as wide as the cache allows, but with little padding in the last one."""
    needed = -(-batch // PAIR)
    widest = min(MAX_PAIRS, max(1, CACHE_BYTES // (2 * PAIR * max(inputs, 1))), needed)
    return min(range(widest, (widest - 1) // 2, -1), key=lambda width: -needed % width) * PAIR
