"""Calls of the compiled kernels, by address: what reaches them from here has been checked.

Legend: B = batch, I = inputs, O = outputs, G = groups, S = samples. Operands are addresses, in the order of the
kernels; 0 stands for an array that is not wanted. `kind` is an empty array of the dtype, float32 or float64. Every
array is C-contiguous, indices are int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._atomics import SLOT
from topogen.kernels._passes import gradients_kernel, move_kernel, product_kernel
from topogen.kernels._plan import Plan, samples_per_group
from topogen.kernels._scratch import borrowed
from topogen.kernels._single import single_gradients_kernel, single_product_kernel
from topogen.kernels._team import run, useful_threads

__all__ = ["NOTHING", "gradients", "gradients_columns", "move_rows", "product", "product_columns", "product_single"]

NOTHING = {np.dtype(kind): np.empty(0, kind) for kind in (np.float32, np.float64)}

_PANEL_BYTES = 1 << 22  # of packed samples: a larger batch is walked in panels, which stay in the cache
_PART = 250_000  # connections: a single sample's product is cut into parts of about so many, at most 8
_SLOWER = 16  # times is a multiply-add outside of vectors
_NO_TOTALS = np.empty(0, np.float64)


def product(
    kind: NDArray[Any], operands: Sequence[int],
    batch: int, inputs: int, outputs: int, connections: int, threads: int,
) -> None:  # fmt: skip
    """Fill y (B, O), B > 0; see `topogen.kernels.multiply`."""
    x, values, permutation, indptr, indices, bias, y = operands
    itemsize = kind.itemsize
    samples = samples_per_group(batch, inputs, itemsize)
    panel = _panel(batch, samples, inputs * itemsize)
    kept = connections if permutation else 0
    with borrowed(kept + -(-panel // samples) * samples * inputs, kind.dtype) as scratch:
        for start in range(0, batch, panel):
            count = min(panel, batch - start)
            plan = _plan(count, samples, inputs, outputs, itemsize)
            useful = useful_threads(threads, connections * count)
            args = (
                scratch, _counters(outputs, plan, useful), x + start * inputs * itemsize, values, permutation, indptr,
                indices, bias, y + start * outputs * itemsize, count, inputs, outputs, connections, start == 0, plan[:],
            )  # fmt: skip
            run(product_kernel, args, useful)


def product_single(
    kind: NDArray[Any], operands: Sequence[int],
    inputs: int, outputs: int, connections: int, threads: int,
) -> None:  # fmt: skip
    """Fill y (1, O) from x (1, I) and W as csr, whose rows are inputs."""
    x, values, indptr, indices, bias, y = operands
    parts = min(8, 1 + connections // _PART)
    with borrowed(parts * outputs, kind.dtype) as scratch:
        args = (
            scratch, np.zeros(4 * SLOT, np.int64), x, values, indptr, indices, bias, y,
            inputs, outputs, connections, parts,
        )  # fmt: skip
        run(single_product_kernel, args, min(parts, useful_threads(threads, _SLOWER * connections)))


def gradients(
    kind: NDArray[Any], operands: Sequence[int],
    batch: int, inputs: int, outputs: int, connections: int, threads: int,
) -> None:  # fmt: skip
    """Fill dx (B, I), dvalues and dbias as far as they have an address, B > 0; see `topogen.kernels.gradients`."""
    dy, x, values, indptr, indices, dx, dvalues, dbias = operands
    if batch == 1:
        args = (
            kind, np.zeros(2 * SLOT, np.int64), dy, x, values, indptr, indices, dx, dvalues, dbias,
            inputs, outputs, connections,
        )  # fmt: skip
        run(single_gradients_kernel, args, useful_threads(threads, _SLOWER * connections))
        return
    if not dvalues:
        if dx:
            product(kind, (dy, values, 0, indptr, indices, 0, dx), batch, outputs, inputs, connections, threads)
        if not dbias:
            return
        dx = inputs = connections = 0  # the bias is left
    itemsize, work = kind.itemsize, 2 * connections
    samples = samples_per_group(batch, outputs, itemsize)
    panel = _panel(batch, samples, outputs * itemsize)
    totals = np.empty(outputs, np.float64) if dbias else _NO_TOTALS
    with borrowed(-(-panel // samples) * samples * outputs, kind.dtype) as scratch:
        for start in range(0, batch, panel):
            count = min(panel, batch - start)
            plan = _plan(count, samples, outputs, inputs, itemsize)
            useful = useful_threads(threads, work * count)
            args = (
                scratch, _counters(inputs + outputs, plan, useful), totals, dy + start * outputs * itemsize,
                x + start * inputs * itemsize, values, indptr, indices, dx and dx + start * inputs * itemsize,
                dvalues, dbias, count, inputs, outputs, connections, start == 0, plan[:],
            )  # fmt: skip
            run(gradients_kernel, args, useful)


def product_columns(
    kind: NDArray[Any], operands: Sequence[int],
    groups: int, samples: int, last: int, inputs: int, outputs: int, connections: int, threads: int,
) -> None:  # fmt: skip
    """Fill y (G, O, S), of whose last group `last` samples exist; see `topogen.kernels.multiply_columns`."""
    x, values, permutation, indptr, indices, bias, y = operands
    plan = Plan.of(groups, samples, last, inputs, outputs, kind.itemsize)
    threads = useful_threads(threads, connections * groups * samples)
    with borrowed(connections if permutation else 0, kind.dtype) as scratch:
        args = (
            scratch, _counters(outputs, plan, threads), x, values, permutation, indptr, indices, bias, y,
            0, inputs, outputs, connections, True, plan[:],
        )  # fmt: skip
        run(product_kernel, args, threads)


def gradients_columns(
    kind: NDArray[Any], operands: Sequence[int],
    groups: int, samples: int, last: int, inputs: int, outputs: int, connections: int, threads: int,
) -> None:  # fmt: skip
    """Fill dx (G, I, S), dvalues and dbias as far as they have an address; see `topogen.kernels.gradients_columns`."""
    dy, x, values, indptr, indices, dx, dvalues, dbias = operands
    if not dvalues:
        if dx:
            sizes = (groups, samples, last, outputs, inputs, connections)
            product_columns(kind, (dy, values, 0, indptr, indices, 0, dx), *sizes, threads)
        if not dbias:
            return
        dx = inputs = connections = 0  # the bias is left
    plan = Plan.of(groups, samples, last, outputs, inputs, kind.itemsize)
    totals = np.empty(outputs, np.float64) if dbias else _NO_TOTALS
    threads = useful_threads(threads, 2 * connections * groups * samples)
    args = (
        kind, _counters(inputs + outputs, plan, threads), totals, dy, x, values, indptr, indices, dx, dvalues, dbias,
        0, inputs, outputs, connections, True, plan[:],
    )  # fmt: skip
    run(gradients_kernel, args, threads)


def move_rows(
    kind: NDArray[Any], rows: int, batch: int, features: int, samples: int, packed: int, forth: bool, threads: int
) -> None:
    """Copy (B, F) at `rows` into (G, F, S) at `packed` if `forth`, else back."""
    threads = useful_threads(threads, 8 * batch * features)
    args = (kind, np.zeros((1 + threads) * SLOT, np.int64), rows, batch, features, samples, packed, int(forth))
    run(move_kernel, args, threads)


def _panel(batch: int, samples: int, bytes_of_sample: int) -> int:
    """Return how many samples are packed at a time."""
    return min(batch, max(1, _PANEL_BYTES // (bytes_of_sample * samples or 1)) * samples)


@lru_cache(maxsize=1024)
def _plan(batch: int, samples: int, gathered: int, rows: int, itemsize: int) -> Plan:
    groups = -(-batch // samples)
    return Plan.of(groups, samples, batch - (groups - 1) * samples, gathered, rows, itemsize)


def _counters(rows: int, plan: Plan, threads: int) -> NDArray[np.int64]:
    # Those of the move, and the kernel's own; sums and rows may both end in a part of a stripe.
    return np.zeros((2 * (1 + threads) + 2 + rows // plan.stripe) * SLOT, np.int64)
