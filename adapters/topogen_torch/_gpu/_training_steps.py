"""Whole training steps on a card, sparse beside dense: an MLP and a small transformer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention

from topogen_torch._block import BlockSparseLinear
from topogen_torch._gpu._cases import Case
from topogen_torch._gpu._clock import graphed, median_seconds

__all__ = ["KINDS", "MODELS", "Steps", "training_steps"]

MODELS = ("MLP", "transformer")
KINDS = ("dense", "sparse")

_WARM_UP = 5

Linear = Callable[[int, int], nn.Module]


class Steps(NamedTuple):
    """One model: seconds of a step as PyTorch runs it and as a CUDA graph, peak bytes, and the loss on the way."""

    model: str
    kind: str
    step: float
    graph_step: float | None
    peak: int | None
    loss: tuple[float, float]


class _Attention(nn.Module):
    """A transformer's encoder layer of any linear layers."""

    def __init__(self, linear: Linear, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (linear(width, width) for _ in range(4))
        self.wide, self.narrow = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same."""
        seen = self.norm_1(x)
        parts = (part(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.narrow(torch.relu(self.wide(self.norm_2(x))))


def training_steps(
    model: str, kind: str, device: torch.device, *, block: int, sparsity: float, width: int, tokens: int, depth: int
) -> Steps:
    """Measure the steps of one of `MODELS`, the MLP of `width` neurons, the transformer a quarter as wide; of `KINDS`.

    float32 weights, bfloat16 products by autocast on a CUDA device, Adam, mean squared error to fixed random targets.
    """

    def linear(n_in: int, n_out: int) -> nn.Module:
        if kind == "dense":
            return nn.Linear(n_in, n_out, device=device)
        side = max(n_in, n_out)
        blocks = Case(side, block, "random", sparsity).blocks()[: n_in // block, : n_out // block]
        return BlockSparseLinear(blocks, block, device=device)

    narrow, length = max(width // 4, block), min(512, tokens)

    def mlp() -> nn.Module:
        return nn.Sequential(*(part for _ in range(depth) for part in (linear(width, width), nn.ReLU())))

    def transformer() -> nn.Module:
        heads = max(1, narrow // 64)
        return nn.Sequential(*(_Attention(linear, narrow, heads).to(device) for _ in range(depth)))

    if model == "MLP":
        return _steps(f"MLP, {depth} x {width}", kind, mlp, (tokens, width), device)
    shape = tokens // length, length, narrow
    return _steps(f"transformer, {depth} x {narrow}", kind, transformer, shape, device)


def _steps(name: str, kind: str, build: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device) -> Steps:
    on_card = device.type == "cuda"
    gc.collect()
    before = 0
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, capturable=on_card)
    x, target = (torch.randn(shape, device=device) for _ in range(2))

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(device):
            loss = mse_loss(model(x).float(), target)
        loss.backward()
        optimizer.step()
        return loss

    first = float(step().detach())
    for _ in range(_WARM_UP):
        step()
    seconds = median_seconds(step, device, least=3)
    peak = torch.cuda.max_memory_allocated(device) - before if on_card else None
    last = float(step().detach())
    replay = graphed(step, device)
    graph_seconds = None if replay is None else median_seconds(replay, device, least=3)
    return Steps(name, kind, seconds, graph_seconds, peak, (first, last))


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)  # a graph must cast at every replay
