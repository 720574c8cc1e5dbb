"""Initial weights on stored connections, for the fans that a neuron really has.

In a dense layer all neurons have the same fan-in. Here an output's fan-in is the number of connections that it has,
and an input's fan-out likewise, so that the scale differs from connection to connection. A neuron without connections
has no weight to scale: an output neuron of that kind gives its bias alone.

He: arXiv 1502.01852. Glorot: "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

Each function fills ``layer.values`` in place and returns it, as those of `torch.nn.init` do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from topogen_torch._block import BlockSparseLinear
    from topogen_torch._layers import SparseLinear

__all__ = ["kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"]

RELU_GAIN = math.sqrt(2)


def kaiming_uniform_(
    layer: SparseLinear | BlockSparseLinear, *, gain: float = RELU_GAIN, generator: torch.Generator | None = None
) -> Tensor:
    """Draw w_ij uniformly from [-a, a], a = gain * sqrt(3 / fan_in_j) (He et al. 2015, equation 10)."""
    return _fill(layer, gain * _fan_in(layer).rsqrt(), uniform=True, generator=generator)


def kaiming_normal_(
    layer: SparseLinear | BlockSparseLinear, *, gain: float = RELU_GAIN, generator: torch.Generator | None = None
) -> Tensor:
    """Draw w_ij from a normal distribution of deviation gain / sqrt(fan_in_j) (He et al. 2015, equation 10)."""
    return _fill(layer, gain * _fan_in(layer).rsqrt(), uniform=False, generator=generator)


def xavier_uniform_(
    layer: SparseLinear | BlockSparseLinear, *, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw w_ij uniformly from [-a, a], a = gain * sqrt(6 / (fan_in_j + fan_out_i)) (Glorot 2010, equation 16)."""
    return _fill(layer, gain * _xavier_deviation(layer), uniform=True, generator=generator)


def xavier_normal_(
    layer: SparseLinear | BlockSparseLinear, *, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw w_ij from a normal distribution of deviation gain * sqrt(2 / (fan_in_j + fan_out_i)) (Glorot 2010)."""
    return _fill(layer, gain * _xavier_deviation(layer), uniform=False, generator=generator)


def _xavier_deviation(layer: SparseLinear | BlockSparseLinear) -> Tensor:
    return (2 / (_fan_in(layer) + _fan_out(layer))).sqrt()


def _fan_in(layer: SparseLinear | BlockSparseLinear) -> Tensor:
    """Return the fan-in of each value's output, in a shape that multiplies `values`."""
    fan_in = layer.fan_in()
    if layer.values.ndim == 1:
        return fan_in[layer.indices]
    return fan_in.view(-1, layer.values.shape[-1])[layer.indices, None]  # blocks: (blocks, 1, b)


def _fan_out(layer: SparseLinear | BlockSparseLinear) -> Tensor:
    """Return the fan-out of each value's input, in a shape that multiplies `values`."""
    units = layer.indptr.diff()
    fan_out = torch.repeat_interleave(units, units)
    return fan_out if layer.values.ndim == 1 else (fan_out * layer.values.shape[-1])[:, None, None]


@torch.no_grad()
def _fill(
    layer: SparseLinear | BlockSparseLinear, deviation: Tensor, *, uniform: bool, generator: torch.Generator | None
) -> Tensor:
    values = layer.values
    if uniform:
        values.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)
    else:
        values.normal_(generator=generator)
    return values.mul_(deviation.to(values))
