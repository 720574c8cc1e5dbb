"""Convolutions with a sparse kernel, and their gradients, straight from the images.

Legend: B = batch, C = input channels, O = output channels, H, W = height and width; `x_BCHW` has shape (B, C, H, W).
`topogen.kernels._grid` says how the work is done without a column matrix.

A pattern is stored in one of two ways. With one matrix (C, O) over channels, a stored connection is a pair of channels
and carries a whole kernel: `values` has shape (nnz, kh, kw). With one matrix for each of the kh * kw kernel offsets,
row-major, stacked to (kh * kw * C, O), a connection carries one number: `values` has shape (nnz,).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels._arguments import Arguments
from topogen.kernels._atomics import SLOT
from topogen.kernels._grid import plan
from topogen.kernels._images import HEAD, convolution_gradients_kernel, convolution_kernel
from topogen.kernels._scratch import borrowed
from topogen.kernels._team import run, useful_threads
from topogen.kernels._tiled import Floats, Ints
from topogen.kernels._window import Window

__all__ = ["convolution_gradients", "convolve"]


def convolve(
    x_BCHW: Floats,
    values: Floats,
    indptr: Ints,
    indptr_t: Ints,
    indices_t: Ints,
    permutation: Ints,
    bias: Floats | None = None,
    *,
    window: Window,
    out: Floats | None = None,
    threads: int = 1,
) -> Floats:
    """Return the convolution of a batch of images with the stored kernel, as `torch.nn.functional.conv2d` defines it.

    Parameters
    ----------
    x_BCHW : ndarray, shape (B, C, H, W), float32 or float64
        The images; B may be 0.
    values : ndarray, shape (nnz, kh, kw) or (nnz,), the same dtype
        The weights, in value ordering: a kernel for each connection, or a number.
    indptr : ndarray of int32, shape (rows + 1,)
        Of the stored pattern as csr, C rows or kh * kw * C; it says which channels are read at all.
    indptr_t, indices_t, permutation : ndarray of int32, shapes (O + 1,), (nnz,) and (nnz,)
        The stored rows of each output, in any order, and where the values of each stand. They are not checked for
        being in range.
    bias : ndarray, shape (O,), optional
        What each sum starts from.
    window : Window
        The kernel's size, stride, padding and dilation.
    out : ndarray, shape (B, O, H', W'), optional
        Where to write the result.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Returns
    -------
    ndarray, shape (B, O, H', W')
        `out`, or a new array.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together, or the kernel is larger than the padded image.

    Notes
    -----
    One multiply-add for each weight and pixel of the result. Scratch memory for each thread: about half a MiB of images
    at a time, or one row of outputs with the rows that it reads where that is more. Kept for the next call.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> x = np.arange(12.0).reshape(1, 2, 2, 3)  # 2 channels of 2 x 3 pixels; only the second one is read
    >>> indptr, indptr_t, ones = (np.array(part, np.int32) for part in ([0, 0, 1], [0, 1], [1]))
    >>> window = kernels.Window((1, 2))
    >>> kernels.convolve(x, np.array([[[1.0, 10.0]]]), indptr, indptr_t, ones, ones * 0, window=window).tolist()
    [[[[76.0, 87.0], [109.0, 120.0]]]]
    """
    owner = "convolve"
    batch, channels, height, width = _shape(owner, x_BCHW)
    outputs, size = len(indptr_t) - 1, _output(owner, window, height, width)
    if out is None:
        out = np.empty((batch, outputs, *size), x_BCHW.dtype)
    check = Arguments(owner, x_BCHW, threads)
    unit = _unit(values, window)
    x = check.floats("x", x_BCHW, x_BCHW.size)
    values, bias_ = check.floats("values", values, len(indices_t) * unit), check.floats("bias", bias, outputs)
    indptr = check.ints("indptr", indptr, channels * math.prod(window.size) // unit + 1)
    indptr_t = check.ints("indptr_t", indptr_t, outputs + 1)
    indices_t = check.ints("indices_t", indices_t, len(indices_t))
    permutation = check.ints("permutation", permutation, len(indices_t))
    y = check.target("out", out, batch * outputs * math.prod(size))
    if batch == 0:
        return out
    work = plan(x_BCHW.shape, outputs, window, unit > 1, x.itemsize, False)
    threads = useful_threads(threads, len(values) * batch * math.prod(size))
    longest = int(np.diff(indptr_t).max()) * unit
    area = work.grid.channels * work.grid.phases * work.strips.run + longest + work.strips.run
    with borrowed(area * threads, x.dtype) as scratch:
        counters = np.zeros(HEAD * SLOT, np.int64)
        args = (x, values, indptr, indptr_t, indices_t, permutation, bias_, y, *work, longest, scratch, counters)
        run(convolution_kernel, args, threads)
    return out


def convolution_gradients(
    dy_BOHW: Floats,
    x_BCHW: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    *,
    window: Window,
    dx: Floats | None = None,
    dvalues: Floats | None = None,
    threads: int = 1,
) -> None:
    """Fill the gradients of `convolve` that are given an array, in one pass over the connections.

    Parameters
    ----------
    dy_BOHW : ndarray, shape (B, O, H', W'), float32 or float64
        Gradient of the result.
    x_BCHW : ndarray, shape (B, C, H, W), the same dtype
        The images of the forward pass.
    values : ndarray, shape (nnz, kh, kw) or (nnz,)
        The weights.
    indptr, indices : ndarray of int32, shapes (rows + 1,) and (nnz,)
        The stored pattern as csr, C rows or kh * kw * C. They are not checked for being in range.
    window : Window
        The kernel's size, stride, padding and dilation.
    dx, dvalues : ndarray, the shapes of `x_BCHW` and `values`, optional
        Where to write; what is None is not computed.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together, or the kernel is larger than the padded image.

    Notes
    -----
    At most two multiply-adds for each weight and pixel of `x_BCHW`; nothing of size C * O * kh * kw is allocated.
    Scratch memory as for `convolve`. Margins take part as zeros: a pixel on the border that is infinite or NaN also
    reaches the gradients of those kernel offsets that never meet it.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> x, dy = np.array([[[[1.0, 2.0, 3.0]]]]), np.array([[[[1.0, 100.0]]]])
    >>> indptr, indices = np.array([0, 1], np.int32), np.array([0], np.int32)
    >>> dx, dvalues = np.empty((1, 1, 1, 3)), np.empty((1, 1, 2))
    >>> values, window = np.array([[[5.0, 7.0]]]), kernels.Window((1, 2))
    >>> kernels.convolution_gradients(dy, x, values, indptr, indices, window=window, dx=dx, dvalues=dvalues)
    >>> dx.ravel().tolist(), dvalues.ravel().tolist()
    ([5.0, 507.0, 700.0], [201.0, 302.0])
    """
    owner = "convolution_gradients"
    batch, channels, height, width = _shape(owner, x_BCHW)
    outputs, size = _shape(owner, dy_BOHW)[1], _output(owner, window, height, width)
    check = Arguments(owner, x_BCHW, threads)
    unit = _unit(values, window)
    x = check.floats("x", x_BCHW, x_BCHW.size)
    dy = check.floats("dy", dy_BOHW, batch * outputs * math.prod(size))
    values = check.floats("values", values, len(indices) * unit)
    slices = math.prod(window.size) // unit
    indptr = check.ints("indptr", indptr, channels * slices + 1)
    indices = check.ints("indices", indices, len(indices))
    to_x, to_values = check.target("dx", dx, x.size), check.target("dvalues", dvalues, values.size)
    if batch == 0:
        to_values[:] = 0
    if batch == 0 or dx is dvalues is None:
        return
    if window.stride != (1, 1):
        to_x[:] = 0  # pixels may be left out
    work = plan(x_BCHW.shape, outputs, window, unit > 1, x.itemsize, True)
    threads = useful_threads(threads, 2 * len(values) * batch * math.prod(size))
    longest = int(np.diff(indptr).reshape(slices, channels).sum(axis=0).max()) * unit
    area = (outputs + 2) * work.strips.run + 2 * longest
    grid, strips, _, *places = work
    with borrowed(area * threads, x.dtype) as scratch:
        counters = np.zeros((HEAD + channels) * SLOT, np.int64)
        args = (dy, x, values, indptr, indices, to_x, to_values, grid, strips, *places, longest, scratch, counters)
        run(convolution_gradients_kernel, args, threads)


def _unit(values: NDArray[Any], window: Window) -> int:
    return math.prod(window.size) if values.ndim > 1 else 1


def _shape(owner: str, array: NDArray[Any]) -> tuple[int, ...]:
    if array.ndim != 4:
        raise SpecError(
            f"The arrays of {owner} must have 4 axes: batch, channels, height, width. Got shape {array.shape}."
        )
    return array.shape


def _output(owner: str, window: Window, height: int, width: int) -> tuple[int, int]:
    size = window.output(height, width)
    if min(size) < 1:
        raise SpecError(
            f"The 'window' parameter of {owner} must fit into the padded {height} x {width} image. Got {window}."
        )
    return size
