"""The compiled side of the products: the rows of a sparse matrix pass over tiles of feature-major data.

Arguments ``*_at`` are addresses, of int32 or of the dtype of `scratch`; 0 stands for an array that is not wanted. With
a `batch`, x and y have shape (batch, features), and are packed and unpacked on the way; without one (0) they are
feature-major themselves, (groups, features, samples), and may end in padding. *Tile*, *vector* and *lanes* are those of
`topogen.kernels._vector`; a *cut* is a `topogen.kernels._plan.Plan`. Every thread that takes part calls the same kernel
with the same arguments and claims chunks of the work until none is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._memory import floats_at, ints_at
from topogen.kernels._tiled import MOVE_SLOTS, Floats, move
from topogen.kernels._vector import VECTOR_BYTES, row_gradients, row_product, row_sum

__all__ = ["MOVES", "gradients_kernel", "move_kernel", "product_kernel"]

Cut = tuple[int, int, int, int, int, int]

MOVES = 3  # at most, from and to (batch, features)
_OWN = MOVES * MOVE_SLOTS * SLOT  # where a kernel's own counters begin, behind those of its moves


@kernel
def _tile(one: int, cut: Cut, lanes: int) -> tuple[int, int, int, int, int, int]:
    """Return a tile's group, its first sample, its samples and those of them that exist: vectors, and the last one."""
    groups, samples, last, tile = cut[:4]
    per_group = (samples + tile - 1) // tile
    group, start = one // per_group, one % per_group * tile
    width = min(tile, samples - start)
    present = width if group < groups - 1 else max(0, min(width, last - start))
    vectors = (present + lanes - 1) // lanes
    return group, start, width, present, vectors, present - max(0, vectors - 1) * lanes


