"""Products with a sparse matrix whose rows share most of their columns, and their gradients.

Legend: B = batch, G = groups, I = inputs, O = outputs, S = samples; `x_BI` has shape (B, I), `x_GIS` (G, I, S).

The row kernels (`topogen.kernels._products`) wait for the cache: forward one load for every multiply-add. In
circulants, bands, RadiX-Nets, Kronecker products and blocks of any size, rows can be grouped into panels of four that
need the same samples. A panel loads them once, which leaves the arithmetic as the limit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels._arguments import Arguments
from topogen.kernels._atomics import SLOT
from topogen.kernels._panel_passes import (
    SPACING,
    STRIPE,
    Group,
    gradients_of_packed,
    gradients_of_panels,
    product_of_packed,
    product_of_panels,
)
from topogen.kernels._panel_plan import plan_panels
from topogen.kernels._panel_vector import MEMBERS
from topogen.kernels._scratch import borrowed
from topogen.kernels._team import run, useful_threads
from topogen.kernels._tiled import NOT_SPACED, Floats, Ints
from topogen.kernels._vector import MAX_VECTORS, VECTOR_BYTES

__all__ = ["gradients_panels", "gradients_panels_columns", "multiply_panels", "multiply_panels_columns", "plan_panels"]

_CACHE_BYTES = 2 << 20  # of a tile: beyond the second-level cache, since a load from the third serves a whole panel
_NARROWEST = 4  # vectors of a tile of many neurons, where the batch has as many
_CHUNK_BYTES = 1 << 22  # of packed samples: a larger batch is walked in chunks, as many tiles as a cache may hold


def multiply_panels(
    x_BI: Floats,
    values: Floats,
    plan: Ints,
    outputs: int,
    bias: Floats | None = None,
    *,
    out: Floats | None = None,
    threads: int = 1,
) -> Floats:
    """Return what `multiply` does, for a matrix that `plan_panels` has a plan for.

    Parameters
    ----------
    x_BI : ndarray, shape (B, I), float32 or float64
        The batch; B may be 0.
    values : ndarray, shape (nnz,), the same dtype
        The weights.
    plan : ndarray of int32
        ``plan_panels(indptr, indices, permutation)`` of the matrix whose rows are outputs. It is not checked.
    outputs : int
        O, the rows that the plan was made for.
    bias, out, threads
        As for `multiply`.

    Returns
    -------
    ndarray, shape (B, O)
        `out`, or a new array.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.

    Notes
    -----
    nnz * B multiply-adds, none of them with a padding zero. Scratch memory: B * (I + O) elements, at most about 4 MiB
    or one tile, kept for the next call.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.arange(0, 10, 2, dtype=np.int32), np.array([0, 2] * 4, np.int32)  # 3 inputs, 4 outputs
    >>> plan = kernels.plan_panels(indptr, indices, np.arange(8, dtype=np.int32))
    >>> kernels.multiply_panels(np.array([[1.0, 2.0, 3.0]]), np.arange(8.0), plan, 4)
    array([[ 3., 11., 19., 27.]])
    """
    batch, inputs = x_BI.shape
    if out is None:
        out = np.empty((batch, outputs), x_BI.dtype)
    check = Arguments("multiply_panels", x_BI, threads)
    x, values = check.floats("x", x_BI, x_BI.size), check.floats("values", values, values.size)
    plan, bias_ = check.ints("plan", plan, plan.size), check.floats("bias", bias, outputs)
    y = check.target("out", out, batch * outputs)
    places = inputs + (inputs >> SPACING)
    for rows, group in _chunks(batch, inputs, places + outputs, x.itemsize):
        groups, samples, _ = group
        useful = useful_threads(threads, len(values) * len(rows))
        counters = np.zeros(3 * (1 + useful) * SLOT, np.int64)
        with borrowed(groups * samples * (places + outputs), x.dtype) as scratch:
            x_rows, y_rows = x[rows.start * inputs : rows.stop * inputs], y[rows.start * outputs : rows.stop * outputs]
            args = (x_rows, values, plan, bias_, y_rows, inputs, outputs, group, scratch, counters)
            run(product_of_packed, args, useful)
    return out


def gradients_panels(
    dy_BO: Floats,
    x_BI: Floats,
    values: Floats,
    indptr: Ints,
    plan: Ints,
    *,
    dx: Floats | None = None,
    dvalues: Floats | None = None,
    dbias: Floats | None = None,
    threads: int = 1,
) -> None:
    """Fill the gradients that `gradients` does, for a matrix that `plan_panels` has a plan for.

    Parameters
    ----------
    dy_BO : ndarray, shape (B, O), float32 or float64
        Gradient of the output.
    x_BI : ndarray, shape (B, I), the same dtype
        The batch of the forward pass.
    values : ndarray, shape (nnz,)
        The weights.
    indptr : ndarray of int32, shape (I + 1,)
        How many outputs each input has: W as csr. Which they are, the plan knows.
    plan : ndarray of int32
        ``plan_panels(indptr, indices)`` of W as csr. It is not checked.
    dx, dvalues, dbias, threads
        As for `gradients`.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.

    Notes
    -----
    At most 2 nnz * B multiply-adds; nothing of size I * O is allocated. Scratch memory: B * (2 I + O) elements, at most
    about 4 MiB or one tile, kept for the next call (and nnz more if `dx` is wanted without `dvalues`).

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.arange(5, dtype=np.int32) * 200, np.tile(np.arange(200, dtype=np.int32), 4)
    >>> plan = kernels.plan_panels(indptr, indices)  # 4 inputs, all of them joined to 200 outputs
    >>> x, dy, values = np.ones((1, 4)), np.full((1, 200), 2.0), np.ones(800)
    >>> dx, dvalues = np.empty((1, 4)), np.empty(800)
    >>> kernels.gradients_panels(dy, x, values, indptr, plan, dx=dx, dvalues=dvalues)
    >>> dx.tolist(), dvalues[:3].tolist()
    ([[400.0, 400.0, 400.0, 400.0]], [2.0, 2.0, 2.0])
    """
    batch, inputs, outputs = len(x_BI), len(indptr) - 1, dy_BO.shape[1]
    check = Arguments("gradients_panels", x_BI, threads)
    x, dy = check.floats("x", x_BI, batch * inputs), check.floats("dy", dy_BO, batch * outputs)
    values = check.floats("values", values, values.size)
    indptr, plan = check.ints("indptr", indptr, inputs + 1), check.ints("plan", plan, plan.size)
    to_x = check.target("dx", dx, batch * inputs)
    to_values, to_bias = check.target("dvalues", dvalues, len(values)), check.target("dbias", dbias, outputs)
    if batch == 0:
        to_values[:] = 0
        to_bias[:] = 0
        return
    if dx is None and dvalues is None:
        if dbias is not None:
            np.sum(dy_BO, axis=0, out=dbias)
        return
    neurons = outputs + (outputs >> SPACING) + (inputs if dx is None else 2 * inputs)
    totals, unwanted = np.empty(len(to_bias), np.float64), len(values) if dvalues is None else 0
    with borrowed(unwanted, x.dtype) as sink:  # without value gradients the pass is as fast as another kernel would be
        for rows, group in _chunks(batch, outputs, neurons, x.itemsize):
            groups, samples, _ = group
            useful = useful_threads(threads, 2 * len(values) * len(rows))
            counters = _counters(inputs, len(to_bias), useful, moves=3)
            of_x, of_y = (slice(rows.start * width, rows.stop * width) for width in (inputs, outputs))
            with borrowed(groups * samples * neurons, x.dtype) as scratch:
                args = (
                    dy[of_y], x[of_x], values, indptr, plan, to_x[of_x], sink if dvalues is None else to_values,
                    to_bias, outputs, group, rows.start > 0, totals, scratch, counters,
                )  # fmt: skip
                run(gradients_of_packed, args, useful)


def multiply_panels_columns(
    x_GIS: Floats,
    values: Floats,
    plan: Ints,
    outputs: int,
    bias: Floats | None = None,
    *,
    out: Floats | None = None,
    batch: int | None = None,
    threads: int = 1,
) -> Floats:
    """Return what `multiply_columns` does, for packed activations and a matrix that `plan_panels` has a plan for.

    Parameters
    ----------
    x_GIS : ndarray, shape (G, I, S), float32 or float64
        Packed as `pack` does. S is one tile: a multiple of 16, and at most 96 of float32 or 48 of float64.
    values, plan, outputs, bias
        As for `multiply_panels`.
    out : ndarray, shape (G, O, S), optional
        Where to write the result.
    batch : int, optional
        How many samples of all groups exist, G * S by default; the others, in the last group, are 0 in the result.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Returns
    -------
    ndarray, shape (G, O, S)
        `out`, or a new array.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.
    """
    groups, inputs, samples = x_GIS.shape
    group = _group("multiply_panels_columns", groups, samples, batch, x_GIS.itemsize)
    if out is None:
        out = np.empty((groups, outputs, samples), x_GIS.dtype)
    check = Arguments("multiply_panels_columns", x_GIS, threads)
    x, values = check.floats("x", x_GIS, x_GIS.size), check.floats("values", values, values.size)
    plan, bias_ = check.ints("plan", plan, plan.size), check.floats("bias", bias, outputs)
    y = check.target("out", out, groups * outputs * samples)
    useful = useful_threads(threads, len(values) * groups * samples)
    args = (x, values, plan, bias_, y, inputs, outputs, group, NOT_SPACED, np.zeros((1 + useful) * SLOT, np.int64))
    run(product_of_panels, args, useful)
    return out


def gradients_panels_columns(
    dy_GOS: Floats,
    x_GIS: Floats,
    values: Floats,
    indptr: Ints,
    plan: Ints,
    *,
    dx: Floats | None = None,
    dvalues: Floats | None = None,
    dbias: Floats | None = None,
    batch: int | None = None,
    threads: int = 1,
) -> None:
    """Fill the gradients of `multiply_panels_columns` that are given an array.

    Parameters
    ----------
    dy_GOS, x_GIS : ndarray, shapes (G, O, S) and (G, I, S), float32 or float64
        Gradient of the output, and the data of the forward pass.
    values, indptr, plan
        As for `gradients_panels`.
    dx, dvalues, dbias : ndarray, shapes (G, I, S), (nnz,) and (O,), optional
        Where to write; what is None is not wanted.
    batch, threads : int
        As for `multiply_panels_columns`. Samples that do not exist are 0 in `dx` and play no part in the others.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.
    """
    (groups, inputs, samples), outputs = x_GIS.shape, dy_GOS.shape[1]
    group = _group("gradients_panels_columns", groups, samples, batch, x_GIS.itemsize)
    check = Arguments("gradients_panels_columns", x_GIS, threads)
    x, dy = check.floats("x", x_GIS, x_GIS.size), check.floats("dy", dy_GOS, groups * outputs * samples)
    values = check.floats("values", values, values.size)
    indptr, plan = check.ints("indptr", indptr, inputs + 1), check.ints("plan", plan, plan.size)
    to_x = check.target("dx", dx, x.size)
    to_values, to_bias = check.target("dvalues", dvalues, len(values)), check.target("dbias", dbias, outputs)
    if groups == 0:
        to_values[:] = 0
        to_bias[:] = 0
        return
    totals, unwanted = np.empty(len(to_bias), np.float64), len(values) if dvalues is None else 0
    useful = useful_threads(threads, 2 * len(values) * groups * samples)
    with borrowed(unwanted, x.dtype) as sink:
        args = (
            dy, x, values, indptr, plan, to_x, sink if dvalues is None else to_values, to_bias, outputs, group,
            NOT_SPACED, False, totals, _counters(inputs, len(to_bias), useful),
        )  # fmt: skip
        run(gradients_of_panels, args, useful)


def _chunks(batch: int, gathered: int, neurons: int, itemsize: int) -> Iterator[tuple[range, Group]]:
    """Yield the rows of each chunk of a batch, and its groups; every group is one tile."""
    lanes = VECTOR_BYTES // itemsize
    vectors = max(1, -(-batch // lanes))
    widest = min(MAX_VECTORS, max(_NARROWEST, _CACHE_BYTES // (VECTOR_BYTES * max(gathered, 1))), vectors)
    samples = min(range(widest, (widest - 1) // 2, -1), key=lambda width: -vectors % width) * lanes
    chunk = max(1, _CHUNK_BYTES // (max(neurons, 1) * itemsize * samples)) * samples
    for start in range(0, batch, chunk):
        rows = range(start, min(batch, start + chunk))
        groups = -(-len(rows) // samples)
        yield rows, (groups, samples, len(rows) - (groups - 1) * samples)


def _group(owner: str, groups: int, samples: int, batch: int | None, itemsize: int) -> Group:
    lanes = VECTOR_BYTES // itemsize
    if samples not in range(lanes, MAX_VECTORS * lanes + 1, lanes):
        raise SpecError(
            f"The 'x' parameter of {owner} must have a multiple of {lanes} samples in a group, at most "
            f"{MAX_VECTORS * lanes}. Got {samples}."
        )
    present = groups * samples if batch is None else batch
    if groups and not (groups - 1) * samples < present <= groups * samples:
        raise SpecError(
            f"The 'batch' parameter of {owner} must be an int in [{(groups - 1) * samples + 1}, {groups * samples}]. "
            f"Got {present}."
        )
    return groups, samples, present - (groups - 1) * samples


def _counters(rows: int, sums: int, threads: int, *, moves: int = 0) -> NDArray[np.int64]:
    stripe = STRIPE * MEMBERS
    parts = -(-rows // stripe) + -(-sums // stripe)
    return np.zeros(((moves + 1) * (1 + threads) + parts) * SLOT, np.int64)
