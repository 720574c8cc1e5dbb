r"""The three passes of a RadiX layer of dense blocks, without an index.

Node I of n is joined to :math:`(I + s j \nu) \bmod n` for j < r. The nodes of a residue class modulo :math:`\nu` form a
ring, on which every node is joined to r neighbours in a row: :math:`t` to :math:`t + s j`. So outputs side by side on a
ring share nearly all of their inputs, and a tile of g of them reads g + r - 1 input blocks, once, for g r products of
blocks: a dense tile of which r / (g + r - 1) is not zero.

Legend: b = block, t = place on the ring, T = tokens, I = inputs, O = outputs, K = stored blocks.
"""

from __future__ import annotations

# A function becomes a kernel by a decorator whose types describe neither.
# pyright: reportArgumentType=none, reportCallIssue=none, reportGeneralTypeIssues=none
import torch
import triton
import triton.language as tl
from torch import Tensor

from topogen import checks
from topogen_torch._gpu._config import ACTIVATIONS, Activation, Config, Pass, Precision
from topogen_torch._gpu._forward import admitted_bias
from topogen_torch._gpu._index import BlockIndex, Circulant
from topogen_torch._gpu._launch import admitted_config, admitted_rows, admitted_values, beside
from topogen_torch._gpu._product import activated, side_by_side
from topogen_torch._gpu._value_gradient import add_parts, admitted_pair, part_of_tokens

__all__ = ["circulant_forward", "circulant_input_gradient", "circulant_value_gradient"]


@triton.jit
def stored_place(t_in, j, radix, ring, SHIFT: tl.constexpr):
    """Return where, among the r blocks of an input node at `t_in`, stands the one that leads j steps on.

    They stand by rising output. The last steps wrap around the ring: the first `unwrapped` ones do not.
    """
    if SHIFT == 1:
        unwrapped = tl.minimum(radix, ring - t_in)
        place = j - unwrapped
    else:
        unwrapped = tl.minimum(radix, t_in + 1)
        place = unwrapped - 1 - j
    return tl.where(place < 0, place + radix, place)


