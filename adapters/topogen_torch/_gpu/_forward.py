"""The forward pass of a block-sparse layer.

Legend: T = tokens, I = inputs, O = outputs, K = stored blocks, b = block.
"""

from __future__ import annotations

# Launch options are no parameters of a kernel that a type checker sees.
# pyright: reportCallIssue=none
import triton
from torch import Tensor

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._gpu._config import ACTIVATIONS, Activation, Config, Precision
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._gpu._launch import admitted_config, admitted_rows, admitted_values, beside
from topogen_torch._gpu._product import block_product

__all__ = ["admitted_bias", "block_forward"]

_OWNER = "block_forward"


def block_forward(
    x_TI: Tensor,
    values: Tensor,
    index: BlockIndex,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    *,
    precision: Precision = "tf32",
    config: Config | None = None,
) -> Tensor:
    """Return ``activation(x @ W + bias)``, where W (in, out) has the blocks `values` at the places of `index`.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
        Leading dimensions flattened by the caller; no tokens are legal. Rows may lie any multiple of 16 bytes apart;
        what is strided otherwise is copied once.
    values : Tensor, shape (blocks, b, b)
        float32, float16 or bfloat16; ``values[k, i, j]`` joins input i to output j of block k.
    index : BlockIndex
        On the device of the values.
    bias : Tensor, shape (out,), optional
        Of the dtype of `values`.
    activation : {None, "relu", "gelu"}
        Applied to the float32 sums before they are rounded. gelu is the exact one, with erf. The gradient of relu needs
        the result alone, ``grad * (y > 0)``; that of gelu what went into it, so that training keeps the two apart.
    precision : {"tf32", "ieee"}
        Of float32 products: 10 bits of mantissa on tensor cores, or 23 without them. Sums are float32 for every dtype.
    config : Config, optional
        Tiles; those of `default_config` otherwise.

    Returns
    -------
    Tensor, shape (tokens, out)
        Contiguous, of the dtype of `x_TI`.

    Raises
    ------
    SpecError
        If the block or the dtype has no kernel, shapes, dtypes or devices disagree, or the tiles cannot be compiled.

    Notes
    -----
    ``2 T K b^2`` FLOP. At least ``e (T (I + O) + K b^2) + 8 K`` bytes of memory for elements of e bytes; through L2
    ``e T K b (1 + b / tile)``, since every block reads b inputs of each token and, for each tile of tokens, its values.
    The result does not depend on how programs are scheduled.
    """
    values = admitted_values(values, index, _OWNER)
    x = admitted_rows(x_TI, "x_TI", _OWNER, index.n_in, values.dtype, index)
    bias = admitted_bias(bias, values, index, _OWNER)
    checks.one_of(activation, "activation", _OWNER, ACTIVATIONS)
    tokens, block = x.shape[0], index.block
    config = admitted_config(config, "forward", index, x.dtype, tokens, precision, _OWNER)
    y = x.new_empty(tokens, index.n_out)
    if not tokens:
        return y
    rows = index.n_out // block
    with beside(x):
        block_product[(triton.cdiv(tokens, config.tokens) * rows,)](
            x, values, values if bias is None else bias, y,
            index.indptr_t, index.indices_t, index.permutation, index.order_t,
            tokens, x.stride(0), y.stride(0), rows, config.group,
            BLOCK=block, TOKENS=config.tokens, DEPTH=config.depth, TRANSPOSED=False,
            WIDE=values.numel() >= 2**31, BIAS=bias is not None, ACTIVATION=activation or "none", PRECISION=precision,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y


def admitted_bias(bias: Tensor | None, values: Tensor, index: BlockIndex, owner: str) -> Tensor | None:
    """Return the bias, contiguous; one of another shape, dtype or device is refused."""
    if bias is None:
        return None
    if tuple(bias.shape) != (index.n_out,):
        raise SpecError(f"The 'bias' parameter of {owner} must have shape ({index.n_out},). Got {tuple(bias.shape)}.")
    if bias.dtype != values.dtype or bias.device != values.device:
        wanted = f"{values.dtype} on {values.device} as the values are"
        checks.refuse("bias", owner, wanted, f"{bias.dtype} on {bias.device}")
    return bias.contiguous()
