"""The block-sparse linear layer on a card as registered operators, and its gradient.

Which kernel computes it is decided inside the operators, so that a captured graph holds whatever is chosen. Legend as
in `topogen_torch._ops._blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topogen.errors import SpecError
from topogen_torch._break_even import never_dense_now
from topogen_torch._gpu import _choose, _tuning
from topogen_torch._gpu._batched import (
    BATCHED_FROM,
    batched_forward,
    batched_input_gradient,
    batched_value_gradient,
)
from topogen_torch._gpu._config import Pass, Precision
from topogen_torch._gpu._dense import dense_forward, dense_input_gradient, dense_value_gradient
from topogen_torch._gpu._index import BlockIndex, Circulant, find_circulant
from topogen_torch._ops._entry import admitted

__all__ = ["CardIndex", "card_block_linear", "facts_of", "kind_of", "row_orders"]

_OWNER = "BlockSparseLinear"
_PASSES: dict[str, tuple[Pass, Pass, Pass]] = {
    "triton": ("forward", "input_gradient", "value_gradient"),
    "circulant": ("circulant_forward", "circulant_input_gradient", "circulant_value_gradient"),
}
_BY_TORCH: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "batched": (batched_forward, batched_input_gradient, batched_value_gradient),
    "dense": (dense_forward, dense_input_gradient, dense_value_gradient),
}
_INDEX = (
    "Tensor indptr, Tensor indices, Tensor order, Tensor indptr_t, Tensor indices_t, Tensor permutation, "
    "Tensor order_t, int[] facts"
)
torch.library.define("topogen::card_blocks", f"(Tensor x, Tensor values, Tensor? bias, {_INDEX}) -> Tensor")
torch.library.define(
    "topogen::card_blocks_backward",
    f"(Tensor dy, Tensor x, Tensor values, {_INDEX}, bool[3] needs) -> (Tensor, Tensor, Tensor)",
)


class CardIndex(NamedTuple):
    """The int32 index buffers of one layer on a card, and what its launches must know of them on the host."""

    indptr: Tensor
    indices: Tensor
    order: Tensor
    indptr_t: Tensor
    indices_t: Tensor
    permutation: Tensor
    order_t: Tensor
    facts: tuple[int, ...]  # most blocks of an input block; nodes, radix, place and shift of a RadiX layer, else zeros

    def blocks(self, block: int) -> BlockIndex:
        """Return the index as the kernels take it."""
        *buffers, (most, nodes, radix, place, shift) = self
        names = self._fields[:-1]
        circulant = Circulant(nodes=nodes, radix=radix, place=place, shift=shift) if nodes else None
        n_in, n_out = ((pointers.shape[0] - 1) * block for pointers in (self.indptr, self.indptr_t))
        of_buffers: dict[str, Any] = dict(zip(names, buffers, strict=True))
        return BlockIndex(block=block, n_in=n_in, n_out=n_out, most=most, circulant=circulant, **of_buffers)


def row_orders(stored: sp.csr_array) -> dict[str, Tensor]:
    """Return the rows and the columns of a pattern of blocks, those with the most blocks first, int32."""
    counts = np.diff(stored.indptr), np.bincount(stored.indices, minlength=stored.shape[1])
    orders = (np.argsort(-count, kind="stable").astype(np.int32) for count in counts)
    return {name: torch.from_numpy(order) for name, order in zip(("order", "order_t"), orders, strict=True)}


def facts_of(stored: sp.csr_array) -> tuple[int, ...]:
    """Return the `CardIndex.facts` of a canonical pattern of blocks."""
    most = int(np.diff(stored.indptr).max(initial=0))
    found = find_circulant(stored.indptr, stored.indices, stored.shape[1])
    return (most, 0, 0, 0, 0) if found is None else (most, found.nodes, found.radix, found.place, found.shift)


def _forward_on_card(x: Tensor, values: Tensor, bias: Tensor | None, *parts: Any) -> Tensor:
    index = CardIndex(*parts)
    if not values.shape[0] or not x.shape[0]:
        y = _fake_forward(x, values, bias, *parts)
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    kernel, precision = _kernel(x, values, index), _precision()
    blocks = index.blocks(values.shape[-1])
    if kernel in _BY_TORCH:
        return _BY_TORCH[kernel][0](x, values, blocks, bias)
    if kernel == "circulant":
        from topogen_torch._gpu._circulant import circulant_forward as forward
    else:
        from topogen_torch._gpu._forward import block_forward as forward
    config = _tuning.config_for(_PASSES[kernel][0], blocks, x.dtype, x.shape[0], precision)
    return forward(x, values, blocks, bias, precision=precision, config=config)


def _backward_on_card(dy: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *parts, needs = rest
    index = CardIndex(*parts)
    if not values.shape[0] or not x.shape[0]:
        dx, dvalues, dbias = _fake_backward(dy, x, values, *rest)
        return dx.zero_(), dvalues.zero_(), dy.sum(0) if needs[2] else dbias
    kernel, precision = _kernel(x, values, index), _precision()
    dx, dvalues = x.new_empty(0), x.new_empty(0)
    dbias = dy.sum(0) if needs[2] else x.new_empty(0)
    blocks = index.blocks(values.shape[-1])
    if kernel in _BY_TORCH:
        _, input_gradient, value_gradient = _BY_TORCH[kernel]
        dx = input_gradient(dy, values, blocks) if needs[0] else dx
        return dx, value_gradient(x, dy, blocks) if needs[1] else dvalues, dbias
    if kernel == "circulant":
        from topogen_torch._gpu._circulant import circulant_input_gradient as input_gradient
        from topogen_torch._gpu._circulant import circulant_value_gradient as value_gradient
    else:
        from topogen_torch._gpu._input_gradient import block_input_gradient as input_gradient
        from topogen_torch._gpu._value_gradient import block_value_gradient as value_gradient
    _, of_inputs, of_values = _PASSES[kernel]
    if needs[0]:
        config = _tuning.config_for(of_inputs, blocks, x.dtype, x.shape[0], precision)
        dx = input_gradient(dy, values, blocks, precision=precision, config=config)
    if needs[1]:
        config = _tuning.config_for(of_values, blocks, x.dtype, x.shape[0], precision)
        dvalues = value_gradient(x, dy, blocks, precision=precision, config=config)
    return dx, dvalues, dbias


def _where_the_operands_are(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, run with its tensors' card as the current one: Triton launches there."""

    def guarded(first: Tensor, *others: Any) -> Any:
        with torch.cuda.device(first.device):
            return function(first, *others)

    return guarded


