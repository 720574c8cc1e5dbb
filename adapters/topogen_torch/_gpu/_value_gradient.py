"""The gradient of a block-sparse layer's values: the product of input and output gradient, at the stored blocks alone.

Legend: T = tokens, I = inputs, O = outputs, K = stored blocks, b = block.
"""

from __future__ import annotations

# A function becomes a kernel by a decorator whose types describe neither.
# pyright: reportArgumentType=none, reportCallIssue=none, reportGeneralTypeIssues=none
import torch
import triton
import triton.language as tl
from torch import Tensor

from topogen import checks
from topogen_torch._gpu._config import Config, Precision
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._gpu._launch import DTYPES, admitted_config, admitted_index, admitted_rows, beside

__all__ = ["add_parts", "admitted_pair", "block_value_gradient", "part_of_tokens", "sampled_product"]

_OWNER = "block_value_gradient"
_CHUNK = 1024  # entries that a program of `sum_of_parts` adds


@triton.jit
def part_of_tokens(part, parts, tokens, TOKENS: tl.constexpr):
    """Return where one of several parts of the tokens begins and ends: whole tiles, but for the last one."""
    each = tl.cdiv(tl.cdiv(tokens, TOKENS), parts) * TOKENS
    return part * each, tl.minimum(part * each + each, tokens)


@triton.jit(do_not_specialize=["tokens", "rows", "blocks"])  # the same code for every layer
def sampled_product(
    x,
    grad,
    found,
    pointers,
    columns,
    order,
    tokens,
    x_stride,
    grad_stride,
    rows,
    blocks,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradient of SIDE blocks of one input block, summed over one part of the tokens.

    They share the input; the gradients of their outputs, side by side, are the M dimension, so that even blocks of 16
    fill a tensor core.
    """
    row = tl.load(order + tl.program_id(0) % rows)
    first, last = tl.load(pointers + row), tl.load(pointers + row + 1)
    first += tl.program_id(0) // rows * SIDE
    if first < last:
        n, i, token = tl.arange(0, SIDE * BLOCK), tl.arange(0, BLOCK), tl.arange(0, TOKENS)
        entry = first + n // BLOCK
        here = entry < last
        column = tl.load(columns + entry, mask=here, other=0)
        part = tl.program_id(1)
        begin, end = part_of_tokens(part, tl.num_programs(1), tokens, TOKENS)
        skipped = begin.to(tl.int64)
        x_tile = x + skipped * x_stride + token[:, None] * x_stride + (row * BLOCK + i)[None, :]
        grad_tile = grad + skipped * grad_stride + token[None, :] * grad_stride + (column * BLOCK + n % BLOCK)[:, None]
        total = tl.zeros((SIDE * BLOCK, BLOCK), tl.float32)
        for start in range(begin, end, TOKENS):
            inside = token < end - start
            x_part = tl.load(x_tile, mask=inside[:, None], other=0.0)
            grad_part = tl.load(grad_tile, mask=here[:, None] & inside[None, :], other=0.0)
            total = tl.dot(grad_part, x_part, total, input_precision=PRECISION)
            x_tile += TOKENS * x_stride
            grad_tile += TOKENS * grad_stride
        place = (part.to(tl.int64) * blocks + entry) * (BLOCK * BLOCK) + n % BLOCK
        found_tile = found + place[:, None] + (i * BLOCK)[None, :]
        tl.store(found_tile, total.to(found.dtype.element_ty), mask=here[:, None])


@triton.jit(do_not_specialize=["number"])
def sum_of_parts(parts, found, size, number, CHUNK: tl.constexpr):
    """Add up a number of float32 parts, the first one first, and round once."""
    entry = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = entry < size
    total = tl.zeros((CHUNK,), tl.float32)
    for part in range(number):
        total += tl.load(parts + part * size.to(tl.int64) + entry, mask=inside, other=0.0)
    tl.store(found + entry, total.to(found.dtype.element_ty), mask=inside)


def block_value_gradient(
    x_TI: Tensor,
    grad_TO: Tensor,
    index: BlockIndex,
    *,
    precision: Precision = "tf32",
    config: Config | None = None,
) -> Tensor:
    """Return the gradient of `values`: block (I, J) of ``x.T @ grad`` for every stored block.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
        As for `block_forward`.
    grad_TO : Tensor, shape (tokens, out)
        Of the dtype of `x_TI`.
    index : BlockIndex
    precision : {"tf32", "ieee"}
    config : Config, optional
        As for `block_forward`.

    Returns
    -------
    Tensor, shape (blocks, b, b)
        In the order of `values`, of the dtype of `x_TI`; zeros if there are no tokens.

    Raises
    ------
    SpecError
        As for `block_forward`.

    Notes
    -----
    ``2 T K b^2`` FLOP. At least ``e (T (I + O) + K b^2) + 4 K`` bytes of memory; through L2 ``e T K b (1 + 1 / R)`` for
    R blocks a program. With ``split_k`` = S > 1 each part of the tokens is summed by programs of its own into a buffer
    of ``4 S K b^2`` bytes, and the parts are added in their order: no atomics, the same bits in every run.
    """
    x, grad = admitted_pair(x_TI, grad_TO, index, _OWNER)
    tokens, block = x.shape[0], index.block
    config = admitted_config(config, "value_gradient", index, x.dtype, tokens, precision, _OWNER)
    if not tokens or not index.blocks:
        return x.new_zeros(index.blocks, block, block)
    found = x.new_empty(index.blocks, block, block)
    rows, split = index.n_in // block, config.split_k
    parts = found if split == 1 else found.new_empty((split, *found.shape), dtype=torch.float32)
    with beside(x):
        sampled_product[(rows * triton.cdiv(index.most, config.blocks), split)](
            x, grad, parts, index.indptr, index.indices, index.order,
            tokens, x.stride(0), grad.stride(0), rows, index.blocks,
            BLOCK=block, SIDE=config.blocks, TOKENS=config.tokens, PRECISION=precision,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return found if split == 1 else add_parts(parts, found)


def admitted_pair(x_TI: Tensor, grad_TO: Tensor, index: BlockIndex, owner: str) -> tuple[Tensor, Tensor]:
    """Return input and gradient of the output; refuse what has no kernel and what does not belong together."""
    admitted_index(index, owner)
    if x_TI.dtype not in DTYPES:
        checks.refuse("x_TI", owner, "float32, float16 or bfloat16", x_TI.dtype)
    x = admitted_rows(x_TI, "x_TI", owner, index.n_in, x_TI.dtype, index)
    grad = admitted_rows(grad_TO, "grad_TO", owner, index.n_out, x.dtype, index)
    if grad.shape[0] != x.shape[0]:
        checks.refuse("grad_TO", owner, f"of {x.shape[0]} tokens as x_TI is", grad.shape[0])
    return x, grad


def add_parts(parts: Tensor, found: Tensor) -> Tensor:
    """Write the sum of ``parts[0], parts[1], ...``, float32, into `found` and return it. ``4 S + e`` bytes an entry."""
    size = found.numel()
    with beside(found):
        sum_of_parts[(triton.cdiv(size, _CHUNK),)](parts, found, size, parts.shape[0], CHUNK=_CHUNK)
    return found
