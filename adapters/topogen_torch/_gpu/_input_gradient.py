"""The gradient of a block-sparse layer's input: the forward pass over the transposed pattern.

Legend: T = tokens, I = inputs, O = outputs, K = stored blocks, b = block.
"""

from __future__ import annotations

# Launch options are no parameters of a kernel that a type checker sees.
# pyright: reportCallIssue=none
import triton
from torch import Tensor

from topogen_torch._gpu._config import Config, Precision
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._gpu._launch import admitted_config, admitted_rows, admitted_values, beside
from topogen_torch._gpu._product import block_product

__all__ = ["block_input_gradient"]

_OWNER = "block_input_gradient"


def block_input_gradient(
    grad_TO: Tensor,
    values: Tensor,
    index: BlockIndex,
    *,
    precision: Precision = "tf32",
    config: Config | None = None,
) -> Tensor:
    """Return ``grad @ W.T``, where W (in, out) has the blocks `values` at the places of `index`.

    The kernel of the forward pass: an input block's values lie side by side as they are stored, so that no permutation
    is read, and each block is turned on its way into the product.

    Parameters
    ----------
    grad_TO : Tensor, shape (tokens, out)
        As `x_TI` of `block_forward`.
    values : Tensor, shape (blocks, b, b)
    index : BlockIndex
    precision : {"tf32", "ieee"}
    config : Config, optional
        As for `block_forward`.

    Returns
    -------
    Tensor, shape (tokens, in)
        Contiguous, of the dtype of `grad_TO`.

    Raises
    ------
    SpecError
        As for `block_forward`.

    Notes
    -----
    FLOP and bytes as for `block_forward`, with 4 bytes of index a block instead of 8.
    """
    values = admitted_values(values, index, _OWNER)
    grad = admitted_rows(grad_TO, "grad_TO", _OWNER, index.n_out, values.dtype, index)
    tokens, block = grad.shape[0], index.block
    config = admitted_config(config, "input_gradient", index, grad.dtype, tokens, precision, _OWNER)
    found = grad.new_empty(tokens, index.n_in)
    if not tokens:
        return found
    rows = index.n_in // block
    with beside(grad):
        block_product[(triton.cdiv(tokens, config.tokens) * rows,)](
            grad, values, values, found,
            index.indptr, index.indices, index.indices, index.order,
            tokens, grad.stride(0), found.stride(0), rows, config.group,
            BLOCK=block, TOKENS=config.tokens, DEPTH=config.depth, TRANSPOSED=True,
            WIDE=values.numel() >= 2**31, BIAS=False, ACTIVATION="none", PRECISION=precision,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return found
