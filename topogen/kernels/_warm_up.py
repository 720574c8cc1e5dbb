"""Compile every kernel, or load it from the cache, at a moment of the caller's choice."""

from __future__ import annotations

import numpy as np

from topogen.kernels import exchange
from topogen.kernels._blocks import gradients_blocks, multiply_blocks
from topogen.kernels._columns import gradients_columns, multiply_columns
from topogen.kernels._convolution import Window, convolution_gradients, convolve
from topogen.kernels._graphs import carry, predecessor_sums, predecessor_unions, successor_unions
from topogen.kernels._packing import pack, unpack
from topogen.kernels._panels import (
    gradients_panels,
    gradients_panels_columns,
    multiply_panels,
    multiply_panels_columns,
    plan_panels,
)
from topogen.kernels._products import gradients, multiply, multiply_vector
from topogen.kernels._scatter import scatter
from topogen.kernels.short_launch import short_gradients, short_product

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
        multiply_vector(one[0], one[0], index, index[:1], 1)
        scatter(one[0], index, index[:1], out=one.copy())
        cube = one[None]
        image = cube[None]
        at = np.zeros(1, np.int32)
        convolve(image, cube, index, index, at, at, window=Window((1, 1)))
        dx, dvalues = image.copy(), cube.copy()
        convolution_gradients(image, image, cube, index, at, window=Window((1, 1)), dx=dx, dvalues=dvalues)
        unpack(pack(one, 16), 1)
        multiply_columns(cube, one[0], index, index[:1])
        gradients_columns(cube, cube, one[0], index, index[:1], dx=cube.copy(), dvalues=one[0].copy())
        many, starts = np.ones((1, 800), dtype), np.arange(0, 1000, 200, dtype=np.int32)  # 4 neurons joined to 200
        columns = np.tile(np.arange(200, dtype=np.int32), 4)
        plan, plan_t = plan_panels(starts, columns), plan_panels(starts, columns, np.arange(800, dtype=np.int32))
        assert plan is not None
        assert plan_t is not None
        wide, four = many[:, :200].copy(), many[:, :4].copy()
        multiply_panels(wide, many[0], plan_t, 4)
        gradients_panels(wide, four, many[0], starts, plan, dx=four.copy(), dvalues=many[0].copy())
        wide, four = pack(wide, 16), pack(four, 16)
        multiply_panels_columns(wide, many[0], plan_t, 4)
        gradients_panels_columns(wide, four, many[0], starts, plan, dx=four.copy(), dvalues=many[0].copy())
        for block in (1, 16):
            row, values = np.ones((1, block), dtype), np.ones((1, block, block), dtype)
            multiply_blocks(row, values, index, index[:1])
            gradients_blocks(row, row, values, index, index[:1], dx=row.copy(), dvalues=values.copy())
    shorts, floats = np.zeros(3, np.uint16), np.zeros(2, np.float32)
    x, values, y = (shorts[k:].ctypes.data for k in range(3))
    long, dvalues = (floats[k:].ctypes.data for k in range(2))
    starts, places = index.ctypes.data, index[:1].ctypes.data
    short_product([x, values, places, starts, places, 0, y], 1, 1, 1, 1, 1)
    short_gradients([x, values, long, starts, places, y, dvalues], 1, 1, 1, 1, 1)
    one, words = np.ones((1, 1), np.int64), np.ones((1, 1), np.uint64)
    predecessor_sums(index, index[:1], one[0], one, one.copy())
    predecessor_unions(index, index[:1], words, words.copy())
    successor_unions(index, index[:1], words, words.copy())
    carry(np.ones((1, 2, 1), np.int64), 62)
    _passes_of_rewiring()


def _passes_of_rewiring() -> None:
    starts, indices, places = np.array([0, 1], np.int32), np.zeros(1, np.int32), np.zeros(2, np.int32)
    now, gone, bits = places[:1], np.zeros(1, np.bool_), np.zeros(8, np.uint8)
    exchange.flat(starts, indices, 1, places)
    exchange.csr(now, 1, starts, indices)
    exchange.transposed(starts, indices, np.zeros(2, np.int32), indices.copy(), indices.copy())
    exchange.exchanged(now, gone, now[:0], places, places.copy())
    exchange.left(now, gone, places)
    exchange.mark(bits, now)
    exchange.mark_first(bits, np.zeros(1, np.int64), 1)
    exchange.marked(np.ones(1, np.uint64), now.copy())
    exchange.nth_empty(now, now, now.copy())
    for kind in (np.int8, np.int16, np.int32, np.int64):
        exchange.followed(np.zeros(1, kind), indices, np.zeros(1, kind))
    for kind in (np.float32, np.float64):
        exchange.above(0, np.zeros(1, kind), now, 0.0, np.zeros(1, kind), np.zeros(1, np.int64), 1)
