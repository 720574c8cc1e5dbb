"""The compiled side of the convolutions. *Grid*, *phase* and *strip* are those of `topogen.kernels._grid`.

Arrays are flat; an array of length 0 stands for one that is not wanted. A *stored row* is a row of the stored pattern:
a channel where connections have all kernel offsets, else ``offset * channels + channel``. Every thread that takes part
has an area of the scratch memory for itself and claims chunks of work, one part of the neurons passing over one strip,
until none is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._copy import copy_run
from topogen.kernels._grid import Grid, Places, Strips
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._tiled import Floats, Ints
from topogen.kernels._vector import VECTOR_BYTES, row_gradients, row_product

__all__ = ["HEAD", "convolution_gradients_kernel", "convolution_kernel"]

HEAD = 3  # counters: chunks claimed, chunks finished, scratch areas taken; then the strips that each channel has seen


@kernel
def _extent(strip: int, strips: Strips) -> tuple[int, int, int, int]:
    """Return the first image of a strip, how many there are, the first row of each and how many rows."""
    bands = (strips.all_rows + strips.rows - 1) // strips.rows
    image, row = strip // bands * strips.images, strip % bands * strips.rows
    return image, min(strips.images, strips.batch - image), row, min(strips.rows, strips.all_rows - row)


@kernel
def _copy_image(
    image: Floats, at: int, size: tuple[int, int], origin: tuple[int, int], step: tuple[int, int], row: int, rows: int,
    columns: int, run: Floats, to: int, pitch: int, back: bool,
) -> None:  # fmt: skip
    """Copy what is real of `rows` rows of the grid, from `row` on, into the run, or `back` from it.

    Cell (i, j) of the grid is pixel (i * step - origin) of the image, along both axes.
    """
    (height, width), (top, left), (down, right) = size, origin, step
    first = max(0, (left + right - 1) // right)
    count = min(columns, (width + left - 1) // right + 1) - first
    if count <= 0:
        return
    begin = max(row, (top + down - 1) // down)
    end = min(row + rows, (height + top - 1) // down + 1)
    if right == down == 1 and count == width == pitch:  # rows follow each other in the run as in the image
        count, end = count * (end - begin), min(end, begin + 1)
    for i in range(begin, end):
        pixel = at + (i * down - top) * width + first * right - left
        cell = to + (i - row) * pitch + first
        if right == 1:
            if back:
                copy_run(image, pixel, run, cell, count)
            else:
                copy_run(run, cell, image, pixel, count)
        elif back:
            for j in range(count):
                image[pixel + j * right] = run[cell + j]
        elif right == 2:  # by far the most frequent stride; a constant one is vectorised
            for j in range(count):
                run[cell + j] = image[pixel + 2 * j]
        else:
            for j in range(count):
                run[cell + j] = image[pixel + j * right]


@kernel
def _is_read(indptr: Ints, channel: int, channels: int) -> bool:
    entries = 0
    for row in range(channel, len(indptr) - 1, channels):
        entries += indptr[row + 1] - indptr[row]
    return entries > 0


@kernel
def convolution_kernel(
    team: Team,
    x: Floats,
    values: Floats,
    indptr: Ints,
    indptr_t: Ints,
    indices_t: Ints,
    permutation: Ints,
    bias: Floats,
    y: Floats,
    grid: Grid,
    strips: Strips,
    starts: Places,
    shifts: Places,
    phase_of: Places,
    origins: Places,
    longest: int,
    scratch: Floats,
    counters: NDArray[np.int64],
) -> None:
    """Compute `y`. An output has at most `longest` weights."""
    if spread(team):
        return
    lanes, step = VECTOR_BYTES // x.itemsize, (grid.stride_rows, grid.stride_columns)
    size, out_size = (grid.height, grid.width), (grid.out_height, grid.out_width)
    phases, runs = grid.phases, grid.channels * grid.phases * strips.run
    at = claim(counters, 2 * SLOT) * (runs + longest + strips.run)
    laid_out, at = scratch[at : at + runs], at + runs
    weights, result = scratch[at : at + longest], scratch[at + longest : at + longest + strips.run]
    places = np.empty(longest, np.int32)
    present = -1

    chunk = claim(counters, 0)
    while chunk < strips.total * strips.parts:
        strip, part = chunk // strips.parts, chunk % strips.parts
        image, images, row, rows = _extent(strip, strips)
        samples = (images - 1) * strips.image_pitch + (rows - 1) * grid.pitch + grid.out_width
        if strip != present:
            if present < 0 or strips.rows < strips.all_rows:
                laid_out[:] = 0  # otherwise the margins are 0 still
            present = strip
            for channel in range(grid.channels):
                if _is_read(indptr, channel, grid.channels):
                    for phase in range(phases):
                        origin = (grid.top - origins[2 * phase], grid.left - origins[2 * phase + 1])
                        for i in range(images):
                            _copy_image(
                                x, ((image + i) * grid.channels + channel) * grid.height * grid.width, size, origin,
                                step, row, rows + grid.halo_rows, grid.out_width + grid.halo_columns, laid_out,
                                (channel * phases + phase) * strips.run + i * strips.image_pitch, grid.pitch, False,
                            )  # fmt: skip
        for output in range(part * grid.outputs // strips.parts, (part + 1) * grid.outputs // strips.parts):
            count = 0
            for k in range(indptr_t[output], indptr_t[output + 1]):
                start, value = starts[indices_t[k]], np.int64(permutation[k]) * grid.unit
                if grid.unit == 1:
                    places[count] = start
                    weights[count] = values[value]
                    count += 1
                else:
                    for offset in range(grid.unit):
                        places[count] = start + phase_of[offset] * strips.run + shifts[offset]
                        weights[count] = values[value + offset]
                        count += 1
            initial = bias[output] if len(bias) else x.dtype.type(0)
            for first in range(0, samples, strips.tile):
                width = min(strips.tile, samples - first)
                vectors = (width + lanes - 1) // lanes
                row_product(
                    result, first, initial, weights, permutation, weights, False, places, 0, count,
                    laid_out, first, 1, vectors, width - (vectors - 1) * lanes,
                )  # fmt: skip
            for i in range(images):
                _copy_image(
                    y, ((image + i) * grid.outputs + output) * grid.out_height * grid.out_width, out_size, (0, 0),
                    (1, 1), row, rows, grid.out_width, result, i * strips.image_pitch, grid.pitch, True,
                )  # fmt: skip
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, strips.total * strips.parts)


@kernel
def convolution_gradients_kernel(
    team: Team,
    dy: Floats,
    x: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    dx: Floats,
    dvalues: Floats,
    grid: Grid,
    strips: Strips,
    shifts: Places,
    phase_of: Places,
    origins: Places,
    longest: int,
    scratch: Floats,
    counters: NDArray[np.int64],
) -> None:
    """Compute `dx`, where it must be 0 already if a stride can leave pixels out, and `dvalues`.

    A channel has at most `longest` weights. Value gradients add up strip by strip, whoever computes them.
    """
    if spread(team):
        return
    lanes, step = VECTOR_BYTES // x.itemsize, (grid.stride_rows, grid.stride_columns)
    size, out_size = (grid.height, grid.width), (grid.out_height, grid.out_width)
    columns, runs = grid.out_width + grid.halo_columns, grid.outputs * strips.run
    above = grid.halo_rows * grid.pitch
    lead = above + grid.halo_columns  # what comes before the first output of a run, so that shifts lead to its left
    at = claim(counters, 2 * SLOT) * (runs + 2 * longest + 2 * strips.run)
    laid_out, at = scratch[at : at + runs], at + runs
    weights, sums, at = scratch[at : at + longest], scratch[at + longest : at + 2 * longest], at + 2 * longest
    x_run, dx_run = scratch[at : at + strips.run], scratch[at + strips.run : at + 2 * strips.run]
    places, homes = np.empty(longest, np.int32), np.empty(longest, np.int64)
    slices = (len(indptr) - 1) // grid.channels
    present = -1

    chunk = claim(counters, 0)
    while chunk < strips.total * strips.parts:
        strip, part = chunk // strips.parts, chunk % strips.parts
        image, images, row, rows = _extent(strip, strips)
        samples = (images - 1) * strips.image_pitch + (rows - 1) * grid.pitch + columns
        if strip != present:
            if present < 0 or strips.rows < strips.all_rows:
                laid_out[:] = 0
            present = strip
            for output in range(grid.outputs):
                for i in range(images):
                    _copy_image(
                        dy, ((image + i) * grid.outputs + output) * grid.out_height * grid.out_width, out_size, (0, 0),
                        (1, 1), row - grid.halo_rows, rows + grid.halo_rows, grid.out_width, laid_out,
                        output * strips.run + lead - above + i * strips.image_pitch, grid.pitch, False,
                    )  # fmt: skip
        for channel in range(part * grid.channels // strips.parts, (part + 1) * grid.channels // strips.parts):
            for phase in range(grid.phases):
                count = 0
                for first_offset in range(slices):
                    stored = first_offset * grid.channels + channel
                    for k in range(indptr[stored], indptr[stored + 1]):
                        start = np.int64(indices[k]) * strips.run + lead
                        for offset in range(first_offset, first_offset + grid.unit):
                            if phase_of[offset] == phase:
                                homes[count] = np.int64(k) * grid.unit + offset - first_offset
                                places[count] = start - shifts[offset]
                                weights[count] = values[homes[count]]
                                count += 1
                origin = (grid.top - origins[2 * phase], grid.left - origins[2 * phase + 1])
                if len(dvalues) and count:
                    x_run[:] = 0
                    for i in range(images):
                        _copy_image(
                            x, ((image + i) * grid.channels + channel) * grid.height * grid.width, size, origin, step,
                            row, rows, columns, x_run, i * strips.image_pitch, grid.pitch, False,
                        )  # fmt: skip
                for first in range(0, samples, strips.tile):
                    width = min(strips.tile, samples - first)
                    vectors = (width + lanes - 1) // lanes
                    tail = width - (vectors - 1) * lanes
                    if len(dvalues):
                        row_gradients(
                            dx_run, first, x_run, first, sums, first == 0, len(dx) > 0, weights, places, 0, count,
                            laid_out, first, 1, vectors, tail,
                        )  # fmt: skip
                    else:
                        row_product(
                            dx_run, first, x.dtype.type(0), weights, places, weights, False, places, 0, count,
                            laid_out, first, 1, vectors, tail,
                        )  # fmt: skip
                if len(dx):
                    for i in range(images):
                        _copy_image(
                            dx, ((image + i) * grid.channels + channel) * grid.height * grid.width, size, origin, step,
                            row, rows, columns, dx_run, i * strips.image_pitch, grid.pitch, True,
                        )  # fmt: skip
                if len(dvalues):
                    wait_until(counters, (HEAD + channel) * SLOT, strip)
                    for k in range(count):
                        dvalues[homes[k]] = sums[k] if strip == 0 else dvalues[homes[k]] + sums[k]
            claim(counters, (HEAD + channel) * SLOT)
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, strips.total * strips.parts)
