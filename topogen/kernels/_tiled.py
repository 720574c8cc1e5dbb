"""The compiled side of the products: tiles of samples, and the rows of a sparse matrix that pass over them.

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
from topogen.kernels._vector import VECTOR_BYTES, row_gradients, row_product, transpose

__all__ = ["Floats", "Ints", "fresh_counters", "gradients_kernel", "product_kernel"]

Floats = NDArray[Any]  # float32 or float64, C-contiguous
Ints = NDArray[np.int32]

_PACK = 4  # vectors of features in one chunk of packing
_ROWS = 4  # vectors of rows in one stripe, the chunk of a product


def fresh_counters(rows: int, itemsize: int) -> NDArray[np.int64]:
    """Return what the threads of one call share, for a product over so many rows.

    Slots 0 and 1: chunks of packing claimed and finished; 2 and 3: those of the product; then for each stripe of rows
    the tiles that have passed over it.
    """
    stripes = -(-rows // (_ROWS * VECTOR_BYTES // itemsize))
    return np.zeros((4 + stripes) * SLOT, np.int64)


@kernel
def _pack(x: Floats, batch: int, features: int, tile: int, chunk: int, packed: Floats, sums: Floats) -> None:
    """Pack one chunk of features, for all samples; zeros fill the last vector. Add up each feature into `sums`.

    A tile is added up in the dtype, which vectorises; the tiles in float64, so that a large batch loses nothing.
    """
    lanes = VECTOR_BYTES // x.itemsize
    begin, end = chunk * _PACK * lanes, min(features, (chunk + 1) * _PACK * lanes)
    partial, total = np.empty(end - begin, x.dtype), np.zeros(end - begin, np.float64)
    for start in range(0, batch, tile):
        width = min(tile, (batch - start + lanes - 1) // lanes * lanes)
        base = start * features
        for sample in range(start, start + width, lanes):
            f = begin
            if sample + lanes <= batch:
                while f + lanes <= end:
                    transpose(packed, base + f * width + sample - start, width, x, sample * features + f, features)
                    f += lanes
            for g in range(f, end):
                for b in range(lanes):
                    packed[base + g * width + sample - start + b] = (
                        x[(sample + b) * features + g] if sample + b < batch else 0
                    )
        if len(sums):
            partial[:] = 0
            for sample in range(start, min(start + width, batch)):
                for f in range(begin, end):
                    partial[f - begin] += x[sample * features + f]
            total += partial
    if len(sums):
        sums[begin:end] = total


@kernel
def _read_rows(
    x: Floats, batch: int, features: int, start: int, width: int, row: int, rows: int, block: Floats
) -> None:
    """``block[i, b] = x[start + b, row + i]`` for one tile of samples, zero beyond the batch."""
    lanes = VECTOR_BYTES // x.itemsize
    for first in range(0, width, lanes):
        if rows == lanes and start + first + lanes <= batch:
            transpose(block, first, width, x, (start + first) * features + row, features)
        else:
            for i in range(rows):
                for b in range(first, first + lanes):
                    block[i * width + b] = x[(start + b) * features + row + i] if start + b < batch else 0


@kernel
def _write_rows(
    y: Floats, batch: int, features: int, start: int, width: int, row: int, rows: int, block: Floats
) -> None:
    """``y[start + b, row + i] = block[i, b]`` for one tile of samples, as far as the batch goes."""
    lanes = VECTOR_BYTES // y.itemsize
    for first in range(0, width, lanes):
        if rows == lanes and start + first + lanes <= batch:
            transpose(y, (start + first) * features + row, features, block, first, width)
        else:
            for i in range(rows):
                for b in range(first, min(first + lanes, batch - start)):
                    y[(start + b) * features + row + i] = block[i * width + b]


@kernel
def product_kernel(
    x: Floats,
    sums: Floats,
    values: Floats,
    permutation: Ints,
    indptr: Ints,
    indices: Ints,
    bias: Floats,
    y: Floats,
    batch: int,
    tile: int,
    packed: Floats,
    ordered: Floats,
    counters: NDArray[np.int64],
) -> None:
    """Compute `y`, the sums of the columns of `x` into `sums`, and `values` in the order of the rows into `ordered`.

    Without a permutation `ordered` must be `values`.
    """
    lanes = VECTOR_BYTES // x.itemsize
    inputs, outputs = len(x) // batch, len(indptr) - 1
    block = np.empty(lanes * tile, x.dtype)

    packs = (inputs + _PACK * lanes - 1) // (_PACK * lanes)
    chunk = claim(counters, 0)
    while chunk < packs:
        _pack(x, batch, inputs, tile, chunk, packed, sums)
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, packs)

    stripes = (outputs + _ROWS * lanes - 1) // (_ROWS * lanes)
    tiles = (batch + tile - 1) // tile
    done = 4 * SLOT
    chunk = claim(counters, 2 * SLOT)
    while chunk < tiles * stripes:  # tile after tile, so that all threads keep the same one in the cache
        number, stripe = chunk // stripes, chunk % stripes
        start = number * tile
        width = min(tile, (batch - start + lanes - 1) // lanes * lanes)
        gather = number == 0 and len(permutation) > 0
        wait_until(counters, done + stripe * SLOT, min(number, 1))  # the first tile has gathered the values
        for row in range(stripe * _ROWS * lanes, min(outputs, (stripe + 1) * _ROWS * lanes), lanes):
            rows = min(lanes, outputs - row)
            for i in range(rows):
                begin, end = np.int64(indptr[row + i]), np.int64(indptr[row + i + 1])
                initial = bias[row + i] if len(bias) else x.dtype.type(0)
                row_product(
                    block, i * width, initial, values, permutation, ordered, gather, indices, begin, end,
                    packed, start * inputs, width // lanes,
                )  # fmt: skip
            _write_rows(y, batch, outputs, start, width, row, rows, block)
        claim(counters, done + stripe * SLOT)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT)
    wait_until(counters, 3 * SLOT, tiles * stripes)


@kernel
def gradients_kernel(
    dy: Floats,
    sums: Floats,
    x: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    dx: Floats,
    dvalues: Floats,
    batch: int,
    tile: int,
    packed: Floats,
    counters: NDArray[np.int64],
) -> None:
    """Compute `dvalues` and `dx`, and the sums of the columns of `dy` into `sums`."""
    lanes = VECTOR_BYTES // x.itemsize
    inputs, outputs = len(x) // batch, len(dy) // batch
    x_block, dx_block = np.empty(lanes * tile, x.dtype), np.empty(lanes * tile, x.dtype)

    packs = (outputs + _PACK * lanes - 1) // (_PACK * lanes)
    chunk = claim(counters, 0)
    while chunk < packs:
        _pack(dy, batch, outputs, tile, chunk, packed, sums)
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, packs)

    stripes = (inputs + _ROWS * lanes - 1) // (_ROWS * lanes)
    tiles = (batch + tile - 1) // tile
    done = 4 * SLOT
    chunk = claim(counters, 2 * SLOT)
    while chunk < tiles * stripes:
        number, stripe = chunk // stripes, chunk % stripes
        start = number * tile
        width = min(tile, (batch - start + lanes - 1) // lanes * lanes)
        wait_until(counters, done + stripe * SLOT, number)  # value gradients add up tile by tile, whoever computes them
        for row in range(stripe * _ROWS * lanes, min(inputs, (stripe + 1) * _ROWS * lanes), lanes):
            rows = min(lanes, inputs - row)
            _read_rows(x, batch, inputs, start, width, row, rows, x_block)
            for i in range(rows):
                begin, end = np.int64(indptr[row + i]), np.int64(indptr[row + i + 1])
                row_gradients(
                    dx_block, i * width, x_block, i * width, dvalues, number == 0, len(dx) > 0,
                    values, indices, begin, end, packed, start * outputs, width // lanes,
                )  # fmt: skip
            if len(dx):
                _write_rows(dx, batch, inputs, start, width, row, rows, dx_block)
        claim(counters, done + stripe * SLOT)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT)
    wait_until(counters, 3 * SLOT, tiles * stripes)
