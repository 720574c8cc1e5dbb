"""The compiled side of block products for all other blocks: samples side by side in a vector.

Arguments ``*_at`` are addresses, of int32 or of the dtype of `packed`; 0 stands for an array that is not wanted. The
batch is packed into tiles of some vectors, all of one width; zeros fill the last. Every thread that takes part calls
the same kernel with the same arguments and claims chunks of the work until none is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._block_vector import add_tile_product, tile_outer_products
from topogen.kernels._column_sums import add_columns, column_pieces
from topogen.kernels._compile import kernel
from topogen.kernels._memory import floats_at, ints_at
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._tiled import NOT_SPACED, Floats, move, read_rows, write_rows
from topogen.kernels._vector import VECTOR_BYTES

__all__ = ["narrow_gradients_kernel", "narrow_product_kernel"]

_ROWS = 64  # of the matrix in one stripe, about; as many whole blocks as that


@kernel
def narrow_product_kernel(
    team: Team, packed: Floats, counters: NDArray[np.int64], x_at: int, values_at: int, permutation_at: int,
    indptr_at: int, indices_at: int, bias_at: int, y_at: int, batch: int, inputs: int, outputs: int, blocks: int,
    block: int, tile: int,
) -> None:  # fmt: skip
    """Compute y; the block at ``permutation[k]`` joins the inputs ``indices[k]`` to the outputs whose turn it is."""
    if spread(team):
        return
    lanes, group = VECTOR_BYTES // packed.itemsize, max(1, _ROWS // block)
    columns, tiles = outputs // block, (batch + tile - 1) // tile
    x, y = floats_at(x_at, batch * inputs, packed), floats_at(y_at, batch * outputs, packed)
    values, bias = floats_at(values_at, blocks * block * block, packed), floats_at(bias_at, outputs, packed)
    permutation = ints_at(permutation_at, blocks)
    indptr, indices = ints_at(indptr_at, columns + 1), ints_at(indices_at, blocks)
    order = permutation if len(permutation) else indices  # some array that may be read
    sums = np.empty(group * block * tile, packed.dtype)

    move(x, batch, inputs, tile, packed, NOT_SPACED, 1, 0, 1, counters)
    stripes = (columns + group - 1) // group
    chunk = claim(counters, 2 * SLOT)
    while chunk < tiles * stripes:  # tile after tile, so that all threads keep the same one in the cache
        start, first = chunk // stripes * tile, chunk % stripes * group
        count = min(group, columns - first)
        for r in range(count * block):
            sums[r * tile : (r + 1) * tile] = bias[first * block + r] if len(bias) else x.dtype.type(0)
        for c in range(count):
            begin, end = np.int64(indptr[first + c]), np.int64(indptr[first + c + 1])
            add_tile_product(
                sums, c * block * tile, values, 1, block, block, order, len(permutation), indices, begin, end,
                packed, start * inputs, tile // lanes,
            )  # fmt: skip
        write_rows(y, batch, outputs, start, tile, first * block, count * block, sums)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT)
    wait_until(counters, 3 * SLOT, tiles * stripes)


@kernel
def narrow_gradients_kernel(
    team: Team, packed: Floats, counters: NDArray[np.int64], dy_at: int, x_at: int, values_at: int, indptr_at: int,
    indices_at: int, dx_at: int, dvalues_at: int, dbias_at: int, batch: int, inputs: int, outputs: int, blocks: int,
    block: int, tile: int,
) -> None:  # fmt: skip
    """Compute dvalues and dx, and the sums of the columns of dy as dbias."""
    if spread(team):
        return
    lanes, group = VECTOR_BYTES // packed.itemsize, max(1, _ROWS // block)
    rows, tiles = inputs // block, (batch + tile - 1) // tile
    dy, x = floats_at(dy_at, batch * outputs, packed), floats_at(x_at, batch * inputs, packed)
    dx, dbias = floats_at(dx_at, batch * inputs, packed), floats_at(dbias_at, outputs, packed)
    values = floats_at(values_at, blocks * block * block, packed)
    dvalues = floats_at(dvalues_at, blocks * block * block, packed)
    indptr, indices = ints_at(indptr_at, rows + 1), ints_at(indices_at, blocks)
    x_tile, dx_tile = np.empty(group * block * tile, x.dtype), np.empty(group * block * tile, x.dtype)

    move(dy, batch, outputs, tile, packed, NOT_SPACED, 1, 0, 1, counters)
    stripes = (rows + group - 1) // group
    done = 4 * SLOT
    chunk = claim(counters, 2 * SLOT) - column_pieces(dbias)
    while chunk < 0:
        add_columns(dy, batch, chunk + column_pieces(dbias), dbias)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT) - column_pieces(dbias)
    while chunk < tiles * stripes:
        number, stripe = chunk // stripes, chunk % stripes
        start, first = number * tile, stripe * group
        count = min(group, rows - first)
        wait_until(counters, done + stripe * SLOT, number)  # value gradients add up tile by tile, whoever computes them
        dx_tile[: count * block * tile] = 0
        read_rows(x, batch, inputs, start, tile, first * block, count * block, x_tile)
        for c in range(count):
            begin, end = np.int64(indptr[first + c]), np.int64(indptr[first + c + 1])
            if len(dvalues):
                for k in range(begin, end):
                    tile_outer_products(
                        dvalues, k * block * block, block, number == 0, x_tile, c * block * tile,
                        packed, start * outputs + indices[k] * block * tile, tile // lanes,
                    )  # fmt: skip
            if len(dx):
                add_tile_product(
                    dx_tile, c * block * tile, values, block, 1, block, indices, 0, indices, begin, end,
                    packed, start * outputs, tile // lanes,
                )  # fmt: skip
        if len(dx):
            write_rows(dx, batch, inputs, start, tile, first * block, count * block, dx_tile)
        claim(counters, done + stripe * SLOT)
        claim(counters, 3 * SLOT)
        chunk = claim(counters, 2 * SLOT) - column_pieces(dbias)
    wait_until(counters, 3 * SLOT, column_pieces(dbias) + tiles * stripes)
