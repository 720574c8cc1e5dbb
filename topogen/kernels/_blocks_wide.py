"""The compiled side of block products whose blocks are some vectors wide: neurons side by side in a vector.

Arguments ``*_at`` are addresses, of int32 or of the dtype of `packed`; 0 stands for an array that is not wanted.
*Strip* is that of `topogen.kernels._block_vector`. Every thread that takes part calls the same kernel with the same
arguments and claims chunks of the work until none is left.

A *panel* holds the samples of one block of neurons, ``batch * block`` numbers, so that a product of a panel with a
block reads memory in order. Packing the batch into panels is a copy, no transpose; (batch, features) itself would put
all samples of a neuron into the same few sets of the cache wherever the features are a power of two. A batch of few
samples is read where it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._block_vector import STRIP, add_outer_products, add_product, copy_rows
from topogen.kernels._column_sums import add_columns, column_pieces
from topogen.kernels._compile import kernel
from topogen.kernels._memory import floats_at, ints_at
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._tiled import Floats
from topogen.kernels._vector import VECTOR_BYTES, transpose

__all__ = ["wide_gradients_kernel", "wide_product_kernel"]

_PIECE = 256  # features in one chunk of packing, about
_ROWS = 16  # samples of a piece that are copied panel by panel
_SAMPLES = 64  # of two panels that stay in the first-level cache while all rows of a block pass over them
_DEPTH = 64  # rows of a strip that stay there while the samples pass


@kernel
def _pack(x: Floats, batch: int, block: int, packed: Floats, counters: NDArray[np.int64]) -> tuple[int, int]:
    """Pack `x` if that is wanted; return the strides of panels and of samples."""
    lanes, features = VECTOR_BYTES // x.itemsize, len(x) // batch
    if not len(packed):
        return block, features
    piece = max(1, _PIECE // block) * block
    pieces = (features + piece - 1) // piece
    chunk = claim(counters, 0)
    while chunk < pieces:
        for s in range(0, batch, _ROWS):
            for f in range(chunk * piece, min(features, (chunk + 1) * piece), block):
                copy_rows(
                    packed, f * batch + s * block, block, x, s * features + f, features,
                    min(_ROWS, batch - s), block // lanes,
                )  # fmt: skip
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, pieces)
    return batch * block, block


@kernel
def _add_product(
    out: Floats, x: Floats, x_at: int, x_stride: int, samples: int, values: Floats, at: int, block: int
) -> None:
    """``out += x @ values`` for one panel and one block, strip by strip."""
    lanes = VECTOR_BYTES // x.itemsize
    for j in range(0, block, STRIP * lanes):
        for i in range(0, block, _DEPTH):
            add_product(
                out, j, block, x, x_at + i, x_stride, samples,
                values, at + i * block + j, block, min(_DEPTH, block - i), min(STRIP, (block - j) // lanes),
            )  # fmt: skip


@kernel
def _add_outer_products(
    out: Floats, at: int, first: bool, x: Floats, dy: Floats, dy_at: int, dy_stride: int, samples: int, block: int
) -> None:
    """``out = x.T @ dy`` for two panels, some samples at a time; added to what stands there unless `first`."""
    lanes = VECTOR_BYTES // x.itemsize
    for s in range(0, samples, _SAMPLES):
        for j in range(0, block, STRIP * lanes):
            add_outer_products(
                out, at + j, block, first and s == 0, x, s * block, block, block,
                dy, dy_at + s * dy_stride + j, dy_stride, min(_SAMPLES, samples - s), min(STRIP, (block - j) // lanes),
            )  # fmt: skip


@kernel
def _turn(out: Floats, values: Floats, at: int, block: int) -> None:
    """``out[j, i] = values[i, j]`` for one block."""
    lanes = VECTOR_BYTES // values.itemsize
    for i in range(0, block, lanes):
        for j in range(0, block, lanes):
            transpose(out, j * block + i, block, values, at + i * block + j, block)


@kernel
def wide_product_kernel(
    team: Team, packed: Floats, counters: NDArray[np.int64], x_at: int, values_at: int, permutation_at: int,
    indptr_at: int, indices_at: int, bias_at: int, y_at: int, batch: int, inputs: int, outputs: int, blocks: int,
    block: int, tile: int,
) -> None:  # fmt: skip
    """Compute y; the block at ``permutation[k]`` joins the panel ``indices[k]`` to the one whose turn it is."""
    if spread(team):
        return
    lanes = VECTOR_BYTES // packed.itemsize
    columns, tiles = outputs // block, (batch + tile - 1) // tile
    x, y = floats_at(x_at, batch * inputs, packed), floats_at(y_at, batch * outputs, packed)
    values, bias = floats_at(values_at, blocks * block * block, packed), floats_at(bias_at, outputs, packed)
    permutation = ints_at(permutation_at, blocks)
    indptr, indices = ints_at(indptr_at, columns + 1), ints_at(indices_at, blocks)
    panel, stride = _pack(x, batch, block, packed, counters)
    source = packed if len(packed) else x
    sums = np.empty(tile * block, x.dtype)
    chunk = claim(counters, 2 * SLOT)
    while chunk < tiles * columns:  # tile after tile, so that all threads keep the same one in the shared cache
        start, column = chunk // columns * tile, chunk % columns
        samples = min(tile, batch - start)
        sums[: samples * block] = 0
        if len(bias):
            for s in range(samples):
                for j in range(block):
                    sums[s * block + j] = bias[column * block + j]
        for k in range(np.int64(indptr[column]), np.int64(indptr[column + 1])):
            at = (int(permutation[k]) if len(permutation) else k) * block * block
            _add_product(sums, source, indices[k] * panel + start * stride, stride, samples, values, at, block)
        copy_rows(y, start * outputs + column * block, outputs, sums, 0, block, samples, block // lanes)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT)
    wait_until(counters, 3 * SLOT, tiles * columns)


@kernel
def wide_gradients_kernel(
    team: Team, packed: Floats, counters: NDArray[np.int64], dy_at: int, x_at: int, values_at: int, indptr_at: int,
    indices_at: int, dx_at: int, dvalues_at: int, dbias_at: int, batch: int, inputs: int, outputs: int, blocks: int,
    block: int, tile: int,
) -> None:  # fmt: skip
    """Compute dvalues and dx, and the sums of the columns of dy as dbias."""
    if spread(team):
        return
    lanes = VECTOR_BYTES // packed.itemsize
    rows, tiles = inputs // block, (batch + tile - 1) // tile
    dy, x = floats_at(dy_at, batch * outputs, packed), floats_at(x_at, batch * inputs, packed)
    dx, dbias = floats_at(dx_at, batch * inputs, packed), floats_at(dbias_at, outputs, packed)
    values = floats_at(values_at, blocks * block * block, packed)
    dvalues = floats_at(dvalues_at, blocks * block * block, packed)
    indptr, indices = ints_at(indptr_at, rows + 1), ints_at(indices_at, blocks)
    panel, stride = _pack(dy, batch, block, packed, counters)
    source = packed if len(packed) else dy
    x_panel, dx_panel = np.empty(tile * block, x.dtype), np.empty(tile * block, x.dtype)
    turned = np.empty(block * block, x.dtype)
    done = 4 * SLOT
    chunk = claim(counters, 2 * SLOT) - column_pieces(dbias)
    while chunk < 0:
        add_columns(dy, batch, chunk + column_pieces(dbias), dbias)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT) - column_pieces(dbias)
    while chunk < tiles * rows:
        number, row = chunk // rows, chunk % rows
        start = number * tile
        samples, at = min(tile, batch - start), start * inputs + row * block
        wait_until(counters, done + row * SLOT, number)  # value gradients add up tile by tile, whoever computes them
        copy_rows(x_panel, 0, block, x, at, inputs, samples, block // lanes)
        dx_panel[: samples * block] = 0
        for k in range(np.int64(indptr[row]), np.int64(indptr[row + 1])):
            place, from_dy = k * block * block, indices[k] * panel + start * stride
            if len(dvalues):
                _add_outer_products(dvalues, place, number == 0, x_panel, source, from_dy, stride, samples, block)
            if len(dx):
                _turn(turned, values, place, block)
                _add_product(dx_panel, source, from_dy, stride, samples, turned, 0, block)
        if len(dx):
            copy_rows(dx, at, inputs, dx_panel, 0, block, samples, block // lanes)
        claim(counters, done + row * SLOT)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT) - column_pieces(dbias)
    wait_until(counters, 3 * SLOT, column_pieces(dbias) + tiles * rows)
