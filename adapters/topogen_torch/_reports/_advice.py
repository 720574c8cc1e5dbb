"""Where sparse stops paying, measured on this machine, and what that recommends for a layer."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from topogen.errors import SpecError
from topogen_torch._block import BlockSparseLinear
from topogen_torch._break_even import multiplies_densely, never_dense
from topogen_torch._conversion._kinds import is_sparse
from topogen_torch._conversion._swap import densified
from topogen_torch._gpu._choose import choose_for, on_card
from topogen_torch._layers import SparseLinear
from topogen_torch._ops._card_blocks import kind_of
from topogen_torch._patterned import Patterned
from topogen_torch._reports._timing import Inputs, Seconds, calls_of, check_room, medians

__all__ = [
    "BLOCKS",
    "DENSITIES",
    "Blocks",
    "BreakEven",
    "best_block",
    "break_even_of",
    "density_text",
    "kernel_of",
    "recommendation",
]

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Densities at which a layer's break-even is looked for."""

_BUDGET = 0.2  # seconds of timing at one density
_NOTICEABLE = 1.1
_WORTH_ANOTHER_PATTERN = 1.5
BLOCKS = (16, 32, 64)
"""Block sizes that are tried."""

_known: dict[tuple[object, ...], BreakEven] = {}


class Blocks(NamedTuple):
    """A block size, and how many times as fast as single connections its steps are."""

    block: int
    speed: float


class BreakEven(NamedTuple):
    """Densities at which a sparse layer with a random pattern takes as long as its dense twin.

    Attributes
    ----------
    forward, forward_backward : float
        Between two densities of `DENSITIES` that were measured, by a straight line. 0.0 where dense was faster at the
        lowest of them, 1.0 where sparse was faster at the highest.
    """

    forward: float
    forward_backward: float


def break_even_of(layer: nn.Module, inputs: Inputs) -> BreakEven | None:
    """Measure the break-even densities of a layer's kind, shape and batch, by bisection over `DENSITIES`.

    The sparse kernel always runs, also where the layer itself would multiply densely. What was measured before in this
    process, with as many threads, is not measured again. None for a layer of another kind, without data, or whose dense
    twin does not fit in memory.
    """
    base = _sparse_namesake(layer)
    if base is None or next(layer.parameters()).is_meta:
        return None
    shapes = tuple(tuple(value.shape) for value in inputs.args if isinstance(value, torch.Tensor))
    key = (type(base), base.extra_repr() if not isinstance(base, SparseLinear) else "", base._stored_sizes, base._unit)
    key += (shapes, base.values.dtype, base.values.device, base.bias is None, torch.get_num_threads())
    if key not in _known:
        try:
            check_room(base)
            with torch.inference_mode(False), torch.enable_grad(), never_dense():
                _known[key] = _bisect(base, inputs)
        except (SpecError, torch.OutOfMemoryError):
            return None
    return _known[key]


def kernel_of(layer: nn.Module, batch: int) -> str:
    """Name what multiplies so many samples in a layer; its class where it has one kernel only, or several parts."""
    if isinstance(layer, BlockSparseLinear | SparseLinear) and on_card(layer.values.device):
        return _card_kernel(layer)
    if isinstance(layer, BlockSparseLinear):
        return f"blocks of {layer.block}"
    if not isinstance(layer, SparseLinear):
        return type(layer).__name__ if is_sparse(layer) else "dense"
    n_in, n_out = layer.in_features, layer.out_features
    if layer.nnz == n_in * n_out:
        return "dense"
    if layer._by_panels:
        return "panels"
    return "dense forward, rows" if multiplies_densely(batch, layer.nnz, n_in, n_out) else "rows"


def _card_kernel(layer: BlockSparseLinear | SparseLinear) -> str:
    device, dtype = layer.values.device, layer.values.dtype
    if isinstance(layer, SparseLinear):
        kernel = choose_for(device, "connections", 1, dtype, layer.density).kernel
        return "dense" if layer.density == 1 else kernel
    kind = kind_of(layer._facts, layer.block)
    kernel = choose_for(device, kind, layer.block, dtype, layer.density).kernel
    return kernel if kernel == "dense" else f"{kernel}, blocks of {layer.block}"


def best_block(layer: nn.Module, inputs: Inputs, optimizer: str) -> Blocks | None:
    """Time random blocks of the layer's density in turns with the layer; return the fastest if it is clearly faster.

    Blocks are another pattern, as dense as this one but coarser: what they cost in accuracy is not measured here.
    """
    if type(layer) is not SparseLinear or layer.values.is_meta or not 0 < layer.density < 1:
        return None
    sizes = (layer.in_features, layer.out_features)
    blocks = [block for block in BLOCKS if not any(size % block for size in sizes)]
    with torch.inference_mode(False), torch.enable_grad():
        layers = [layer, *(_in_blocks(layer, block) for block in blocks)]
        steps = [calls_of(copy.deepcopy(each), inputs, optimizer)[-1] for each in layers]
        own, *others = medians(steps, layer.values.device, _BUDGET)
    found = max((Blocks(block, own / other) for block, other in zip(blocks, others, strict=True)),
                key=lambda each: each.speed, default=None)  # fmt: skip
    return found if found is not None and found.speed >= _WORTH_ANOTHER_PATTERN else None


