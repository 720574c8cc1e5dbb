"""The compiled side of products with a single sample: nothing fills a vector, so nothing is packed.

Arguments are as in `topogen.kernels._passes`. What bounds these kernels is the reading of the values, hence both walk
W as csr, in the order in which the values lie. Four sums run side by side, since one would wait for each addition.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._memory import floats_at, ints_at
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._tiled import Floats

__all__ = ["single_gradients_kernel", "single_product_kernel"]

_ROWS = 64  # of one chunk


@kernel
def single_product_kernel(
    team: Team, scratch: Floats, counters: NDArray[np.int64], x_at: int, values_at: int, indptr_at: int,
    indices_at: int, bias_at: int, y_at: int, inputs: int, outputs: int, connections: int, parts: int,
) -> None:  # fmt: skip
    """Compute ``y = x @ W + bias``, each part of the inputs in a row of scratch memory of its own, then their sum."""
    if spread(team):
        return
    x, values = floats_at(x_at, inputs, scratch), floats_at(values_at, connections, scratch)
    indptr, indices = ints_at(indptr_at, inputs + 1), ints_at(indices_at, connections)
    part = claim(counters, 0)
    while part < parts:
        sums = scratch[part * outputs : (part + 1) * outputs]
        sums[:] = 0
        for row in range(part * inputs // parts, (part + 1) * inputs // parts):
            for k in range(np.int64(indptr[row]), np.int64(indptr[row + 1])):
                sums[indices[k]] += x[row] * values[k]
        claim(counters, SLOT)
        part = claim(counters, 0)
    wait_until(counters, SLOT, parts)
    bias, y = floats_at(bias_at, outputs, scratch), floats_at(y_at, outputs, scratch)
    if claim(counters, 2 * SLOT) == 0:
        if len(bias):
            y[:] = bias
        else:
            y[:] = 0
        for part in range(parts):
            y += scratch[part * outputs : (part + 1) * outputs]
        claim(counters, 3 * SLOT)
    wait_until(counters, 3 * SLOT, 1)


@kernel
def single_gradients_kernel(
    team: Team, kind: Floats, counters: NDArray[np.int64], dy_at: int, x_at: int, values_at: int, indptr_at: int,
    indices_at: int, dx_at: int, dvalues_at: int, dbias_at: int, inputs: int, outputs: int, connections: int,
) -> None:  # fmt: skip
    """Compute ``dx = dy @ W.T``, ``dvalues[k] = x[i] * dy[indices[k]]`` and ``dbias = dy``, each with an address."""
    if spread(team):
        return
    dy, x = floats_at(dy_at, outputs, kind), floats_at(x_at, inputs, kind)
    values, dbias = floats_at(values_at, connections, kind), floats_at(dbias_at, outputs, kind)
    indptr, indices = ints_at(indptr_at, inputs + 1), ints_at(indices_at, connections)
    dx, dvalues = floats_at(dx_at, inputs, kind), floats_at(dvalues_at, connections, kind)
    chunks = max(1, (inputs + _ROWS - 1) // _ROWS)
    chunk = claim(counters, 0)
    while chunk < chunks:
        if chunk == 0 and dbias_at:
            dbias[:] = dy
        for row in range(chunk * _ROWS, min(inputs, (chunk + 1) * _ROWS)):
            begin, end = np.int64(indptr[row]), np.int64(indptr[row + 1])
            if dvalues_at:
                for k in range(begin, end):
                    dvalues[k] = x[row] * dy[indices[k]]
            if dx_at:
                fours = begin + (end - begin) // 4 * 4
                a = b = c = d = kind.dtype.type(0)
                for k in range(begin, fours, 4):
                    a += values[k] * dy[indices[k]]
                    b += values[k + 1] * dy[indices[k + 1]]
                    c += values[k + 2] * dy[indices[k + 2]]
                    d += values[k + 3] * dy[indices[k + 3]]
                for k in range(fours, end):
                    a += values[k] * dy[indices[k]]
                dx[row] = (a + b) + (c + d)
        claim(counters, SLOT)
        chunk = claim(counters, 0)
    wait_until(counters, SLOT, chunks)