@triton.jit(do_not_specialize=["tokens", "radix", "place", "ring", "group"])  # the same code for every layer
def circulant_product(
    x,
    values,
    bias,
    y,
    tokens,
    x_stride,
    y_stride,
    radix,
    place,
    ring,
    group,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    SHIFT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one tile of ``y = activation(x @ W + bias)``, or with TRANSPOSED of ``y = x @ W.T``.

    The tile belongs to SIDE neighbours on one ring. `t` is their place, `t_x` that of what they read.
    """
    UP: tl.constexpr = (SHIFT == 1) == TRANSPOSED  # y at t reads x at t + j, otherwise at t - j
    tile, row = side_by_side(tl.program_id(0), tl.cdiv(tokens, TOKENS), place * tl.cdiv(ring, SIDE), group)
    residue, first = row % place, row // place * SIDE
    n, k, token = tl.arange(0, SIDE * BLOCK), tl.arange(0, DEPTH), tl.arange(0, TOKENS)
    t = first + n // BLOCK
    node = residue + place * t
    start = tile * TOKENS
    inside = token[:, None] < tokens - start
    x_tile = x + start.to(tl.int64) * x_stride + token[:, None] * x_stride
    total = tl.zeros((TOKENS, SIDE * BLOCK), tl.float32)
    reach = tl.minimum(SIDE + radix - 1, ring)
    lowest = first if UP else (first - (radix - 1) + ring) % ring
    for step in range(tl.cdiv(reach * BLOCK, DEPTH)):
        if DEPTH > BLOCK:
            q = step * (DEPTH // BLOCK) + k // BLOCK
            inner = k % BLOCK
        else:
            q = tl.zeros((DEPTH,), tl.int32) + step // (BLOCK // DEPTH)
            inner = step % (BLOCK // DEPTH) * DEPTH + k
        t_x = lowest + q  # less than twice around, where anything is read
        t_x = tl.where(t_x < ring, t_x, t_x - ring)
        node_x = residue + place * t_x
        x_part = tl.load(x_tile + (node_x * BLOCK + inner)[None, :], mask=inside & (q < reach)[None, :], other=0.0)
        j = t_x[:, None] - t[None, :] if UP else t[None, :] - t_x[:, None]
        j = tl.where(j < 0, j + ring, j)
        if TRANSPOSED:
            stored = (node * radix)[None, :] + stored_place(t[None, :], j, radix, ring, SHIFT)
            within = (n % BLOCK * BLOCK)[None, :] + inner[:, None]
        else:
            stored = (node_x * radix)[:, None] + stored_place(t_x[:, None], j, radix, ring, SHIFT)
            within = (inner * BLOCK)[:, None] + (n % BLOCK)[None, :]
        if WIDE:
            stored = stored.to(tl.int64)
        joined = (j < radix) & (q < reach)[:, None] & (t < ring)[None, :]
        w_part = tl.load(values + stored * (BLOCK * BLOCK) + within, mask=joined, other=0.0)
        total = tl.dot(x_part, w_part, total, input_precision=PRECISION)
    feature, exists = node * BLOCK + n % BLOCK, t < ring
    if BIAS:
        total += tl.load(bias + feature, mask=exists, other=0.0).to(tl.float32)[None, :]
    total = activated(total, ACTIVATION)
    y_tile = y + start.to(tl.int64) * y_stride + token[:, None] * y_stride + feature[None, :]
    tl.store(y_tile, total.to(y.dtype.element_ty), mask=inside & exists[None, :])


@triton.jit(do_not_specialize=["tokens", "radix", "place", "ring", "blocks"])
def circulant_sampled_product(
    x,
    grad,
    found,
    tokens,
    x_stride,
    grad_stride,
    radix,
    place,
    ring,
    blocks,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    SHIFT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradients of the blocks that join SIDE neighbours on a ring to SIDE of those that they lead to."""
    row, band = tl.program_id(0) % (place * tl.cdiv(ring, SIDE)), tl.program_id(0) // (place * tl.cdiv(ring, SIDE))
    residue, first = row % place, row // place * SIDE
    n, token = tl.arange(0, SIDE * BLOCK), tl.arange(0, TOKENS)
    t_in = first + n // BLOCK
    q = band * SIDE + n // BLOCK
    reach = tl.minimum(SIDE + radix - 1, ring)
    lowest = first if SHIFT == 1 else first - (radix - 1) + ring
    t_out = (lowest + q) % ring
    node = residue + place * t_in
    part = tl.program_id(1)
    begin, end = part_of_tokens(part, tl.num_programs(1), tokens, TOKENS)
    skipped = begin.to(tl.int64)
    feature_in, feature_out = node * BLOCK + n % BLOCK, (residue + place * t_out) * BLOCK + n % BLOCK
    x_tile = x + skipped * x_stride + token[:, None] * x_stride + feature_in[None, :]
    grad_tile = grad + skipped * grad_stride + token[None, :] * grad_stride + feature_out[:, None]
    total = tl.zeros((SIDE * BLOCK, SIDE * BLOCK), tl.float32)
    for start in range(begin, end, TOKENS):
        inside = token < end - start
        x_part = tl.load(x_tile, mask=inside[:, None] & (t_in < ring)[None, :], other=0.0)
        grad_part = tl.load(grad_tile, mask=(q < reach)[:, None] & inside[None, :], other=0.0)
        total = tl.dot(grad_part, x_part, total, input_precision=PRECISION)
        x_tile += TOKENS * x_stride
        grad_tile += TOKENS * grad_stride
    j = t_out[:, None] - t_in[None, :] if SHIFT == 1 else t_in[None, :] - t_out[:, None]
    j = tl.where(j < 0, j + ring, j)
    joined = (j < radix) & (q < reach)[:, None] & (t_in < ring)[None, :]
    stored = (node * radix)[None, :] + stored_place(t_in[None, :], j, radix, ring, SHIFT)
    stored = part.to(tl.int64) * blocks + stored
    found_tile = found + stored * (BLOCK * BLOCK) + (n % BLOCK)[:, None] + (n % BLOCK * BLOCK)[None, :]
    tl.store(found_tile, total.to(found.dtype.element_ty), mask=joined)


def circulant_forward(
    x_TI: Tensor,
    values: Tensor,
    index: BlockIndex,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    *,
    precision: Precision = "tf32",
    config: Config | None = None,
) -> Tensor:
    """Return what `block_forward` does, for an index whose `circulant` is not None.

    Parameters
    ----------
    x_TI, values, index, bias, activation, precision
        As for `block_forward`.
    config : Config, optional
        ``blocks`` is g, the outputs side by side of one program.

    Returns
    -------
    Tensor, shape (tokens, out)

    Raises
    ------
    SpecError
        As for `block_forward`, and if the index is no circulant one.

    Notes
    -----
    ``2 T K b^2`` FLOP of use out of ``2 T K b^2 (g + r - 1) / r`` that are computed. At least ``e (T (I + O) + K b^2)``
    bytes of memory for elements of e bytes, no index; through L2 ``e T K b ((g + r - 1) / (g r) + b / tile)``.
    An input that is infinite or NaN makes NaN of those outputs too that share a program with what it is joined to.
    """
    owner = "circulant_forward"
    values = admitted_values(values, index, owner)
    x = admitted_rows(x_TI, "x_TI", owner, index.n_in, values.dtype, index)
    bias = admitted_bias(bias, values, index, owner)
    checks.one_of(activation, "activation", owner, ACTIVATIONS)
    return _product(x, values, index, bias, activation, owner, precision, config)


def circulant_input_gradient(
    grad_TO: Tensor,
    values: Tensor,
    index: BlockIndex,
    *,
    precision: Precision = "tf32",
    config: Config | None = None,
) -> Tensor:
    """Return what `block_input_gradient` does, for an index whose `circulant` is not None.

    The kernel of the forward pass: the transpose of a circulant layer is one with the opposite shift.

    Parameters
    ----------
    grad_TO, values, index, precision
        As for `block_input_gradient`.
    config : Config, optional
        As for `circulant_forward`.

    Returns
    -------
    Tensor, shape (tokens, in)

    Raises
    ------
    SpecError
        As for `circulant_forward`.

    Notes
    -----
    As for `circulant_forward`.
    """
    owner = "circulant_input_gradient"
    values = admitted_values(values, index, owner)
    grad = admitted_rows(grad_TO, "grad_TO", owner, index.n_out, values.dtype, index)
    return _product(grad, values, index, None, None, owner, precision, config)


def circulant_value_gradient(
    x_TI: Tensor,
    grad_TO: Tensor,
    index: BlockIndex,
    *,
    precision: Precision = "tf32",
    config: Config | None = None,
) -> Tensor:
    """Return what `block_value_gradient` does, for an index whose `circulant` is not None.

    Parameters
    ----------
    x_TI, grad_TO, index, precision
        As for `block_value_gradient`.
    config : Config, optional
        ``blocks`` is g: a program multiplies g inputs by g outputs of one ring.

    Returns
    -------
    Tensor, shape (blocks, b, b)

    Raises
    ------
    SpecError
        As for `circulant_forward`.

    Notes
    -----
    ``2 T K b^2`` FLOP of use out of ``2 T K b^2 g m / r`` that are computed, where m = ceil((g + r - 1) / g). At least
    ``e (T (I + O) + K b^2)`` bytes of memory; through L2 ``2 e T I m``. Deterministic, as `block_value_gradient` is.
    """
    owner = "circulant_value_gradient"
    x, grad = admitted_pair(x_TI, grad_TO, index, owner)
    circulant, tokens, block = _circulant_of(index, owner), x.shape[0], index.block
    config = admitted_config(config, owner, index, x.dtype, tokens, precision, owner)
    if not tokens:
        return x.new_zeros(index.blocks, block, block)
    found = x.new_empty(index.blocks, block, block)
    split = config.split_k
    parts = found if split == 1 else found.new_empty((split, *found.shape), dtype=torch.float32)
    reach = min(config.blocks + circulant.radix - 1, circulant.ring)
    tiles = circulant.place * triton.cdiv(circulant.ring, config.blocks) * triton.cdiv(reach, config.blocks)
    with beside(x):
        circulant_sampled_product[(tiles, split)](
            x, grad, parts, tokens, x.stride(0), grad.stride(0),
            circulant.radix, circulant.place, circulant.ring, index.blocks,
            BLOCK=block, SIDE=config.blocks, TOKENS=config.tokens, SHIFT=circulant.shift, PRECISION=precision,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return found if split == 1 else add_parts(parts, found)


def _product(
    x: Tensor, values: Tensor, index: BlockIndex, bias: Tensor | None, activation: Activation | None,
    owner: Pass, precision: Precision, config: Config | None,
) -> Tensor:  # fmt: skip
    """Launch the product, over the transposed layer for the gradient of the input; the operands are admitted."""
    circulant, tokens, block = _circulant_of(index, owner), x.shape[0], index.block
    config = admitted_config(config, owner, index, x.dtype, tokens, precision, owner)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)  # a circulant layer is square
    if not tokens:
        return y
    rows = circulant.place * triton.cdiv(circulant.ring, config.blocks)
    with beside(x):
        circulant_product[(triton.cdiv(tokens, config.tokens) * rows,)](
            x, values, values if bias is None else bias, y, tokens, x.stride(0), y.stride(0),
            circulant.radix, circulant.place, circulant.ring, config.group,
            BLOCK=block, SIDE=config.blocks, TOKENS=config.tokens, DEPTH=config.depth, SHIFT=circulant.shift,
            TRANSPOSED=owner == "circulant_input_gradient", WIDE=values.numel() >= 2**31,
            BIAS=bias is not None, ACTIVATION=activation or "none", PRECISION=precision,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y


def _circulant_of(index: BlockIndex, owner: str) -> Circulant:
    if index.circulant is None:
        found = f"{index.blocks} blocks of another pattern"
        checks.refuse("index", owner, "of a RadiX layer with square blocks (block_* takes any pattern)", found)
    return index.circulant
