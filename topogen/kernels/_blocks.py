"""Products of a batch with a matrix of small dense blocks, and their gradients.

Legend: B = batch, I = inputs, O = outputs; `x_BI` has shape (B, I). b = block, K = blocks; `values_Kbb[k, i, j]` joins
input i to output j of block k.

How it works. Every number of a block meets the same inputs and outputs as its neighbours, so that one loaded vector
serves several multiply-adds, and the arithmetic, not the memory, sets the pace. Blocks that are a multiple of a vector
wide (16 of float32, 8 of float64) keep neighbouring neurons in a vector; then both gradients come without a sum across
a vector, and a batch of one sample is as well off as any. Other blocks keep neighbouring samples in a vector. Weights
are read where they are: the forward pass finds its blocks through a permutation, and the backward pass turns one block
at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels import block_launch
from topogen.kernels._arguments import Arguments, address
from topogen.kernels._tiled import Floats, Ints

__all__ = ["gradients_blocks", "multiply_blocks"]


def multiply_blocks(
    x_BI: Floats,
    values_Kbb: Floats,
    indptr: Ints,
    indices: Ints,
    permutation: Ints | None = None,
    bias: Floats | None = None,
    *,
    out: Floats | None = None,
    threads: int = 1,
) -> Floats:
    """Return ``y[:, J] = bias[J] + sum_k x[:, I_k] @ w_k`` over k in [indptr[c], indptr[c + 1]).

    J are the b outputs from ``b * c`` on, and I_k the b inputs from ``b * indices[k]`` on.

    Parameters
    ----------
    x_BI : ndarray, shape (B, I), float32 or float64
        The batch; B may be 0.
    values_Kbb : ndarray, shape (K, b, b), the same dtype
        The blocks, rows = inputs. Any b >= 1; powers of two from 4 on are fast.
    indptr, indices : ndarray of int32, shapes (O / b + 1,) and (K,)
        The blocks of inputs of each block of outputs: a compressed matrix whose rows are outputs. They are not checked
        for being in range.
    permutation : ndarray of int32, shape (K,), optional
        Block k is ``w_k = values[permutation[k]]``; without it ``w_k = values[k]``.
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
    K * b^2 * B multiply-adds. Scratch memory: B * I elements, kept for the next call.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 1], np.int32), np.array([1], np.int32)  # inputs 2 and 3 to outputs 0 and 1
    >>> values = np.array([[[1.0, 10.0], [100.0, 1000.0]]])
    >>> kernels.multiply_blocks(np.array([[5.0, 6.0, 2.0, 3.0]]), values, indptr, indices)
    array([[ 302., 3020.]])
    """
    check = Arguments("multiply_blocks", x_BI, threads)
    block = _block(check.owner, values_Kbb)
    batch, inputs, outputs = len(x_BI), x_BI.shape[1], (len(indptr) - 1) * block
    _check_multiple("x", check.owner, inputs, block)
    if out is None:
        out = np.empty((batch, outputs), x_BI.dtype)
    x, values = check.floats("x", x_BI, x_BI.size), check.floats("values", values_Kbb, len(indices) * block**2)
    indptr, indices = check.ints("indptr", indptr, len(indptr)), check.ints("indices", indices, len(indices))
    places, bias_ = check.ints("permutation", permutation, len(indices)), check.floats("bias", bias, outputs)
    y = check.target("out", out, batch * outputs)
    if batch:
        block_launch.product(
            check.nothing, address(x), address(values), address(places), address(indptr), address(indices),
            address(bias_), address(y),
            batch, inputs, outputs, len(indices), block, threads,
        )  # fmt: skip
    return out


def gradients_blocks(
    dy_BO: Floats,
    x_BI: Floats,
    values_Kbb: Floats,
    indptr: Ints,
    indices: Ints,
    *,
    dx: Floats | None = None,
    dvalues: Floats | None = None,
    dbias: Floats | None = None,
    threads: int = 1,
) -> None:
    """Fill the gradients of ``y = x @ W + bias`` that are given an array, in one pass over the blocks.

    ``dx[:, I] = sum_k dy[:, J_k] @ values[k].T``, ``dvalues[k] = x[:, I].T @ dy[:, J_k]`` for k in
    [indptr[r], indptr[r + 1]), and ``dbias[o] = sum_b dy[b, o]``; I are the b inputs from ``b * r`` on, and J_k the b
    outputs from ``b * indices[k]`` on.

    Parameters
    ----------
    dy_BO : ndarray, shape (B, O), float32 or float64
        Gradient of the output.
    x_BI : ndarray, shape (B, I), the same dtype
        The batch of the forward pass.
    values_Kbb : ndarray, shape (K, b, b)
        The blocks, rows = inputs.
    indptr, indices : ndarray of int32, shapes (I / b + 1,) and (K,)
        The pattern of blocks as csr: the blocks of outputs of each block of inputs. They are not checked for being in
        range.
    dx, dvalues, dbias : ndarray, shapes (B, I), (K, b, b) and (O,), optional
        Where to write; what is None is not computed.
    threads : int
        How many threads may take part, at least 1. The result does not depend on it, bit for bit.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together.

    Notes
    -----
    At most 2 K * b^2 * B multiply-adds; nothing of size I * O is allocated. Scratch memory: B * O elements, kept for
    the next call.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.array([0, 0, 1], np.int32), np.array([0], np.int32)  # inputs 2 and 3 to outputs 0 and 1
    >>> values = np.array([[[1.0, 10.0], [100.0, 1000.0]]])
    >>> x, dy = np.array([[5.0, 6.0, 2.0, 3.0]]), np.array([[1.0, 2.0]])
    >>> dx, dvalues = np.empty((1, 4)), np.empty((1, 2, 2))
    >>> kernels.gradients_blocks(dy, x, values, indptr, indices, dx=dx, dvalues=dvalues)
    >>> dx.tolist(), dvalues.tolist()
    ([[0.0, 0.0, 21.0, 2100.0]], [[[2.0, 4.0], [3.0, 6.0]]])
    """
    check = Arguments("gradients_blocks", x_BI, threads)
    block = _block(check.owner, values_Kbb)
    batch, rows, outputs = len(x_BI), len(indptr) - 1, dy_BO.shape[1]
    _check_multiple("dy", check.owner, outputs, block)
    x, dy = check.floats("x", x_BI, batch * rows * block), check.floats("dy", dy_BO, batch * outputs)
    values = check.floats("values", values_Kbb, len(indices) * block**2)
    indptr, indices = check.ints("indptr", indptr, rows + 1), check.ints("indices", indices, len(indices))
    to_x, to_values = check.target("dx", dx, x.size), check.target("dvalues", dvalues, len(values))
    to_bias = check.target("dbias", dbias, outputs)
    if batch == 0:
        to_values[:] = 0
        to_bias[:] = 0
    else:
        block_launch.gradients(
            check.nothing, address(dy), address(x), address(values), address(indptr), address(indices),
            address(to_x), address(to_values), address(to_bias),
            batch, rows * block, outputs, len(indices), block, threads,
        )  # fmt: skip


def _block(owner: str, values: NDArray[Any]) -> int:
    if values.ndim != 3 or values.shape[1] != values.shape[2] or values.shape[1] == 0:
        wanted = "shape (blocks, b, b), b >= 1"
        raise SpecError(f"The 'values' parameter of {owner} must have {wanted}. Got {values.shape}.")
    return values.shape[1]


def _check_multiple(name: str, owner: str, features: int, block: int) -> None:
    if features % block:
        raise SpecError(f"The '{name}' parameter of {owner} must have a multiple of {block} columns. Got {features}.")
