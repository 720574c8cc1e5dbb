"""The compiled side of the panel products: panels of rows pass over tiles of feature-major data.

As in `topogen.kernels._passes`, but that each group of samples is one tile. A stripe is so many consecutive panels of a
plan (`topogen.kernels._panel_plan`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._openmp import Team
from topogen.kernels._panel_vector import MEMBERS, panel_gradients, panel_product
from topogen.kernels._spread import spread
from topogen.kernels._tiled import NOT_SPACED, Floats, Ints, move
from topogen.kernels._vector import VECTOR_BYTES, row_sum

__all__ = [
    "SPACING",
    "STRIPE",
    "gradients_of_packed",
    "gradients_of_panels",
    "product_of_packed",
    "product_of_panels",
]

STRIPE = 16  # panels
# Behind so many packed neurons, as a power of two, one place stays empty. Columns at equal distances that a power of
# two divides, as those of a RadiX-Net, would otherwise fall into a few sets of the cache and drive each other out.
SPACING = 5

Group = tuple[int, int, int]  # how many, samples of each, samples of the last that exist


@kernel
def product_of_panels(
    team: Team,
    x: Floats,
    values: Floats,
    plan: Ints,
    bias: Floats,
    y: Floats,
    inputs: int,
    outputs: int,
    group: Group,
    spacing: int,
    counters: NDArray[np.int64],
) -> None:
    """Compute `y`, 0 beyond the samples that exist. Counters: chunks finished, then those claimed of each share."""
    if spread(team):
        return
    (_, thread, shares), (groups, samples, last) = team, group
    lanes, panels = VECTOR_BYTES // x.itemsize, (outputs + MEMBERS - 1) // MEMBERS
    places, stripes = inputs + (inputs >> spacing), (panels + STRIPE - 1) // STRIPE
    initial, rows_at = np.empty(MEMBERS, x.dtype), np.empty(MEMBERS, np.int64)
    for turn in range(shares):
        share = (thread + turn) % shares
        begin_stripe, end_stripe = share * stripes // shares, (share + 1) * stripes // shares
        chunk = claim(counters, (1 + share) * SLOT)
        while chunk < groups * (end_stripe - begin_stripe):  # group after group, so that it stays in the cache
            number = chunk // (end_stripe - begin_stripe)
            stripe = begin_stripe + chunk % (end_stripe - begin_stripe)
            present = samples if number < groups - 1 else last
            for panel in range(stripe * STRIPE, min(panels, (stripe + 1) * STRIPE)):
                for i in range(MEMBERS):
                    row = np.int64(plan[MEMBERS * panel + i])
                    rows_at[i] = (number * outputs + row) * samples if row < outputs else -1
                    initial[i] = bias[row] if row < outputs and len(bias) else 0
                bounds = MEMBERS * panels + panel
                panel_product(
                    y, rows_at, initial, values, plan, np.int64(plan[bounds]), np.int64(plan[bounds + 1]),
                    x, number * places * samples, samples, spacing, samples // lanes,
                )  # fmt: skip
                if present < samples:
                    for at in rows_at:
                        if at >= 0:
                            y[at + present : at + samples] = 0
            claim(counters, 0)
            chunk = claim(counters, (1 + share) * SLOT)
    wait_until(counters, 0, groups * stripes)


@kernel
def gradients_of_panels(
    team: Team,
    dy: Floats,
    x: Floats,
    values: Floats,
    indptr: Ints,
    plan: Ints,
    dx: Floats,
    dvalues: Floats,
    dbias: Floats,
    outputs: int,
    group: Group,
    spacing: int,
    accumulate: bool,
    totals: NDArray[np.float64],
    counters: NDArray[np.int64],
) -> None:
    """Compute `dx`, and `dvalues` and `dbias`, or add to these two what stands there and in `totals`.

    Both kinds of sums over samples add up group by group, whoever computes them. Counters: chunks finished; for each
    stripe of sums and each stripe of panels the groups that have passed it; for each share of them the chunks claimed.
    """
    if spread(team):
        return
    (_, thread, shares), (groups, samples, last) = team, group
    lanes, inputs = VECTOR_BYTES // x.itemsize, len(indptr) - 1
    panels, places = (inputs + MEMBERS - 1) // MEMBERS, outputs + (outputs >> spacing)
    rows_of_sums = STRIPE * MEMBERS
    sums = (len(dbias) + rows_of_sums - 1) // rows_of_sums
    parts = sums + (panels + STRIPE - 1) // STRIPE
    starts, rows_at = np.empty(MEMBERS, np.int64), np.empty(MEMBERS, np.int64)
    for turn in range(shares):
        share = (thread + turn) % shares
        begin_part, end_part = share * parts // shares, (share + 1) * parts // shares
        chunk = claim(counters, (1 + parts + share) * SLOT)
        while chunk < groups * (end_part - begin_part):
            number, part = chunk // (end_part - begin_part), begin_part + chunk % (end_part - begin_part)
            present = samples if number < groups - 1 else last
            vectors = (present + lanes - 1) // lanes
            tail = present - (vectors - 1) * lanes
            source, first = number * places * samples, number == 0 and not accumulate
            wait_until(counters, (1 + part) * SLOT, number)
            if part < sums:
                for row in range(part * rows_of_sums, min(outputs, (part + 1) * rows_of_sums)):
                    total = np.float64(row_sum(dy, source + (row + (row >> spacing)) * samples, vectors, tail))
                    totals[row] = total if first else totals[row] + total
                    dbias[row] = totals[row]
            else:
                stripe = part - sums
                for panel in range(stripe * STRIPE, min(panels, (stripe + 1) * STRIPE)):
                    for i in range(MEMBERS):
                        row = np.int64(plan[MEMBERS * panel + i])
                        rows_at[i] = (number * inputs + row) * samples if row < inputs else -1
                        starts[i] = indptr[row] if row < inputs else 0
                        if first and row < inputs:
                            dvalues[indptr[row] : indptr[row + 1]] = 0
                    bounds = MEMBERS * panels + panel
                    for member in range(0, MEMBERS, 2):
                        panel_gradients(
                            dx, len(dx) > 0, x, rows_at, values, dvalues, starts, plan, member,
                            np.int64(plan[bounds]), np.int64(plan[bounds + 1]),
                            dy, source, samples, spacing, vectors, tail,
                        )  # fmt: skip
                    if len(dx):
                        for at in rows_at:
                            if at >= 0:
                                dx[at + present : at + samples] = 0
            claim(counters, (1 + part) * SLOT)
            claim(counters, 0)
            chunk = claim(counters, (1 + parts + share) * SLOT)
    wait_until(counters, 0, groups * parts)


@kernel
def product_of_packed(
    team: Team, x: Floats, values: Floats, plan: Ints, bias: Floats, y: Floats, inputs: int, outputs: int, group: Group,
    scratch: Floats, counters: NDArray[np.int64],
) -> None:  # fmt: skip
    """Pack x, multiply, unpack y."""
    if spread(team):
        return
    (_, thread, shares), (groups, samples, last) = team, group
    slots = (1 + shares) * SLOT  # of one copy
    batch, split = (groups - 1) * samples + last, groups * samples * (inputs + (inputs >> SPACING))
    packed_x, packed_y = scratch[:split], scratch[split:]
    move(x, batch, inputs, samples, packed_x, SPACING, 1, thread, shares, counters)
    rest = counters[2 * slots :]
    product_of_panels(team, packed_x, values, plan, bias, packed_y, inputs, outputs, group, SPACING, rest)
    move(y, batch, outputs, samples, packed_y, NOT_SPACED, 0, thread, shares, counters[slots:])


@kernel
def gradients_of_packed(
    team: Team, dy: Floats, x: Floats, values: Floats, indptr: Ints, plan: Ints, dx: Floats, dvalues: Floats,
    dbias: Floats, outputs: int, group: Group, accumulate: bool, totals: NDArray[np.float64], scratch: Floats,
    counters: NDArray[np.int64],
) -> None:  # fmt: skip
    """Pack dy and x, compute, unpack dx."""
    if spread(team):
        return
    (_, thread, shares), (groups, samples, last) = team, group
    slots = (1 + shares) * SLOT  # of one copy
    batch, inputs = (groups - 1) * samples + last, len(indptr) - 1
    split, size = groups * samples * (outputs + (outputs >> SPACING)), groups * samples * inputs
    packed_dy, packed_x = scratch[:split], scratch[split : split + size]
    packed_dx = scratch[split + size : split + (2 * size if len(dx) else size)]
    move(dy, batch, outputs, samples, packed_dy, SPACING, 1, thread, shares, counters)
    move(x, batch, inputs, samples, packed_x, NOT_SPACED, 1, thread, shares, counters[slots:])
    gradients_of_panels(
        team, packed_dy, packed_x, values, indptr, plan, packed_dx, dvalues, dbias, outputs, group, SPACING, accumulate,
        totals, counters[3 * slots :],
    )  # fmt: skip
    if len(dx):
        move(dx, batch, inputs, samples, packed_dx, NOT_SPACED, 0, thread, shares, counters[2 * slots :])
