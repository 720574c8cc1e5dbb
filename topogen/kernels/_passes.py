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
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._tiled import NOT_SPACED, Floats, move, read_rows, write_rows
from topogen.kernels._vector import VECTOR_BYTES, row_gradients, row_product, row_sum

__all__ = ["gradients_kernel", "move_kernel", "product_kernel"]

Cut = tuple[int, int, int, int, int, int]


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
    team: Team, scratch: Floats, counters: NDArray[np.int64], x_at: int, values_at: int, permutation_at: int,
    indptr_at: int, indices_at: int, bias_at: int, y_at: int, batch: int, inputs: int, outputs: int, connections: int,
    first: bool, cut: Cut,
) -> None:  # fmt: skip
    """Compute y. With a permutation, the first tile of the `first` call brings the weights into the order of the rows.

    Scratch memory: the weights in that order; then x in tiles, with a batch: whoever has computed a stripe of y copies
    it out while it is in the first-level cache. Counters, behind those of the move: chunks finished; for each stripe
    the runs that it has passed over; for each share of the stripes the chunks claimed.
    """
    if spread(team):
        return
    (_, number, shares), (groups, samples, _, tile, together, stripe) = team, cut
    lanes, padded, kept = VECTOR_BYTES // scratch.itemsize, groups * samples, connections if permutation_at else 0
    values, bias = floats_at(values_at, connections, scratch), floats_at(bias_at, outputs, scratch)
    permutation = ints_at(permutation_at, connections if first else 0)
    ordered = scratch[:kept] if permutation_at else values
    indptr, indices = ints_at(indptr_at, outputs + 1), ints_at(indices_at, connections)
    block = np.empty(stripe * tile if batch else 0, scratch.dtype)
    if batch:
        x, y = scratch[kept : kept + padded * inputs], floats_at(y_at, batch * outputs, scratch)
        move(
            floats_at(x_at, batch * inputs, scratch), batch, inputs, samples, x, NOT_SPACED, 1, number, shares, counters
        )
    else:
        x, y = floats_at(x_at, padded * inputs, scratch), floats_at(y_at, padded * outputs, scratch)
    target = block if batch else y

    own = counters[(1 + shares) * SLOT :]
    tiles = groups * ((samples + tile - 1) // tile)
    runs, stripes = (tiles + together - 1) // together, (outputs + stripe - 1) // stripe
    for turn in range(shares):
        share = (number + turn) % shares
        begin_part, end_part = share * stripes // shares, (share + 1) * stripes // shares
        chunk = claim(own, (1 + stripes + share) * SLOT)
        while chunk < runs * (end_part - begin_part):
            run, part = chunk // (end_part - begin_part), begin_part + chunk % (end_part - begin_part)
            first_row, last_row = part * stripe, min(outputs, (part + 1) * stripe)
            wait_until(own, (1 + part) * SLOT, min(run, 1))
            for one in range(run * together, min(tiles, (run + 1) * together)):
                group, start, width, present, vectors, tail = _tile(one, cut, lanes)
                gather = one == 0 and len(permutation) > 0
                for row in range(first_row, last_row):
                    begin, end = np.int64(indptr[row]), np.int64(indptr[row + 1])
                    initial = bias[row] if len(bias) else scratch.dtype.type(0)
                    place = (row - first_row) * width if batch else (group * outputs + row) * samples + start
                    if not batch:
                        y[place + present : place + width] = 0
                    row_product(
                        target, place, initial, values, permutation, ordered, gather,
                        indices, begin, end, x, group * inputs * samples + start, samples, vectors, tail,
                    )  # fmt: skip
                if batch:
                    write_rows(
                        y, batch, outputs, group * samples + start, width, first_row, last_row - first_row, block
                    )
            claim(own, (1 + part) * SLOT)
            claim(own, 0)
            chunk = claim(own, (1 + stripes + share) * SLOT)
    wait_until(own, 0, runs * stripes)


@kernel
def gradients_kernel(
    team: Team, scratch: Floats, counters: NDArray[np.int64], totals: NDArray[np.float64], dy_at: int, x_at: int,
    values_at: int, indptr_at: int, indices_at: int, dx_at: int, dvalues_at: int, dbias_at: int, batch: int,
    inputs: int, outputs: int, connections: int, first: bool, cut: Cut,
) -> None:  # fmt: skip
    """Compute dx, and dvalues and dbias; unless it is the `first` call, add to what stands there and in `totals`.

    The sums of each run come first and bring its tiles into the cache. Both kinds of sums over samples add up run by
    run, whoever computes them. Scratch memory: dy in tiles, with a batch; stripes of x and dx are copied by whoever
    needs them. Counters as for the product, the stripes of sums before those of rows.
    """
    if spread(team):
        return
    (_, number, shares), (groups, samples, _, tile, together, stripe) = team, cut
    lanes, padded = VECTOR_BYTES // scratch.itemsize, groups * samples
    values, dvalues = floats_at(values_at, connections, scratch), floats_at(dvalues_at, connections, scratch)
    indptr, indices = ints_at(indptr_at, inputs + 1), ints_at(indices_at, connections)
    dbias = floats_at(dbias_at, outputs, scratch)
    existing = batch if batch else padded
    x, dx = floats_at(x_at, existing * inputs, scratch), floats_at(dx_at, existing * inputs, scratch)
    x_block = np.empty(stripe * tile if batch else 0, scratch.dtype)
    dx_block = np.empty(len(x_block) if dx_at else 0, scratch.dtype)
    if batch:
        dy = scratch[: padded * outputs]
        move(
            floats_at(dy_at, batch * outputs, scratch),
            batch,
            outputs,
            samples,
            dy,
            NOT_SPACED,
            1,
            number,
            shares,
            counters,
        )
    else:
        dy = floats_at(dy_at, padded * outputs, scratch)
    operand, target = (x_block, dx_block) if batch else (x, dx)

    own = counters[(1 + shares) * SLOT :]
    tiles = groups * ((samples + tile - 1) // tile)
    runs = (tiles + together - 1) // together
    sums = (len(dbias) + stripe - 1) // stripe
    parts = sums + (inputs + stripe - 1) // stripe
    for turn in range(shares):
        share = (number + turn) % shares
        begin_part, end_part = share * parts // shares, (share + 1) * parts // shares
        chunk = claim(own, (1 + parts + share) * SLOT)
        while chunk < runs * (end_part - begin_part):
            run, part = chunk // (end_part - begin_part), begin_part + chunk % (end_part - begin_part)
            first_row = (part if part < sums else part - sums) * stripe
            wait_until(own, (1 + part) * SLOT, run)
            for one in range(run * together, min(tiles, (run + 1) * together)):
                group, start, width, present, vectors, tail = _tile(one, cut, lanes)
                source, fresh = group * outputs * samples + start, one == 0 and first
                if part < sums:
                    for row in range(first_row, min(outputs, first_row + stripe)):
                        total = np.float64(row_sum(dy, source + row * samples, vectors, tail))
                        totals[row] = total if fresh else totals[row] + total
                        dbias[row] = totals[row]
                    continue
                rows = min(inputs, first_row + stripe) - first_row
                if batch:
                    read_rows(x, batch, inputs, group * samples + start, width, first_row, rows, x_block)
                for row in range(first_row, first_row + rows):
                    begin, end = np.int64(indptr[row]), np.int64(indptr[row + 1])
                    place = (row - first_row) * width if batch else (group * inputs + row) * samples + start
                    if len(dx) and not batch:
                        dx[place + present : place + width] = 0
                    row_gradients(
                        target, place, operand, place, dvalues, fresh, len(dx) > 0, values, indices, begin, end,
                        dy, source, samples, vectors, tail,
                    )  # fmt: skip
                if len(dx_block):
                    write_rows(dx, batch, inputs, group * samples + start, width, first_row, rows, dx_block)
            claim(own, (1 + part) * SLOT)
            claim(own, 0)
            chunk = claim(own, (1 + parts + share) * SLOT)
    wait_until(own, 0, runs * parts)


@kernel
def move_kernel(
    team: Team, kind: Floats, counters: NDArray[np.int64], rows_at: int, batch: int, features: int, samples: int,
    packed_at: int, forth: int,
) -> None:  # fmt: skip
    """Pack or unpack; see `topogen.kernels._tiled.move`."""
    if spread(team):
        return
    padded = (batch + samples - 1) // samples * samples
    rows, packed = floats_at(rows_at, batch * features, kind), floats_at(packed_at, padded * features, kind)
    if forth:  # numba compiles `move` for each of these numbers
        move(rows, batch, features, samples, packed, NOT_SPACED, 1, team[1], team[2], counters)
    else:
        move(rows, batch, features, samples, packed, NOT_SPACED, 0, team[1], team[2], counters)
