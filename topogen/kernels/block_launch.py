"""Calls of the compiled block kernels, by address: what reaches them from here has been checked.

Legend: B = batch, I = inputs, O = outputs, K = blocks, b = block. An address of 0 stands for an array that is not
wanted; `kind` is an empty array of the dtype, float32 or float64. Every array is C-contiguous, indices are int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT
from topogen.kernels._block_vector import TILE_VECTORS
from topogen.kernels._blocks_narrow import narrow_gradients_kernel, narrow_product_kernel
from topogen.kernels._blocks_wide import wide_gradients_kernel, wide_product_kernel
from topogen.kernels._plan import CACHE_BYTES
from topogen.kernels._scratch import borrowed
from topogen.kernels._team import run, useful_threads
from topogen.kernels._vector import VECTOR_BYTES

__all__ = ["gradients", "product"]

_FEW = 8  # samples that are read where they are: more of them would crowd each other out of the cache
_TILE = 256  # samples of a tile of wide blocks, at most: one block is turned for all of them
_FETCHING = 16  # multiply-adds that take as long as fetching one weight from memory


def product(
    kind: NDArray[Any], x: int, values: int, permutation: int, indptr: int, indices: int, bias: int, y: int,
    batch: int, inputs: int, outputs: int, blocks: int, block: int, threads: int,
) -> None:  # fmt: skip
    """Fill y (B, O), B > 0; see `topogen.kernels.multiply_blocks`."""
    kernel = wide_product_kernel if _is_wide(block, kind.itemsize) else narrow_product_kernel
    tile, packing = _packing(batch, inputs, block, kind.itemsize)
    with borrowed(packing, kind.dtype) as packed:
        args = (
            packed, _fresh_counters(0), x, values, permutation, indptr, indices, bias, y,
            batch, inputs, outputs, blocks, block, tile,
        )  # fmt: skip
        run(kernel, args, useful_threads(threads, blocks * block**2 * (batch + _FETCHING)))


def gradients(
    kind: NDArray[Any], dy: int, x: int, values: int, indptr: int, indices: int, dx: int, dvalues: int, dbias: int,
    batch: int, inputs: int, outputs: int, blocks: int, block: int, threads: int,
) -> None:  # fmt: skip
    """Fill dx (B, I), dvalues (K, b, b) and dbias as far as they have an address, B > 0."""
    kernel = wide_gradients_kernel if _is_wide(block, kind.itemsize) else narrow_gradients_kernel
    tile, packing = _packing(batch, outputs, block, kind.itemsize)
    if not dx and not dvalues:
        kernel, packing, inputs, blocks = wide_gradients_kernel, 0, 0, 0  # the bias is left
    with borrowed(packing, kind.dtype) as packed:
        args = (
            packed, _fresh_counters(inputs // block), dy, x, values, indptr, indices, dx, dvalues, dbias,
            batch, inputs, outputs, blocks, block, tile,
        )  # fmt: skip
        run(kernel, args, useful_threads(threads, 2 * blocks * block**2 * (batch + _FETCHING)))


def _is_wide(block: int, itemsize: int) -> bool:
    """Whether a block is a multiple of a vector wide."""
    return block % (VECTOR_BYTES // itemsize) == 0


def _packing(batch: int, features: int, block: int, itemsize: int) -> tuple[int, int]:
    """Return the samples of a tile, and how many elements it takes to pack the whole batch."""
    if _is_wide(block, itemsize):
        tiles = -(-batch // _TILE)
        return -(-batch // tiles), batch * features if batch > _FEW else 0
    lanes = VECTOR_BYTES // itemsize
    vectors = -(-batch // lanes)
    widest = min(TILE_VECTORS, max(2, CACHE_BYTES // (VECTOR_BYTES * features)))
    tiles = -(-vectors // widest)
    tile = -(-vectors // tiles) * lanes
    return tile, tiles * tile * features


def _fresh_counters(rows: int) -> NDArray[np.int64]:
    """Return what the threads of one call share.

    Slots 0 and 1: chunks of packing claimed and finished; 2 and 3: those of the sums and the product; then for each
    row of blocks (or each of fewer stripes) the tiles that have passed over it.
    """
    return np.zeros((4 + rows) * SLOT, np.int64)
