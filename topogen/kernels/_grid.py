"""Where a convolution's samples lie while it is computed, and how its work is cut.

A *grid* is one channel of an image, in rows of `pitch` elements with zeros around what is real. An output at place s
of the grid reads its input at place s + shift, where the shift depends on the kernel offset alone. So every connection
reads one run of samples that lie side by side, and the kernel offsets of a channel read the same run at places close
together: no column matrix is ever made. Places between the images are computed too and thrown away; where
neighbouring rows, or neighbouring images, both have a margin of zeros they share it.

With a stride, the grid has only every stride-th row and column, and a channel is laid out once for each *phase*: the
remainder of a kernel offset modulo the stride.

A *strip* is what one thread lays out at a time, so that it stays in the second-level cache: several small images one
after the other, or a band of rows of a large one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels._vector import MAX_VECTORS, VECTOR_BYTES
from topogen.kernels._window import Window

__all__ = ["Grid", "Places", "Plan", "Strips", "plan"]

Places = NDArray[np.int64]

_STRIP_BYTES = 1 << 19  # half of a second-level cache
_ENOUGH = 8  # chunks of work, for as many threads as can share them
_LIMIT = 1 << 31


class Grid(NamedTuple):
    """What one call computes, and the grid that it does it on."""

    channels: int
    height: int
    width: int
    outputs: int
    out_height: int
    out_width: int
    stride_rows: int
    stride_columns: int
    top: int  # zeros above the image, and to its left
    left: int
    halo_rows: int  # the largest shift, in rows and columns of the grid
    halo_columns: int
    pitch: int
    phases: int
    unit: int  # kernel offsets of one stored connection: all of them, or one


class Strips(NamedTuple):
    """How the work is cut; it depends on the shapes alone, never on the threads."""

    total: int  # of strips
    batch: int
    images: int  # of one strip
    image_pitch: int
    rows: int  # of one strip, and of the whole image; of outputs, or of the grid where gradients are computed
    all_rows: int
    parts: int  # chunks of neurons, each of which passes over the strip
    run: int  # elements from one channel and phase to the next
    tile: int  # samples that are computed at a time


class Plan(NamedTuple):
    """What a kernel is told of one call's shapes."""

    grid: Grid
    strips: Strips
    starts: Places  # (stored rows,): where the run of each begins, its shift included
    shifts: Places  # (kernel offsets,)
    phase_of: Places  # (kernel offsets,)
    origins: Places  # (phases, 2), flat: the rows and columns by which a phase begins later


class _Axis(NamedTuple):
    shift: Places  # of each kernel offset
    phase: Places
    halo: int
    shared: int  # cells of margin that two neighbours can share

    @classmethod
    def of(cls, size: int, out: int, kernel: int, stride: int, before: int, dilation: int) -> _Axis:
        offsets = np.arange(kernel, dtype=np.int64) * dilation
        shift, phase = offsets // stride, offsets % stride
        halo = int(shift.max())
        margins = [halo]
        for start in np.unique(phase).tolist():
            last = (size + before - start - 1) // stride
            margins += [-(-(before - start) // stride), out + halo - 1 - last]
        return cls(shift, phase, halo, max(0, min(margins)))


@lru_cache(maxsize=256)
def plan(
    shape: tuple[int, int, int, int], outputs: int, window: Window, units: bool, itemsize: int, backward: bool
) -> Plan:
    """Return the plan for an input of this shape.

    `units` says that a stored connection has all kernel offsets. The forward pass lays out the inputs and cuts the
    rows of the result; the `backward` pass lays out the gradients of the outputs and cuts the rows of the input's grid.
    """
    batch, channels, height, width = shape
    out_height, out_width = window.output(height, width)
    (kernel_rows, kernel_columns), (down, right), (top, _, left, _), (deep, wide) = window
    rows = _Axis.of(height, out_height, kernel_rows, down, top, deep)
    columns = _Axis.of(width, out_width, kernel_columns, right, left, wide)
    pitch = out_width + columns.halo - columns.shared
    pairs = np.stack([np.repeat(rows.phase, len(columns.phase)), np.tile(columns.phase, len(rows.phase))], axis=1)
    origins, phase_of = np.unique(pairs, axis=0, return_inverse=True)
    offsets = len(pairs)
    grid = Grid(
        channels, height, width, outputs, out_height, out_width, down, right, top, left, rows.halo, columns.halo,
        pitch, len(origins), offsets if units else 1,
    )  # fmt: skip
    strips = _strips(grid, batch, (out_height + rows.halo - rows.shared) * pitch, itemsize, backward)
    shifts = (rows.shift[:, None] * pitch + columns.shift).ravel()
    phase_of = phase_of.reshape(offsets).astype(np.int64)
    slices = (shifts + phase_of * strips.run)[:, None] if not units else np.zeros((1, 1), np.int64)
    starts = slices + np.arange(channels, dtype=np.int64) * (grid.phases * strips.run)
    return Plan(grid, strips, starts.ravel(), shifts, phase_of, origins.astype(np.int64).ravel())


def _strips(grid: Grid, batch: int, image_pitch: int, itemsize: int, backward: bool) -> Strips:
    lanes = VECTOR_BYTES // itemsize
    if backward:
        runs, neurons = grid.outputs, grid.channels
        rows, columns = grid.out_height + grid.halo_rows, grid.out_width + grid.halo_columns
    else:
        runs, neurons = grid.channels * grid.phases, grid.outputs
        rows, columns = grid.out_height, grid.out_width
    room = max(_STRIP_BYTES // (itemsize * runs), MAX_VECTORS * lanes)  # elements of one run
    images, band = 1, rows
    if image_pitch <= room:
        images = _evenly(batch, room // image_pitch)
    else:
        band = _evenly(rows, max(1, room // grid.pitch - grid.halo_rows))
    total = -(-batch // images) * -(-rows // band)
    samples = (images - 1) * image_pitch + (band - 1) * grid.pitch + columns
    reach = samples + grid.halo_rows * grid.pitch + grid.halo_columns
    run = (-(-reach // lanes) | 1) * lanes  # an odd number of cache lines: runs do not crowd in the same cache sets
    if runs * run >= _LIMIT:
        raise SpecError(
            f"The 'x' parameter of convolve must have fewer than 2^31 elements in one row of outputs. Got {runs * run}."
        )
    parts = min(neurons, -(-_ENOUGH // total))
    tile = _evenly(-(-samples // lanes), MAX_VECTORS) * lanes
    return Strips(total, batch, images, image_pitch, band, rows, parts, run, tile)


def _evenly(total: int, most: int) -> int:
    """Return the size of equal parts of at most `most`."""
    return -(-total // -(-total // most))
