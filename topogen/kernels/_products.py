"""Products of a batch with a sparse matrix, and their gradients.

Legend: B = batch, I = inputs, O = outputs; `x_BI` has shape (B, I).

How it works. The samples of one neuron must lie side by side for vector instructions, but (batch, features) keeps the
features together: each call first packs the operand that is read at random into feature-major tiles, which is the
transpose; of the others a thread turns one stripe at a time, as it needs it. A tile is chosen so that all neurons that
are read at random stay in the second-level cache while the rows of the matrix pass over it.
"""

from __future__ import annotations

import numpy as np

from topogen.kernels import launch
from topogen.kernels._arguments import Arguments, address
from topogen.kernels._plan import CACHE_BYTES
from topogen.kernels._team import useful_threads
from topogen.kernels._tiled import Floats, Ints

__all__ = ["CACHE_BYTES", "gradients", "multiply", "multiply_vector", "useful_threads"]


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
    nnz * B multiply-adds. Scratch memory, kept for the next call: nnz elements for a permutation, and B * I, but little
    more than 4 MiB of these, since a larger batch is walked in panels.

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
    check = Arguments("multiply", x_BI, threads)
    x = check.floats("x", x_BI, x_BI.size)
    values, bias_ = check.floats("values", values, len(indices)), check.floats("bias", bias, outputs)
    indptr, indices = check.ints("indptr", indptr, outputs + 1), check.ints("indices", indices, len(indices))
    places = check.ints("permutation", permutation, len(values))
    y = check.target("out", out, batch * outputs)
    if batch:
        operands = [address(array) for array in (x, values, places, indptr, indices, bias_, y)]
        launch.product(check.nothing, operands, batch, x.size // batch, outputs, len(values), threads)
    return out


def multiply_vector(
    x_I: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    outputs: int,
    bias: Floats | None = None,
    *,
    threads: int = 1,
) -> Floats:
    """Return ``x @ W + bias`` for a single sample, from W as csr: its values are read in order, without a permutation.

    Parameters
    ----------
    x_I : ndarray, shape (I,), float32 or float64
        The sample.
    values : ndarray, shape (nnz,), the same dtype
        The weights.
    indptr, indices : ndarray of int32, shapes (I + 1,) and (nnz,)
        The outputs of each input. They are not checked for being in range.
    outputs : int
        O, at least 0.
    bias : ndarray, shape (O,), optional
        What is added.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Returns
    -------
    ndarray, shape (O,)

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.

    Notes
    -----
    nnz multiply-adds, bounded by the reading of 8 nnz bytes. Scratch memory: up to 8 * O elements.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 1, 2, 3], np.int32), np.array([0, 1, 0], np.int32)  # 3 inputs, 2 outputs
    >>> kernels.multiply_vector(np.array([1.0, 2.0, 3.0]), np.array([10.0, 5.0, 1.0]), indptr, indices, 2)
    array([13., 10.])
    """
    check = Arguments("multiply_vector", x_I, threads)
    y = np.empty(outputs, x_I.dtype)
    x, values = check.floats("x", x_I, len(indptr) - 1), check.floats("values", values, len(indices))
    indptr, indices = check.ints("indptr", indptr, len(indptr)), check.ints("indices", indices, len(indices))
    bias_ = check.floats("bias", bias, outputs)
    operands = [address(array) for array in (x, values, indptr, indices, bias_, y)]
    launch.product_single(check.nothing, operands, x.size, outputs, len(values), threads)
    return y


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
    At most 2 nnz * B multiply-adds; nothing of size I * O is allocated. Scratch memory: B * O elements, but little more
    than 4 MiB, kept for the next call.

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
    check = Arguments("gradients", x_BI, threads)
    x, dy = check.floats("x", x_BI, batch * inputs), check.floats("dy", dy_BO, batch * outputs)
    values = check.floats("values", values, len(indices))
    indptr, indices = check.ints("indptr", indptr, inputs + 1), check.ints("indices", indices, len(indices))
    to_x = check.target("dx", dx, batch * inputs)
    to_values, to_bias = check.target("dvalues", dvalues, len(values)), check.target("dbias", dbias, outputs)
    if batch:
        operands = [address(array) for array in (dy, x, values, indptr, indices, to_x, to_values, to_bias)]
        launch.gradients(check.nothing, operands, batch, inputs, outputs, len(values), threads)
    else:
        to_values[:] = 0
        to_bias[:] = 0
