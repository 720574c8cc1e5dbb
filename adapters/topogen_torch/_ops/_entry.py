"""What every operator of a sparse layer does with its input before a kernel sees it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topogen.errors import SpecError

__all__ = ["KERNEL_DEVICES", "admitted", "first_order", "in_long_floats"]

KERNEL_DEVICES = {"cpu", "meta"}
_SHORT = (torch.float16, torch.bfloat16)


def admitted(owner: str, x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands of `owner`, cast where autocast wants it; refuse another device or dtype than the values'.

    The cast is differentiable, so that float32 master values receive float32 gradients.
    """
    if x.device != values.device:
        raise SpecError(f"The input of {owner} must be on {values.device} as its values are. Got {x.device}.")
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, values, bias = x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)
    if x.dtype != values.dtype:
        raise SpecError(f"The input of {owner} must be {values.dtype} as its values are. Got {x.dtype}.")
    return x, values, bias


def in_long_floats(
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """Return ``product(x, values, bias)``; for float16 and bfloat16 computed in float32 and rounded once."""
    if x.dtype in _SHORT:
        return product(x.float(), values.float(), None if bias is None else bias.float()).to(x.dtype)
    return product(x, values, bias)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to differentiate `backward` again, as torch's `once_differentiable` does.

    That costs 4 microseconds in every call; here nobody pays who does not ask for a second derivative.
    """
    guarded = once_differentiable(backward)

    @wraps(backward)
    def chosen(ctx: Any, *gradients: Tensor) -> Any:
        return guarded(ctx, *gradients) if torch.is_grad_enabled() else backward(ctx, *gradients)

    return chosen
