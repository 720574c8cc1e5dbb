"""The compiled side of products of bfloat16 samples, and their gradients; see `topogen.kernels._passes` for the words.

x, y, dx and dy are bfloat16, as uint16, and so are the values that are multiplied; every sum is float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._memory import floats_at, ints_at
from topogen.kernels._openmp import Team
from topogen.kernels._short_vector import PAIR, pack_square, pair_gradients, pair_product, to_short, write_square
from topogen.kernels._spread import spread

__all__ = ["short_gradients_kernel", "short_product_kernel"]

_HALF = PAIR // 2  # samples of a vector of float32, and features of a square
_FEATURES = 128  # packed in one chunk


@kernel
def _pack(
    x: NDArray[np.uint16], batch: int, features: int, samples: int, pairs: NDArray[np.uint32],
    counters: NDArray[np.int64],
) -> None:  # fmt: skip
    """Copy (batch, features) into (groups, features, samples), as pairs; zeros fill the last group."""
    words = samples // 2
    groups, stripes = (batch + samples - 1) // samples, (features + _FEATURES - 1) // _FEATURES
    chunk = claim(counters, 0)
    while chunk < groups * stripes:
        group, begin = chunk // stripes, chunk % stripes * _FEATURES
        for start in range(0, samples, PAIR):
            sample = group * samples + start
            for feature in range(begin, min(features, begin + _FEATURES), _HALF):
                place = (group * features + feature) * words + start // 2
                if sample + PAIR <= batch and feature + _HALF <= features:
                    pack_square(pairs, place, words, x, sample * features + feature, features)
                    continue
                for f in range(min(_HALF, features - feature)):
                    for b in range(_HALF):
                        low, high = sample + b, sample + b + _HALF
                        word = np.uint32(x[low * features + feature + f]) if low < batch else np.uint32(0)
                        if high < batch:
                            word |= np.uint32(x[high * features + feature + f]) << np.uint32(_HALF)
                        pairs[place + f * words + b] = word
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, groups * stripes)


@kernel
def _write(
    y: NDArray[np.uint16], batch: int, features: int, start: int, samples: int, row: int, rows: int,
    block: NDArray[np.float32],
) -> None:  # fmt: skip
    """``y[start + b, row + i] = block[i * samples + b]``, rounded, as far as the batch goes."""
    for first in range(0, min(samples, batch - start), _HALF):
        for i in range(0, rows, _HALF):
            place = (start + first) * features + row + i
            if i + _HALF <= rows and start + first + _HALF <= batch:
                write_square(y, place, features, block, i * samples + first, samples)
                continue
            for f in range(min(_HALF, rows - i)):
                for b in range(min(_HALF, batch - start - first)):
                    y[place + b * features + f] = to_short(block[(i + f) * samples + first + b])


@kernel
def short_product_kernel(
    team: Team, scratch: NDArray[np.float32], counters: NDArray[np.int64], x_at: int, values_at: int,
    permutation_at: int, indptr_at: int, indices_at: int, bias_at: int, y_at: int, batch: int, inputs: int,
    outputs: int, connections: int, samples: int, stripe: int, first: bool,
) -> None:  # fmt: skip
    """Compute y, (batch, outputs). The first tile of the `first` call brings the weights into the order of the rows.

    Scratch memory: the weights in that order, as float32; then x in pairs. Counters: the move's two; chunks claimed,
    chunks finished, then the stripes whose weights are in order.
    """
    if spread(team):
        return
    shorts = np.empty(0, np.uint16)
    groups = (batch + samples - 1) // samples
    ordered = scratch[:connections]
    pairs = scratch[connections : connections + groups * samples // 2 * inputs].view(np.uint32)
    values, y = floats_at(values_at, connections, shorts), floats_at(y_at, batch * outputs, shorts)
    bias, permutation = floats_at(bias_at, outputs, scratch), ints_at(permutation_at, connections)
    indptr, indices = ints_at(indptr_at, outputs + 1), ints_at(indices_at, connections)
    _pack(floats_at(x_at, batch * inputs, shorts), batch, inputs, samples, pairs, counters)

    own = counters[2 * SLOT :]
    block = np.empty(stripe * samples, np.float32)
    stripes = (outputs + stripe - 1) // stripe
    chunk = claim(own, 0)
    while chunk < groups * stripes:
        group, part = chunk // stripes, chunk % stripes
        wait_until(own, (2 + part) * SLOT, min(group, 1))
        begin_row, end_row = part * stripe, min(outputs, (part + 1) * stripe)
        for row in range(begin_row, end_row):
            initial = bias[row] if len(bias) else np.float32(0)
            pair_product(
                block, (row - begin_row) * samples, initial, values, permutation, ordered, first and group == 0,
                indices, np.int64(indptr[row]), np.int64(indptr[row + 1]),
                pairs, group * inputs * samples // 2, samples // 2, samples // _HALF,
            )  # fmt: skip
        _write(y, batch, outputs, group * samples, samples, begin_row, end_row - begin_row, block)
        claim(own, (2 + part) * SLOT)
        claim(own, SLOT)
        chunk = claim(own, 0)
    wait_until(own, SLOT, groups * stripes)


@kernel
def short_gradients_kernel(
    team: Team, scratch: NDArray[np.float32], counters: NDArray[np.int64], dy_at: int, x_at: int, values_at: int,
    indptr_at: int, indices_at: int, dx_at: int, dvalues_at: int, batch: int, inputs: int, outputs: int,
    connections: int, samples: int, stripe: int, first: bool,
) -> None:  # fmt: skip
    """Compute dx, if it has an address, and dvalues; unless it is the `first` call, add to what stands there.

    values and dvalues are float32. Each stripe passes over the groups in their order, whoever computes it. Scratch
    memory: dy and x in pairs. Counters: those of two moves; chunks claimed, chunks finished, groups that each stripe
    has passed over.
    """
    if spread(team):
        return
    shorts = np.empty(0, np.uint16)
    groups, words = (batch + samples - 1) // samples, samples // 2
    border, size = groups * words * outputs, groups * words * (outputs + inputs)
    dy, x = scratch[:border].view(np.uint32), scratch[border:size].view(np.uint32)
    values, dvalues = floats_at(values_at, connections, scratch), floats_at(dvalues_at, connections, scratch)
    indptr, indices = ints_at(indptr_at, inputs + 1), ints_at(indices_at, connections)
    dx = floats_at(dx_at, batch * inputs, shorts)
    _pack(floats_at(dy_at, batch * outputs, shorts), batch, outputs, samples, dy, counters)
    _pack(floats_at(x_at, batch * inputs, shorts), batch, inputs, samples, x, counters[2 * SLOT :])

    own = counters[4 * SLOT :]
    block = np.empty(stripe * samples, np.float32)
    stripes = (inputs + stripe - 1) // stripe
    chunk = claim(own, 0)
    while chunk < groups * stripes:
        group, part = chunk // stripes, chunk % stripes
        wait_until(own, (2 + part) * SLOT, group)
        begin_row, end_row = part * stripe, min(inputs, (part + 1) * stripe)
        for row in range(begin_row, end_row):
            pair_gradients(
                block, (row - begin_row) * samples, x, (group * inputs + row) * words, dvalues, first and group == 0,
                dx_at != 0, values, indices, np.int64(indptr[row]), np.int64(indptr[row + 1]),
                dy, group * outputs * words, words, samples // _HALF, _HALF,
            )  # fmt: skip
        if dx_at:
            _write(dx, batch, inputs, group * samples, samples, begin_row, end_row - begin_row, block)
        claim(own, (2 + part) * SLOT)
        claim(own, SLOT)
        chunk = claim(own, 0)
    wait_until(own, SLOT, groups * stripes)