torch.library.impl("topogen::card_blocks", "cuda")(_where_the_operands_are(_forward_on_card))
torch.library.impl("topogen::card_blocks_backward", "cuda")(_where_the_operands_are(_backward_on_card))
# For Triton's interpreter alone: nothing else sends a tensor of the CPU here.
torch.library.impl("topogen::card_blocks", "cpu")(_forward_on_card)
torch.library.impl("topogen::card_blocks_backward", "cpu")(_backward_on_card)


@torch.library.register_fake("topogen::card_blocks")
def _fake_forward(x: Tensor, values: Tensor, bias: Tensor | None, *parts: Any) -> Tensor:
    return x.new_empty(x.shape[0], (parts[3].shape[0] - 1) * values.shape[-1])


@torch.library.register_fake("topogen::card_blocks_backward")
def _fake_backward(dy: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, values.shape, dy.shape[1:])
    dx, dvalues, dbias = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, rest[-1], strict=True))
    return dx, dvalues, dbias


_forward = torch.ops.topogen.card_blocks.default
_backward = torch.ops.topogen.card_blocks_backward.default


class _CardBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, facts: Any, *buffers: Tensor) -> Tensor:
        ctx.save_for_backward(x, values, *buffers)
        ctx.facts = facts
        return _forward(x, values, bias, *buffers, facts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[:3]
        found = _backward(dy, *ctx.saved_tensors, ctx.facts, needs)
        return (*(gradient if need else None for gradient, need in zip(found, needs, strict=True)), *(None,) * 8)


def card_block_linear(
    x: Tensor, values_Kbb: Tensor, bias: Tensor | None, index: CardIndex, out_features: int
) -> Tensor:
    """Return what `block_linear` does, on a card: each dtype in its own arithmetic, sums in float32.

    Parameters
    ----------
    x : Tensor, shape (..., in)
        Any number of leading dimensions, none included.
    values_Kbb : Tensor, shape (blocks, b, b)
        Row-major over (input block, output block), of the dtype of `x` and on its device.
    bias : Tensor, shape (out,), optional
    index : CardIndex
    out_features : int

    Returns
    -------
    Tensor, shape (..., out)
    """
    x, values, bias = admitted(_OWNER, x, values_Kbb, bias)
    in_features = (index.indptr.shape[0] - 1) * values.shape[-1]
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise SpecError(f"The input of {_OWNER} must have shape (..., {in_features}). Got {tuple(x.shape)}.")
    rows = x if x.ndim == 2 else x.reshape(-1, in_features)
    y = _CardBlocks.apply(rows, values, bias, index.facts, *index[:-1])
    return y if x.ndim == 2 else y.view(*x.shape[:-1], out_features)


def _kernel(x: Tensor, values: Tensor, index: CardIndex) -> str:
    """Return which kernel multiplies; say aloud, once, where it is a dense one for want of another."""
    block, n_in = values.shape[-1], x.shape[1]
    n_out = (index.indptr_t.shape[0] - 1) * block
    density = 0.0 if never_dense_now() else values.numel() / (n_in * n_out)
    choice = _choose.choose_for(x.device, kind_of(index.facts, block), block, values.dtype, density)
    _choose.announce(_OWNER, choice.reason, n_in, n_out, values.itemsize)
    return choice.kernel


def kind_of(facts: tuple[int, ...], block: int) -> _choose.Kind:
    """Return of which kind a pattern of blocks is to a card."""
    _, nodes, radix, place, _ = facts
    if not nodes:
        return "blocks"
    return "batched" if radix * place == nodes and place > 1 and radix * block >= BATCHED_FROM else "circulant"


def _precision() -> Precision:
    """Return how float32 is multiplied: as torch's own products are, exactly unless the user has allowed tf32."""
    return "ieee" if torch.backends.cuda.matmul.fp32_precision in ("ieee", "none") else "tf32"
