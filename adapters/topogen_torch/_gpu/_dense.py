"""The three passes through a dense matrix: what is fastest above the break-even density, on any device and dtype.

Legend: T = tokens, I = inputs, O = outputs, K = stored blocks, b = block; b = 1 for an unstructured layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topogen_torch._gpu._config import Activation
from topogen_torch._gpu._index import BlockIndex

__all__ = ["applied", "dense_forward", "dense_input_gradient", "dense_value_gradient", "to_matrix"]


def dense_forward(
    x_TI: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """Return ``activation(x @ W + bias)``, W (in, out) built from `values` and dropped afterwards.

    ``2 T I O`` FLOP, ``e I O`` bytes for W, written and read once, beside the activations. float32 products are exact
    or tf32 as ``torch.backends.cuda.matmul`` has it.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
    values : Tensor, shape (blocks, b, b), or (connections,) for b = 1
    index : BlockIndex
    bias : Tensor, shape (out,), optional
    activation : {None, "relu", "gelu"}
    """
    matrix = to_matrix(values, index)
    return applied(x_TI @ matrix if bias is None else torch.addmm(bias, x_TI, matrix), activation)


def dense_input_gradient(grad_TO: Tensor, values: Tensor, index: BlockIndex) -> Tensor:
    """Return ``grad @ W.T``, (tokens, in); cost as for `dense_forward`.

    Parameters
    ----------
    grad_TO : Tensor, shape (tokens, out)
    values, index
        As for `dense_forward`.
    """
    return grad_TO @ to_matrix(values, index).t()


def dense_value_gradient(x_TI: Tensor, grad_TO: Tensor, index: BlockIndex) -> Tensor:
    """Return the entries of ``x.T @ grad`` where there are connections, in the shape of the values.

    The whole product is computed and most of it dropped: cost as for `dense_forward`.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
    grad_TO : Tensor, shape (tokens, out)
    index : BlockIndex
    """
    block, rows, columns = index.block, index.n_in // index.block, index.n_out // index.block
    blocks = (x_TI.t() @ grad_TO).view(rows, block, columns, block)
    found = blocks[_rows(index), :, index.indices.long()]
    return found if block > 1 else found.view(-1)


def to_matrix(values: Tensor, index: BlockIndex) -> Tensor:
    """Return W, (in, out), with zeros where there is no connection.

    Parameters
    ----------
    values, index
        As for `dense_forward`.
    """
    block, rows, columns = index.block, index.n_in // index.block, index.n_out // index.block
    matrix = values.new_zeros(rows, block, columns, block)
    matrix[_rows(index), :, index.indices.long()] = values.view(-1, block, block)
    return matrix.view(index.n_in, index.n_out)


def applied(sums: Tensor, activation: Activation | None) -> Tensor:
    """Return the activation of a tensor: what the kernels apply to their sums.

    Parameters
    ----------
    sums : Tensor
    activation : {None, "relu", "gelu"}
    """
    if activation is None:
        return sums
    return torch.relu(sums) if activation == "relu" else torch.nn.functional.gelu(sums)


def _rows(index: BlockIndex) -> Tensor:
    """Return the input block of each stored block; no wait for the device."""
    rows = torch.arange(index.indptr.numel() - 1, device=index.device)
    return torch.repeat_interleave(rows, index.indptr.diff(), output_size=index.blocks)
