"""From (batch, features) to tiles of samples and back.

Arrays are flat; *packed*, *tile*, *vector* and *lanes* are those of `topogen.kernels._vector`. An array of length 0
stands for one that is not wanted. Every thread that takes part calls the same kernel with the same arguments and
claims chunks of the work until none is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._vector import VECTOR_BYTES, transpose

__all__ = ["MOVE_SLOTS", "Floats", "Ints", "move", "read_rows", "write_rows"]

Floats = NDArray[Any]  # float32 or float64, C-contiguous
Ints = NDArray[np.int32]

MOVE_SLOTS = 2  # counters of `move`
_FEATURES = 128  # in one of its chunks: 512 bytes in a row are what memory likes


@kernel
def move(
    rows: Floats, batch: int, features: int, samples: int, packed: Floats, forth: int, counters: NDArray[np.int64]
) -> None:
    """Copy `rows`, (batch, features), into `packed`, (groups, features, samples), if `forth` (1), else (0) back.

    Squares of one vector are transposed in registers; those of the same samples come one after the other. Forth, zeros
    fill the last group. Counters: chunks claimed and finished.
    """
    lanes = VECTOR_BYTES // rows.itemsize
    groups, stripes = (batch + samples - 1) // samples, (features + _FEATURES - 1) // _FEATURES
    chunk = claim(counters, 0)
    while chunk < groups * stripes:
        group, begin = chunk // stripes, chunk % stripes * _FEATURES
        end = min(features, begin + _FEATURES)
        for start in range(0, samples, lanes):
            sample = group * samples + start
            for feature in range(begin, end, lanes):
                row, place = sample * features + feature, (group * features + feature) * samples + start
                if sample + lanes <= batch and feature + lanes <= end:
                    if forth:
                        transpose(packed, place, samples, rows, row, features)
                    else:
                        transpose(rows, row, features, packed, place, samples)
                    continue
                for f in range(min(lanes, end - feature)):
                    for s in range(lanes):
                        present = sample + s < batch
                        if forth:
                            packed[place + f * samples + s] = rows[row + s * features + f] if present else 0
                        elif present:
                            rows[row + s * features + f] = packed[place + f * samples + s]
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, groups * stripes)


@kernel
def read_rows(
    x: Floats, batch: int, features: int, start: int, width: int, row: int, rows: int, block: Floats, at: int
) -> None:
    """``block[at + i * width + b] = x[start + b, row + i]`` for one tile of samples, zero beyond the batch."""
    lanes = VECTOR_BYTES // x.itemsize
    for first in range(0, width, lanes):
        if rows == lanes and start + first + lanes <= batch:
            transpose(block, at + first, width, x, (start + first) * features + row, features)
        else:
            for i in range(rows):
                for b in range(first, first + lanes):
                    block[at + i * width + b] = x[(start + b) * features + row + i] if start + b < batch else 0


@kernel
def write_rows(
    y: Floats, batch: int, features: int, start: int, width: int, row: int, rows: int, block: Floats, at: int
) -> None:
    """``y[start + b, row + i] = block[at + i * width + b]`` for one tile of samples, as far as the batch goes."""
    lanes = VECTOR_BYTES // y.itemsize
    for first in range(0, width, lanes):
        if rows == lanes and start + first + lanes <= batch:
            transpose(y, (start + first) * features + row, features, block, at + first, width)
        else:
            for i in range(rows):
                for b in range(first, min(first + lanes, batch - start)):
                    y[(start + b) * features + row + i] = block[at + i * width + b]
