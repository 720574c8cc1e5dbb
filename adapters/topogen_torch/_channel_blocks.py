"""Convolutions on a card: where channels are joined in full blocks, a block-sparse product of the image's windows.

Legend: B = images, C = input channels, O = output channels, H', W' = height and width of the result, k = offsets of the
kernel, b = block, K = blocks of channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import pad

from topogen import as_pattern
from topogen.errors import SpecError
from topogen_torch._block import full_blocks, runs_of
from topogen_torch._gpu._choose import BLOCKS, choose_for
from topogen_torch._layout import to_pattern, transposed_index
from topogen_torch._ops._card_blocks import CardIndex, card_block_linear, facts_of, row_orders
from topogen_torch._ops._convolution import Window
from topogen_torch._ops._entry import admitted

__all__ = ["ChannelBlocks", "block_convolution", "channel_buffers", "channel_facts"]

_PREFIX = "channel_"


class ChannelBlocks(NamedTuple):
    """A convolution's pattern as blocks of the matrix (k C, O), offsets first, and where their values stand.

    ``runs[n, i]`` is the run of b values, in value ordering, that makes row i of block n of channels.
    """

    runs: Tensor
    card: CardIndex

    @classmethod
    def of(cls, buffers: dict[str, Any], facts: tuple[int, ...]) -> ChannelBlocks:
        """Return those that a layer holds among its buffers, as `channel_buffers` made them."""
        card = CardIndex(*(buffers[_PREFIX + name] for name in CardIndex._fields[:-1]), facts=facts)
        return cls(buffers[_PREFIX + "runs"], card)


def channel_buffers(stored: sp.csr_array, offsets: int, listed: bool, values: Tensor) -> dict[str, Tensor]:
    """Return the buffers of a convolution whose channels are joined in full blocks that have a kernel; else none.

    `stored` is the pattern over channels, or with `listed` that of all offsets, (k C, O). The largest block is taken.
    """
    for block in sorted(BLOCKS, reverse=True):
        channels = stored.shape[0] // (offsets if listed else 1)
        if not stored.nnz or channels % block or stored.shape[1] % block:
            continue
        if choose_for(values.device, "blocks", block, values.dtype, 0.0).kernel != "triton":
            continue
        try:
            blocks = full_blocks(stored, block)
        except SpecError:
            continue
        every = blocks if listed else as_pattern(sp.vstack([blocks] * offsets, format="csr"))
        parts = {
            "runs": torch.from_numpy(runs_of(blocks, block)),
            "indptr": torch.from_numpy(every.indptr.astype(np.int32)),
            "indices": torch.from_numpy(every.indices.astype(np.int32)),
            **transposed_index(every),
            **row_orders(every),
        }
        return {_PREFIX + name: part for name, part in parts.items()}
    return {}


def channel_facts(buffers: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the `CardIndex.facts` of such buffers, () if there are none; the pattern is read on the host."""
    if _PREFIX + "runs" not in buffers:
        return ()
    indptr, indices, indptr_t = (buffers[_PREFIX + name] for name in ("indptr", "indices", "indptr_t"))
    return facts_of(to_pattern(indptr.cpu(), indices, indptr_t.shape[0] - 1))


def block_convolution(
    x: Tensor, values: Tensor, bias: Tensor | None, blocks: ChannelBlocks, window: Window, owner: str
) -> Tensor:
    """Return what `sparse_convolution` does, through the windows of all pixels: k times the image's memory.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
    values : Tensor, shape (nnz, kh, kw) or (nnz,)
    bias : Tensor, shape (O,), optional
    blocks : ChannelBlocks
    window : Window
    owner : str
        The layer that errors name.

    Returns
    -------
    Tensor, shape (B, O, H', W')
        Channels last in memory, as the product leaves them.
    """
    x, values, bias = admitted(owner, x, values, bias)
    count, block = blocks.runs.shape
    parts = values.reshape(-1, block, math.prod(values.shape[1:])).index_select(0, blocks.runs.flatten())
    values_Kbb = parts.view(count, block, block, -1).permute(3, 0, 1, 2).reshape(-1, block, block)
    top, bottom, left, right = window.padding
    height, width = window.output(*x.shape[2:])
    x = pad(x, (left, right, top, bottom)).permute(0, 2, 3, 1)
    (high, wide), (down, across) = window.size, window.stride
    seen = [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across]
        for i in range(0, high * window.dilation[0], window.dilation[0])
        for j in range(0, wide * window.dilation[1], window.dilation[1])
    ]
    windows = seen[0] if len(seen) == 1 else torch.cat(seen, -1)  # (B, H', W', k C)
    outputs = (blocks.card.indptr_t.shape[0] - 1) * block
    return card_block_linear(windows, values_Kbb, bias, blocks.card, outputs).permute(0, 3, 1, 2)
