"""From (batch, features) to feature-major groups and back, as registered operators: each is the other's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topogen_torch._ops import _cpu

__all__ = ["pack", "unpack"]

torch.library.define("topogen::pack", "(Tensor x, SymInt samples) -> Tensor")
torch.library.define("topogen::unpack", "(Tensor packed, SymInt batch) -> Tensor")
torch.library.impl("topogen::pack", "cpu")(_cpu.pack)
torch.library.impl("topogen::unpack", "cpu")(_cpu.unpack)


@torch.library.register_fake("topogen::pack")
def _fake_pack(x: Tensor, samples: int) -> Tensor:
    return x.new_empty((x.shape[0] + samples - 1) // samples, x.shape[1], samples)


@torch.library.register_fake("topogen::unpack")
def _fake_unpack(packed: Tensor, batch: int) -> Tensor:
    return packed.new_empty(batch, packed.shape[1])


_pack = torch.ops.topogen.pack.default
_unpack = torch.ops.topogen.unpack.default


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, samples: int) -> Tensor:
        ctx.batch = x.shape[0]
        return _pack(x, samples)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpacked: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _unpack(dpacked, ctx.batch), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, batch: int) -> Tensor:
        ctx.samples = packed.shape[2]
        return _unpack(packed, batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _pack(dx, ctx.samples), None


def pack(x: Tensor, samples: int) -> Tensor:
    """Return x (batch, features) as (groups, features, samples); zeros end the last group.

    `samples` is a multiple of 16; float32 or float64 on the CPU.
    """
    return _Pack.apply(x, samples)


def unpack(packed: Tensor, batch: int) -> Tensor:
    """Return the first `batch` samples of packed (groups, features, samples) as (batch, features)."""
    return _Unpack.apply(packed, batch)
