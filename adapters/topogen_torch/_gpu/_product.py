"""The kernel of a block-sparse product: tokens as the M dimension, one output block a program.

Legend: b = block, T = tokens, K = stored blocks.
"""

from __future__ import annotations

# A function becomes a kernel by a decorator whose types describe neither.
# pyright: reportArgumentType=none, reportCallIssue=none, reportGeneralTypeIssues=none
import triton
import triton.language as tl

__all__ = ["activated", "block_product", "side_by_side"]


@triton.jit
def side_by_side(program, tiles, rows, group):
    """Return the token tile and the row of a program: `group` token tiles run over all rows before the next ones do.

    Programs that run at the same time then share both the activations of their tiles and the values of their rows.
    """
    first = program // (group * rows) * group
    beside = tl.minimum(tiles - first, group)
    within = program % (group * rows)
    return first + within % beside, within // beside


@triton.jit
def activated(total, ACTIVATION: tl.constexpr):
    """Apply the activation to float32 sums."""
    if ACTIVATION == "relu":
        total = tl.where(total < 0, 0.0, total)  # of NaN NaN, as torch has it
    elif ACTIVATION == "gelu":
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    return total


@triton.jit(do_not_specialize=["tokens", "rows", "group"])  # the same code for every layer
def block_product(
    x,
    values,
    bias,
    y,
    pointers,
    columns,
    places,
    order,
    tokens,
    x_stride,
    y_stride,
    rows,
    group,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one tile of ``y = activation(x @ W + bias)``, or with TRANSPOSED of ``y = x @ W.T``.

    A row is a block of outputs of this product. Its entries, ``pointers[row] : pointers[row + 1]``, name in `columns`
    the block of x that each reads, and in `places` where its values stand; TRANSPOSED reads them in their own order and
    turns each block. WIDE: the values need int64 offsets.
    """
    tile, place_in_order = side_by_side(tl.program_id(0), tl.cdiv(tokens, TOKENS), rows, group)
    row = tl.load(order + place_in_order)
    first, last = tl.load(pointers + row), tl.load(pointers + row + 1)
    start = tile * TOKENS
    token, k, j = tl.arange(0, TOKENS), tl.arange(0, DEPTH), tl.arange(0, BLOCK)
    inside = token[:, None] < tokens - start
    x_tile = x + start.to(tl.int64) * x_stride + token[:, None] * x_stride
    total = tl.zeros((TOKENS, BLOCK), tl.float32)
    if DEPTH > BLOCK:
        MERGED: tl.constexpr = DEPTH // BLOCK
        if TRANSPOSED:
            w_tile = values + (k % BLOCK)[:, None] + j[None, :] * BLOCK
        else:
            w_tile = values + (k % BLOCK)[:, None] * BLOCK + j[None, :]
        for entry in range(first, last, MERGED):
            entries = entry + k // BLOCK
            here = entries < last
            column = tl.load(columns + entries, mask=here, other=0)
            place = entries if TRANSPOSED else tl.load(places + entries, mask=here, other=0)
            if WIDE:
                place = place.to(tl.int64)
            x_part = tl.load(x_tile + (column * BLOCK + k % BLOCK)[None, :], mask=inside & here[None, :], other=0.0)
            w_part = tl.load(w_tile + (place * (BLOCK * BLOCK))[:, None], mask=here[:, None], other=0.0)
            total = tl.dot(x_part, w_part, total, input_precision=PRECISION)
    else:
        PARTS: tl.constexpr = BLOCK // DEPTH
        if TRANSPOSED:
            w_tile = values + k[:, None] + j[None, :] * BLOCK
            W_STEP: tl.constexpr = DEPTH
        else:
            w_tile = values + k[:, None] * BLOCK + j[None, :]
            W_STEP: tl.constexpr = DEPTH * BLOCK
        for step in range(first * PARTS, last * PARTS):
            entry, part = step // PARTS, step % PARTS
            column = tl.load(columns + entry)
            place = entry if TRANSPOSED else tl.load(places + entry)
            x_part = tl.load(x_tile + (column * BLOCK + part * DEPTH + k)[None, :], mask=inside, other=0.0)
            w_part = tl.load(w_tile + (tl.cast(place, tl.int64) * (BLOCK * BLOCK) + part * W_STEP))
            total = tl.dot(x_part, w_part, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + row * BLOCK + j).to(tl.float32)[None, :]
    total = activated(total, ACTIVATION)
    y_tile = y + start.to(tl.int64) * y_stride + token[:, None] * y_stride + (row * BLOCK + j)[None, :]
    tl.store(y_tile, total.to(y.dtype.element_ty), mask=inside)
