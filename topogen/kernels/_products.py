"""Products of a batch with a sparse matrix, and their gradients.

Legend: B = batch, I = inputs, O = outputs; `x_BI` has shape (B, I).

How it works. The samples of one neuron must lie side by side for vector instructions, but (batch, features) keeps the
features together: each call first packs the array that is read at random into tiles, which is the transpose. A tile is
chosen so that all its neurons stay in the second-level cache while the rows of the matrix pass over it. Everything
else is read and written once, in squares of one cache line, straight from and to (batch, features).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels._scratch import borrowed
from topogen.kernels._team import run
from topogen.kernels._tiled import Floats, Ints, fresh_counters, gradients_kernel, product_kernel
from topogen.kernels._vector import MAX_VECTORS, VECTOR_BYTES

__all__ = ["gradients", "multiply"]

_CACHE_BYTES = 1 << 20  # what a tile may take of the second-level cache
_WORTH_A_THREAD = 2_000_000  # multiply-adds, about 50 microseconds; waking a helper takes 20


def multiply(
    x_BI: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    permutation: Ints | None = None,
    bias: Floats | None = None,
    *,
    out: Floats | None = None,
    threads: int = 1,
) -> Floats:
    """Return ``y[b, o] = bias[o] + sum_k w[k] * x[b, indices[k]]`` over k in [indptr[o], indptr[o + 1]).

    Parameters
    ----------
    x_BI : ndarray, shape (B, I), float32 or float64
        The batch; B may be 0.
    values : ndarray, shape (nnz,), the same dtype
        The weights.
    indptr, indices : ndarray of int32, shapes (O + 1,) and (nnz,)
        The inputs of each output: a compressed matrix whose rows are outputs. They are not checked for being in range.
    permutation : ndarray of int32, shape (nnz,), optional
        Connection k has the weight ``w[k] = values[permutation[k]]``; without it ``w = values``.
    bias : ndarray, shape (O,), optional
        What each sum starts from.
    out : ndarray, shape (B, O), optional
        Where to write the result.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

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
    nnz * B multiply-adds. Scratch memory: B * I + nnz elements, kept for the next call.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 2, 3], np.int32), np.array([0, 2, 1], np.int32)  # 3 inputs, 2 outputs
    >>> kernels.multiply(np.array([[1.0, 2.0, 3.0]]), np.array([10.0, 1.0, 5.0]), indptr, indices)
    array([[13., 10.]])
    """
    outputs, batch = len(indptr) - 1, len(x_BI)
    if out is None:
        out = np.empty((batch, outputs), x_BI.dtype)
    check = _Checks("multiply", x_BI, threads)
    x = check.floats("x", x_BI, x_BI.size)
    values, bias_ = check.floats("values", values, len(indices)), check.floats("bias", bias, outputs)
    indptr, indices = check.ints("indptr", indptr, outputs + 1), check.ints("indices", indices, len(indices))
    places = check.ints("permutation", permutation, len(values))
    y = check.target("out", out, batch * outputs)
    if batch:
        _launch_product(batch, x, check.nothing, values, places, indptr, indices, bias_, y, threads)
    return out


def gradients(
    dy_BO: Floats,
    x_BI: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    *,
    dx: Floats | None = None,
    dvalues: Floats | None = None,
    dbias: Floats | None = None,
    threads: int = 1,
) -> None:
    """Fill the gradients of ``y = x @ W + bias`` that are given an array, in one pass over the connections.

    ``dx[b, i] = sum_k values[k] * dy[b, indices[k]]``, ``dvalues[k] = sum_b x[b, i] * dy[b, indices[k]]`` for k in
    [indptr[i], indptr[i + 1]), and ``dbias[o] = sum_b dy[b, o]``.

    Parameters
    ----------
    dy_BO : ndarray, shape (B, O), float32 or float64
        Gradient of the output.
    x_BI : ndarray, shape (B, I), the same dtype
        The batch of the forward pass.
    values : ndarray, shape (nnz,)
        The weights.
    indptr, indices : ndarray of int32, shapes (I + 1,) and (nnz,)
        W as csr: the outputs of each input. They are not checked for being in range.
    dx, dvalues, dbias : ndarray, shapes (B, I), (nnz,) and (O,), optional
        Where to write; what is None is not computed.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.

    Notes
    -----
    At most 2 nnz * B multiply-adds; nothing of size I * O is allocated. Scratch memory: B * O elements (and nnz more
    if `dx` is wanted without `dvalues`), kept for the next call.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 1, 2, 3], np.int32), np.array([0, 1, 0], np.int32)  # 3 inputs, 2 outputs
    >>> x, dy, values = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 100.0]]), np.array([10.0, 5.0, 1.0])
    >>> dx, dvalues = np.empty((1, 3)), np.empty(3)
    >>> kernels.gradients(dy, x, values, indptr, indices, dx=dx, dvalues=dvalues)
    >>> dx.tolist(), dvalues.tolist()
    ([[10.0, 500.0, 1.0]], [1.0, 200.0, 3.0])
    """
    batch, inputs, outputs = len(x_BI), len(indptr) - 1, dy_BO.shape[1]
    check = _Checks("gradients", x_BI, threads)
    x, dy = check.floats("x", x_BI, batch * inputs), check.floats("dy", dy_BO, batch * outputs)
    values = check.floats("values", values, len(indices))
    indptr, indices = check.ints("indptr", indptr, inputs + 1), check.ints("indices", indices, len(indices))
    to_x = check.target("dx", dx, batch * inputs)
    to_values, to_bias = check.target("dvalues", dvalues, len(values)), check.target("dbias", dbias, outputs)
    if batch == 0:
        to_values[:] = 0
        to_bias[:] = 0
    elif dvalues is not None:
        _launch_gradients(batch, dy, to_bias, x, values, indptr, indices, to_x, to_values, threads)
    elif dx is not None:
        _launch_product(batch, dy, to_bias, values, _NO_INTS, indptr, indices, check.nothing, to_x, threads)
    elif dbias is not None:
        np.sum(dy_BO, axis=0, out=dbias)


def _launch_product(
    batch: int, x: Floats, sums: Floats, values: Floats, permutation: Ints, indptr: Ints, indices: Ints, bias: Floats,
    y: Floats, threads: int,
) -> None:  # fmt: skip
    inputs = x.size // batch
    tile, padded = _tiling(batch, inputs, x.itemsize)
    with borrowed(padded * inputs + len(permutation), x.dtype) as scratch:
        packed = scratch[: padded * inputs]
        ordered = scratch[padded * inputs :] if len(permutation) else values
        args = (
            x, sums, values, permutation, indptr, indices, bias, y,
            batch, tile, packed, ordered, fresh_counters(len(indptr) - 1, x.itemsize),
        )  # fmt: skip
        run(product_kernel, args, _useful_threads(threads, len(values) * batch))


def _launch_gradients(
    batch: int, dy: Floats, sums: Floats, x: Floats, values: Floats, indptr: Ints, indices: Ints, dx: Floats,
    dvalues: Floats, threads: int,
) -> None:  # fmt: skip
    outputs = dy.size // batch
    tile, padded = _tiling(batch, outputs, x.itemsize)
    with borrowed(padded * outputs, x.dtype) as packed:
        args = (
            dy, sums, x, values, indptr, indices, dx, dvalues,
            batch, tile, packed, fresh_counters(len(indptr) - 1, x.itemsize),
        )  # fmt: skip
        run(gradients_kernel, args, _useful_threads(threads, 2 * len(values) * batch))


def _tiling(batch: int, neurons: int, itemsize: int) -> tuple[int, int]:
    """Return the samples of a tile and those of all tiles together."""
    lanes = VECTOR_BYTES // itemsize
    vectors = -(-batch // lanes)
    widest = min(MAX_VECTORS, max(2, _CACHE_BYTES // (VECTOR_BYTES * max(neurons, 1))))
    tiles = -(-vectors // widest)
    return -(-vectors // tiles) * lanes, vectors * lanes


def _useful_threads(threads: int, multiply_adds: int) -> int:
    return min(threads, 1 + multiply_adds // _WORTH_A_THREAD)


class _Checks:
    """What compiled code relies on: flat, contiguous, writable arrays of one dtype and of the right length.

    An array that is None becomes one of length 0. One that is read-only is copied, since numba would compile every
    kernel once more for its type.
    """

    def __init__(self, owner: str, x: NDArray[Any], threads: int) -> None:
        self.owner = owner
        if x.dtype not in _NOTHING:
            raise SpecError(f"The 'x' parameter of {owner} must be an array of float32 or float64. Got {x.dtype}.")
        self.dtype, self.nothing = x.dtype, _NOTHING[x.dtype]
        if threads < 1:
            raise SpecError(f"The 'threads' parameter of {owner} must be an int >= 1. Got {threads}.")

    def floats(self, name: str, array: NDArray[Any] | None, size: int) -> Floats:
        return self.nothing if array is None else self._flat(name, array, size, self.dtype)

    def target(self, name: str, array: NDArray[Any] | None, size: int) -> Floats:
        if array is not None and not array.flags.writeable:
            raise SpecError(f"The '{name}' parameter of {self.owner} must be writable. Got a read-only array.")
        return self.floats(name, array, size)

    def ints(self, name: str, array: NDArray[Any] | None, size: int) -> Ints:
        return _NO_INTS if array is None else self._flat(name, array, size, _INT32)

    def _flat(self, name: str, array: NDArray[Any], size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        flags = array.flags
        if array.dtype != dtype or not flags.c_contiguous:
            kind, got = f"a C-contiguous array of {dtype}", "a strided one" if array.dtype == dtype else array.dtype
            raise SpecError(f"The '{name}' parameter of {self.owner} must be {kind}. Got {got}.")
        if array.size != size:
            raise SpecError(f"The '{name}' parameter of {self.owner} must have {size} elements. Got {array.size}.")
        return array.reshape(-1) if flags.writeable else array.flatten()


_INT32 = np.dtype(np.int32)
_NO_INTS = np.empty(0, np.int32)
_NOTHING = {np.dtype(kind): np.empty(0, kind) for kind in (np.float32, np.float64)}