def _in_blocks(layer: SparseLinear, block: int) -> BlockSparseLinear:
    shape = (layer.in_features // block, layer.out_features // block)
    count = max(1, round(layer.density * shape[0] * shape[1]))
    chosen = np.random.default_rng(0).choice(shape[0] * shape[1], count, replace=False)
    pattern = sp.coo_array((np.ones(count, np.bool_), np.divmod(chosen, shape[1])), shape=shape)
    values = layer.values
    return BlockSparseLinear(pattern, block, bias=layer.bias is not None, dtype=values.dtype, device=values.device)


def recommendation(
    layer: nn.Module,
    seconds: Seconds | None,
    dense: Seconds | None,
    bytes_saved: float,
    found: BreakEven | None = None,
    blocks: Blocks | None = None,
) -> str:
    """Say what the measurements recommend; nothing where there are none.

    `bytes_saved` is how many times less memory training the layer takes than training its dense twin.
    """
    if seconds is None or dense is None:
        return ""
    if not is_sparse(layer):
        if found is None:
            return "dense"
        if found.forward_backward == 0:
            return "keep dense"
        if found.forward_backward == 1:
            return "dense; sparse pays at any density that was tried"
        return f"dense; sparse pays below {density_text(found.forward_backward)}"
    ratio = dense.step / seconds.step
    coarser = "" if blocks is None else f"; blocks of {blocks.block} {blocks.speed:.3g}x as fast again"
    if ratio >= _NOTICEABLE:
        return f"sparse as it is: steps {ratio:.3g}x as fast{coarser}"
    if ratio >= 1 / _NOTICEABLE:
        return f"sparse: steps as fast as dense{coarser}"
    if blocks is not None and ratio * blocks.speed >= _NOTICEABLE:
        faster = f"{ratio * blocks.speed:.3g}x as fast as dense"
        return f"blocks of {blocks.block}: steps {faster}, single connections {ratio:.3g}x"
    less = f"; sparse takes {bytes_saved:.3g}x less memory" if bytes_saved > 1 else ""
    return f"keep dense: sparse steps take {1 / ratio:.3g}x as long{less}"


def density_text(density: float) -> str:
    """Return a break-even density in words that claim no more than was measured."""
    if density <= 0:
        return f"< {100 * DENSITIES[0]:.3g} %"
    return f"> {100 * DENSITIES[-1]:.3g} %" if density >= 1 else f"{100 * density:.2g} %"


def _sparse_namesake(layer: nn.Module) -> Patterned | None:
    """Return a sparse layer of the same kind and shape, with no connection that matters."""
    if isinstance(layer, Patterned) and is_sparse(layer):
        return layer
    if type(layer) is nn.Linear:
        shape = (layer.in_features, layer.out_features)
        device = layer.weight.device
        return SparseLinear(sp.csr_array(shape), bias=layer.bias is not None, dtype=layer.weight.dtype, device=device)
    return None


def _bisect(base: Patterned, inputs: Inputs) -> BreakEven:
    measured: dict[int, tuple[float, float]] = {}

    def ratios(place: int) -> tuple[float, float]:
        """Seconds of sparse / seconds of dense at one of the densities: forward, forward + backward."""
        if place not in measured:
            measured[place] = _ratios(_at_density(base, DENSITIES[place]), inputs)
        return measured[place]

    def crossing(column: int) -> float:
        low, high = -1, len(DENSITIES)  # sparse wins at low, dense at high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if ratios(middle)[column] < 1 else (low, middle)
        if low < 0 or high == len(DENSITIES):
            return float(low >= 0)
        below, above = measured[low][column], measured[high][column]
        return DENSITIES[low] + (1 - below) / (above - below) * (DENSITIES[high] - DENSITIES[low])

    return BreakEven(crossing(0), crossing(1))


def _ratios(layer: Patterned, inputs: Inputs) -> tuple[float, float]:
    calls = [*calls_of(densified(layer), inputs, "sgd")[:2], *calls_of(layer, inputs, "sgd")[:2]]
    dense, dense_both, own, both = medians(calls, layer.values.device, _BUDGET)
    return own / dense, both / dense_both


def _at_density(base: Patterned, density: float) -> Patterned:
    """Return a layer like `base` with a random pattern of this density, of equal weights."""
    pattern = np.random.default_rng(0).random(base._stored_sizes, np.float32) < density
    layer = copy.deepcopy(base)
    layer._adopt(sp.csr_array(pattern))
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 1 / max(1, base._stored_sizes[0]))
    return layer
