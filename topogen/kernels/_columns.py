"""Products of a sparse matrix with feature-major data: neurons are rows, samples lie side by side.

Legend: G = groups, I = inputs, O = outputs, S = samples; `x_GIS` has shape (G, I, S).

What convolutions hold anyway (images, channels, pixels), and what a stack of sparse layers can pass on: nothing is
packed or transposed, since the samples of a neuron already lie as vector instructions want them. The samples of a group
are walked in tiles, as many at a time as the second-level cache holds, while the rows of the matrix pass over them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels import launch
from topogen.kernels._arguments import Arguments, address
from topogen.kernels._tiled import Floats, Ints

__all__ = ["gradients_columns", "multiply_columns"]


def multiply_columns(
    x_GIS: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    permutation: Ints | None = None,
    bias: Floats | None = None,
    *,
    out: Floats | None = None,
    batch: int | None = None,
    threads: int = 1,
) -> Floats:
    """Return ``y[g, o, s] = bias[o] + sum_k w[k] * x[g, indices[k], s]`` over k in [indptr[o], indptr[o + 1]).

    Parameters
    ----------
    x_GIS : ndarray, shape (G, I, S), float32 or float64
        Feature-major data; G, I and S may be 0.
    values : ndarray, shape (nnz,), the same dtype
        The weights.
    indptr, indices : ndarray of int32, shapes (O + 1,) and (nnz,)
        The inputs of each output: a compressed matrix whose rows are outputs. They are not checked for being in range.
    permutation : ndarray of int32, shape (nnz,), optional
        Connection k has the weight ``w[k] = values[permutation[k]]``; without it ``w = values``.
    bias : ndarray, shape (O,), optional
        What each sum starts from.
    out : ndarray, shape (G, O, S), optional
        Where to write the result.
    batch : int, optional
        How many samples of all groups exist, where the last group ends in padding: more than (G - 1) * S and at most
        G * S, the default. Padding is not read, and 0 in the result.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Returns
    -------
    ndarray, shape (G, O, S)
        `out`, or a new array.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together, or `batch` does not end in the last group.

    Notes
    -----
    nnz * G * S multiply-adds. Scratch memory: nnz elements where there is a permutation. S need be no multiple of
    anything, but a row of 16 float32 samples costs as much as a row of 1.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 2, 3], np.int32), np.array([0, 2, 1], np.int32)  # 3 inputs, 2 outputs
    >>> x = np.array([[[1.0], [2.0], [3.0]]])
    >>> kernels.multiply_columns(x, np.array([10.0, 1.0, 5.0]), indptr, indices).tolist()
    [[[13.0], [10.0]]]
    """
    check = Arguments("multiply_columns", x_GIS, threads)
    groups, inputs, samples = _shape("x", "multiply_columns", x_GIS)
    outputs = len(indptr) - 1
    if out is None:
        out = np.empty((groups, outputs, samples), x_GIS.dtype)
    x = check.floats("x", x_GIS, x_GIS.size)
    values, bias_ = check.floats("values", values, len(indices)), check.floats("bias", bias, outputs)
    indptr, indices = check.ints("indptr", indptr, outputs + 1), check.ints("indices", indices, len(indices))
    places = check.ints("permutation", permutation, len(values))
    y = check.target("out", out, groups * outputs * samples)
    last = _last("multiply_columns", groups, samples, batch)
    if last:
        operands = [address(array) for array in (x, values, places, indptr, indices, bias_, y)]
        sizes = (groups, samples, last, inputs, outputs, len(values))
        launch.product_columns(check.nothing, operands, *sizes, threads)
    return out


def gradients_columns(
    dy_GOS: Floats,
    x_GIS: Floats,
    values: Floats,
    indptr: Ints,
    indices: Ints,
    *,
    dx: Floats | None = None,
    dvalues: Floats | None = None,
    dbias: Floats | None = None,
    batch: int | None = None,
    threads: int = 1,
) -> None:
    """Fill the gradients of `multiply_columns` that are given an array, in one pass over the connections.

    ``dx[g, i, s] = sum_k values[k] * dy[g, indices[k], s]`` and
    ``dvalues[k] = sum_gs x[g, i, s] * dy[g, indices[k], s]`` for k in [indptr[i], indptr[i + 1]), and
    ``dbias[o] = sum_gs dy[g, o, s]``.

    Parameters
    ----------
    dy_GOS : ndarray, shape (G, O, S), float32 or float64
        Gradient of the output.
    x_GIS : ndarray, shape (G, I, S), the same dtype
        The data of the forward pass.
    values : ndarray, shape (nnz,)
        The weights.
    indptr, indices : ndarray of int32, shapes (I + 1,) and (nnz,)
        W as csr: the outputs of each input. They are not checked for being in range.
    dx, dvalues, dbias : ndarray, shapes (G, I, S), (nnz,) and (O,), optional
        Where to write; what is None is not computed.
    batch : int, optional
        As for `multiply_columns`. Padding adds nothing to a gradient, whatever stands there, and is 0 in `dx`.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together, or `batch` does not end in the last group.

    Notes
    -----
    At most 2 nnz * G * S multiply-adds; nothing of size I * O is allocated.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 1, 2, 3], np.int32), np.array([0, 1, 0], np.int32)  # 3 inputs, 2 outputs
    >>> x, dy = np.array([[[1.0], [2.0], [3.0]]]), np.array([[[1.0], [100.0]]])
    >>> dx, dvalues = np.empty((1, 3, 1)), np.empty(3)
    >>> kernels.gradients_columns(dy, x, np.array([10.0, 5.0, 1.0]), indptr, indices, dx=dx, dvalues=dvalues)
    >>> dx.ravel().tolist(), dvalues.tolist()
    ([10.0, 500.0, 1.0], [1.0, 200.0, 3.0])
    """
    check = Arguments("gradients_columns", x_GIS, threads)
    groups, inputs, samples = _shape("x", "gradients_columns", x_GIS)
    outputs = _shape("dy", "gradients_columns", dy_GOS)[1]
    x, dy = check.floats("x", x_GIS, x_GIS.size), check.floats("dy", dy_GOS, groups * outputs * samples)
    values = check.floats("values", values, len(indices))
    indptr, indices = check.ints("indptr", indptr, inputs + 1), check.ints("indices", indices, len(indices))
    to_x = check.target("dx", dx, x.size)
    to_values, to_bias = check.target("dvalues", dvalues, len(values)), check.target("dbias", dbias, outputs)
    last = _last("gradients_columns", groups, samples, batch)
    if last:
        operands = [address(array) for array in (dy, x, values, indptr, indices, to_x, to_values, to_bias)]
        sizes = (groups, samples, last, inputs, outputs, len(values))
        launch.gradients_columns(check.nothing, operands, *sizes, threads)
    else:
        to_values[:] = 0
        to_bias[:] = 0


def _shape(name: str, owner: str, array: NDArray[Any]) -> tuple[int, int, int]:
    if array.ndim != 3:
        raise SpecError(
            f"The '{name}' parameter of {owner} must have 3 axes: groups, neurons, samples. Got shape {array.shape}."
        )
    groups, neurons, samples = array.shape
    return groups, neurons, samples


def _last(owner: str, groups: int, samples: int, batch: int | None) -> int:
    """Return how many samples of the last group exist; none if there is no sample at all."""
    if batch is None or batch == groups * samples:
        return samples if groups else 0
    last = batch - (groups - 1) * samples
    if not 0 < last < samples:
        raise SpecError(
            f"The 'batch' parameter of {owner} must end in the last of {groups} groups of {samples} samples, in "
            f"[{max(0, groups - 1) * samples + 1}, {groups * samples}]. Got {batch}."
        )
    return last
