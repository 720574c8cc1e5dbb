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

__all__ = ["NOT_SPACED", "Floats", "Ints", "move", "read_rows", "write_rows"]

Floats = NDArray[Any]  # float32 or float64, C-contiguous
Ints = NDArray[np.int32]

NOT_SPACED = 63
_FEATURES = 128  # in one of its chunks: 512 bytes in a row are what memory likes


@kernel
def move(
    rows: Floats, batch: int, features: int, samples: int, packed: Floats, spacing: int, forth: int,
    number: int, shares: int, counters: NDArray[np.int64],
) -> None:  # fmt: skip
    """Copy `rows`, (batch, features), into `packed`, (groups, places, samples), if `forth` (1), else (0) back.

    Feature f has place ``f + (f >> spacing)``, so that one place stays empty behind so many, or `NOT_SPACED`.

    Squares of one vector are transposed in registers; those of the same samples come one after the other. Forth, zeros
    fill the last group. Thread `number` begins with its own of `shares` of the work. Counters: chunks finished, then
    those claimed of each share.
    """
    lanes = VECTOR_BYTES // rows.itemsize
    groups, stripes = (batch + samples - 1) // samples, (features + _FEATURES - 1) // _FEATURES
    places = features + (features >> spacing)
    for turn in range(shares):
        share = (number + turn) % shares
        begin_chunk, end_chunk = share * groups * stripes // shares, (share + 1) * groups * stripes // shares
        chunk = begin_chunk + claim(counters, (1 + share) * SLOT)
        while chunk < end_chunk:
            group, begin = chunk // stripes, chunk % stripes * _FEATURES
            end = min(features, begin + _FEATURES)
            for start in range(0, samples, lanes):
                sample = group * samples + start
                for feature in range(begin, end, lanes):  # no empty place lies between so many neighbours
                    row = sample * features + feature
                    place = (group * places + feature + (feature >> spacing)) * samples + start
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
            claim(counters, 0)
            chunk = begin_chunk + claim(counters, (1 + share) * SLOT)
    wait_until(counters, 0, groups * stripes)


@kernel
def read_rows(x: Floats, batch: int, features: int, start: int, width: int, row: int, rows: int, block: Floats) -> None:
    """``block[i * width + b] = x[start + b, row + i]`` for one tile of samples, zero beyond the batch."""
    lanes = VECTOR_BYTES // x.itemsize
    for first in range(0, width, lanes):
        for r in range(0, rows, lanes):
            if r + lanes <= rows and start + first + lanes <= batch:
                transpose(block, r * width + first, width, x, (start + first) * features + row + r, features)
                continue
            for i in range(r, min(r + lanes, rows)):
                for b in range(first, first + lanes):
                    block[i * width + b] = x[(start + b) * features + row + i] if start + b < batch else 0


@kernel
def write_rows(
    y: Floats, batch: int, features: int, start: int, width: int, row: int, rows: int, block: Floats
) -> None:
    """``y[start + b, row + i] = block[i * width + b]`` for one tile of samples, as far as the batch goes."""
    lanes = VECTOR_BYTES // y.itemsize
    for first in range(0, width, lanes):
        for r in range(0, rows, lanes):
            if r + lanes <= rows and start + first + lanes <= batch:
                transpose(y, (start + first) * features + row + r, features, block, r * width + first, width)
                continue
            for i in range(r, min(r + lanes, rows)):
                for b in range(first, min(first + lanes, batch - start)):
                    y[(start + b) * features + row + i] = block[i * width + b]