@kernel
def product_kernel(
    scratch: Floats, counters: NDArray[np.int64], x_at: int, values_at: int, permutation_at: int, indptr_at: int,
    indices_at: int, bias_at: int, y_at: int, batch: int, inputs: int, outputs: int, connections: int, first: bool,
    cut: Cut,
) -> None:  # fmt: skip
    """Compute y. With a permutation, the first tile of the `first` call brings the weights into the order of the rows.

    Scratch memory: the weights in that order; then x and y in tiles, with a batch. Counters: chunks claimed, chunks
    finished, then for each stripe the runs that it has passed over.
    """
    groups, samples, _, tile, together, stripe = cut
    lanes, padded, kept = VECTOR_BYTES // scratch.itemsize, groups * samples, connections if permutation_at else 0
    values, bias = floats_at(values_at, connections, scratch), floats_at(bias_at, outputs, scratch)
    permutation = ints_at(permutation_at, connections if first else 0)
    ordered = scratch[:kept] if permutation_at else values
    indptr, indices = ints_at(indptr_at, outputs + 1), ints_at(indices_at, connections)
    if batch:
        x = scratch[kept : kept + padded * inputs]
        y = scratch[kept + padded * inputs : kept + padded * (inputs + outputs)]
        move(floats_at(x_at, batch * inputs, scratch), batch, inputs, samples, x, 1, counters)
    else:
        x, y = floats_at(x_at, padded * inputs, scratch), floats_at(y_at, padded * outputs, scratch)

    own = counters[_OWN:]
    tiles = groups * ((samples + tile - 1) // tile)
    runs, stripes = (tiles + together - 1) // together, (outputs + stripe - 1) // stripe
    chunk = claim(own, 0)
    while chunk < runs * stripes:
        number, part = chunk // stripes, chunk % stripes
        wait_until(own, (2 + part) * SLOT, min(number, 1))
        for one in range(number * together, min(tiles, (number + 1) * together)):
            group, start, width, present, vectors, tail = _tile(one, cut, lanes)
            gather = one == 0 and len(permutation) > 0
            for row in range(part * stripe, min(outputs, (part + 1) * stripe)):
                begin, end = np.int64(indptr[row]), np.int64(indptr[row + 1])
                initial = bias[row] if len(bias) else scratch.dtype.type(0)
                place = (group * outputs + row) * samples + start
                y[place + present : place + width] = 0
                row_product(
                    y, place, initial, values, permutation, ordered, gather,
                    indices, begin, end, x, group * inputs * samples + start, samples, vectors, tail,
                )  # fmt: skip
        claim(own, (2 + part) * SLOT)
        claim(own, SLOT)
        chunk = claim(own, 0)
    wait_until(own, SLOT, runs * stripes)

    if batch:
        to = floats_at(y_at, batch * outputs, scratch)
        move(to, batch, outputs, samples, y, 0, counters[MOVE_SLOTS * SLOT :])


@kernel
def gradients_kernel(
    scratch: Floats, counters: NDArray[np.int64], totals: NDArray[np.float64], dy_at: int, x_at: int, values_at: int,
    indptr_at: int, indices_at: int, dx_at: int, dvalues_at: int, dbias_at: int, batch: int, inputs: int, outputs: int,
    connections: int, first: bool, cut: Cut,
) -> None:  # fmt: skip
    """Compute dx, and dvalues and dbias; unless it is the `first` call, add to what stands there and in `totals`.

    The sums of each run come first and bring its tiles into the cache. Both kinds of sums over samples add up run by
    run, whoever computes them. Scratch memory: dy, x and dx in tiles, with a batch. Counters as for the product, the
    stripes of sums before those of rows.
    """
    groups, samples, _, tile, together, stripe = cut
    lanes, padded = VECTOR_BYTES // scratch.itemsize, groups * samples
    values, dvalues = floats_at(values_at, connections, scratch), floats_at(dvalues_at, connections, scratch)
    indptr, indices = ints_at(indptr_at, inputs + 1), ints_at(indices_at, connections)
    dbias = floats_at(dbias_at, outputs, scratch)
    if batch:
        dy, size = scratch[: padded * outputs], padded * (outputs + inputs)
        x, dx = scratch[padded * outputs : size], scratch[size : size + padded * inputs if dx_at else size]
        move(floats_at(dy_at, batch * outputs, scratch), batch, outputs, samples, dy, 1, counters)
        move(floats_at(x_at, batch * inputs, scratch), batch, inputs, samples, x, 1, counters[MOVE_SLOTS * SLOT :])
    else:
        dy, dx = floats_at(dy_at, padded * outputs, scratch), floats_at(dx_at, padded * inputs, scratch)
        x = floats_at(x_at, padded * inputs, scratch)

    own = counters[_OWN:]
    tiles = groups * ((samples + tile - 1) // tile)
    runs = (tiles + together - 1) // together
    sums = (len(dbias) + stripe - 1) // stripe
    parts = sums + (inputs + stripe - 1) // stripe
    chunk = claim(own, 0)
    while chunk < runs * parts:
        number, part = chunk // parts, chunk % parts
        first_row = (part if part < sums else part - sums) * stripe
        wait_until(own, (2 + part) * SLOT, number)
        for one in range(number * together, min(tiles, (number + 1) * together)):
            group, start, width, present, vectors, tail = _tile(one, cut, lanes)
            source, fresh = group * outputs * samples + start, one == 0 and first
            if part < sums:
                for row in range(first_row, min(outputs, first_row + stripe)):
                    total = np.float64(row_sum(dy, source + row * samples, vectors, tail))
                    totals[row] = total if fresh else totals[row] + total
                    dbias[row] = totals[row]
                continue
            for row in range(first_row, min(inputs, first_row + stripe)):
                begin, end = np.int64(indptr[row]), np.int64(indptr[row + 1])
                place = (group * inputs + row) * samples + start
                if len(dx):
                    dx[place + present : place + width] = 0
                row_gradients(
                    dx, place, x, place, dvalues, fresh, len(dx) > 0, values, indices, begin, end,
                    dy, source, samples, vectors, tail,
                )  # fmt: skip
        claim(own, (2 + part) * SLOT)
        claim(own, SLOT)
        chunk = claim(own, 0)
    wait_until(own, SLOT, runs * parts)

    if batch and dx_at:
        to = floats_at(dx_at, batch * inputs, scratch)
        move(to, batch, inputs, samples, dx, 0, counters[2 * MOVE_SLOTS * SLOT :])


@kernel
def move_kernel(
    kind: Floats, counters: NDArray[np.int64], rows_at: int, batch: int, features: int, samples: int, packed_at: int,
    forth: int,
) -> None:  # fmt: skip
    """Pack or unpack; see `topogen.kernels._tiled.move`."""
    padded = (batch + samples - 1) // samples * samples
    rows, packed = floats_at(rows_at, batch * features, kind), floats_at(packed_at, padded * features, kind)
    if forth:  # numba compiles `move` for each of these numbers
        move(rows, batch, features, samples, packed, 1, counters)
    else:
        move(rows, batch, features, samples, packed, 0, counters)
