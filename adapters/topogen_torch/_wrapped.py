"""The weights that dense modules store fused or by name, as the linear layers that they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["as_linear"]


def as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a `torch.nn.Linear` over a weight (out, in) and a bias, without copying or drawing numbers."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=torch.device("meta"))
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
