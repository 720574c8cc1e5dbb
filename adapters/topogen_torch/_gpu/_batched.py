r"""The three passes of the last radix of a system: residue classes that are dense within, as a batch of matrices.

With :math:`r \nu = n` every node is joined to all nodes of its residue class, so that the layer is block-diagonal once
its features are sorted by class: :math:`\nu` dense matrices of r b inputs and outputs, for which `torch.bmm` calls the
vendor's own kernels. Sorting costs two copies of the activations. On any device, in any dtype.

Legend: a = residue class, t = place in it, T = tokens, I = inputs, O = outputs, K = stored blocks, b = block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topogen import checks
from topogen_torch._gpu._config import Activation
from topogen_torch._gpu._dense import applied
from topogen_torch._gpu._index import BlockIndex, Circulant

__all__ = ["BATCHED_FROM", "batched_forward", "batched_input_gradient", "batched_value_gradient"]

# Features of a class from which sorting is expected to pay. A product takes 2 r b FLOP a feature; `circulant_forward`
# at 60 % of the rate of `torch.bmm` loses (1 / 0.6 - 1) of that time, and two copies move 4 e bytes: on an H200 with
# 790 TFLOP/s and 4.3 TB/s in bfloat16 the two are equal at r b = 1100. Arithmetic; not measured.
BATCHED_FROM = 1024


def batched_forward(
    x_TI: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """Return ``activation(x @ W + bias)`` of a circulant layer that is block-diagonal.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
    values : Tensor, shape (blocks, b, b)
    index : BlockIndex
        Whose ``circulant.is_block_diagonal``.
    bias : Tensor, shape (out,), optional
    activation : {None, "relu", "gelu"}

    Returns
    -------
    Tensor, shape (tokens, out)
        Contiguous.

    Raises
    ------
    SpecError
        If the index is not that of a block-diagonal circulant layer.

    Notes
    -----
    ``2 T K b^2`` FLOP; ``e (3 T (I + O) + 3 K b^2)`` bytes of memory, of which two thirds sort by class. float32 is
    exact or tf32 as ``torch.backends.cuda.matmul`` has it.
    """
    circulant = _block_diagonal(index, "batched_forward")
    sums = _by_feature(torch.bmm(_by_class(x_TI, circulant), _matrices(values, circulant)), circulant)
    return applied(sums if bias is None else sums + bias, activation)


def batched_input_gradient(grad_TO: Tensor, values: Tensor, index: BlockIndex) -> Tensor:
    """Return ``grad @ W.T``, (tokens, in); see `batched_forward`.

    Parameters
    ----------
    grad_TO : Tensor, shape (tokens, out)
    values, index
        As for `batched_forward`.
    """
    circulant = _block_diagonal(index, "batched_input_gradient")
    matrices = _matrices(values, circulant).transpose(1, 2)
    return _by_feature(torch.bmm(_by_class(grad_TO, circulant), matrices), circulant)


def batched_value_gradient(x_TI: Tensor, grad_TO: Tensor, index: BlockIndex) -> Tensor:
    """Return the gradient of the values, (blocks, b, b); see `batched_forward`.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
    grad_TO : Tensor, shape (tokens, out)
    index : BlockIndex
        As for `batched_forward`.
    """
    circulant = _block_diagonal(index, "batched_value_gradient")
    found = torch.bmm(_by_class(x_TI, circulant).transpose(1, 2), _by_class(grad_TO, circulant))
    shape = (circulant.place, circulant.ring, index.block, circulant.ring, index.block)  # a, t in, i, t out, j
    return found.view(shape).permute(1, 0, 3, 2, 4).reshape(index.blocks, index.block, index.block)


def _by_class(rows: Tensor, circulant: Circulant) -> Tensor:
    """Return (tokens, features) as (classes, tokens, features of a class): a copy unless there is one class."""
    return rows.unflatten(1, (circulant.ring, circulant.place, -1)).permute(2, 0, 1, 3).flatten(2)


def _by_feature(rows: Tensor, circulant: Circulant) -> Tensor:
    return rows.unflatten(2, (circulant.ring, -1)).permute(1, 2, 0, 3).flatten(1)


def _matrices(values: Tensor, circulant: Circulant) -> Tensor:
    """Return (classes, features of a class, features of a class), a copy; blocks stand by (t in, a, t out)."""
    return values.unflatten(0, (circulant.ring, circulant.place, -1)).permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)


def _block_diagonal(index: BlockIndex, owner: str) -> Circulant:
    if index.circulant is None or not index.circulant.is_block_diagonal:
        found = index.circulant or f"{index.blocks} blocks of another pattern"
        checks.refuse("index", owner, "of a RadiX layer whose radix times place value is N'", found)
    return index.circulant
