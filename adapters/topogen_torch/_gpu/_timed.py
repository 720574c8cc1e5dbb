"""Seconds of the passes of a layer on a card, beside the dense product and beside torch's own block-sparse one.

The work of all batches is captured in one CUDA graph and replayed, so that neither launches nor a cache that happens to
hold the activations are measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from topogen_torch._gpu._accuracy import KERNELS
from topogen_torch._gpu._cases import Case, Operands, operands_of
from topogen_torch._gpu._clock import graphed, median_seconds
from topogen_torch._gpu._config import Config
from topogen_torch._gpu._tuning import config_for

__all__ = ["Dense", "Row", "dense_seconds", "pass_calls", "row_of", "seconds_per_batch"]

Call = Callable[[int], Any]  # takes the number of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Seconds of a dense layer of the same size."""

    forward: float
    both: float  # forward and both gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Seconds of one case; None is "not measured"."""

    case: Case
    kernel: str
    tokens: int
    density: float
    forward: float
    input_gradient: float
    value_gradient: float
    both: float
    dense: Dense
    bsr_forward: float | None
    bytes: int  # that the three passes must move through the card's memory, at least

    @property
    def rate(self) -> float:
        """Useful FLOP/s of the three passes together."""
        return 6 * self.tokens * self.case.n**2 * self.density / self.both


def row_of(case: Case, kernel: str, tokens: int, dtype: torch.dtype, device: torch.device, dense: Dense) -> Row:
    """Measure one case by one way to compute it, a key of `KERNELS`."""
    operands = operands_of(case, tokens, dtype, device)
    index, batches = operands.index, len(operands.xs)
    passes = pass_calls(kernel, operands)
    single = [seconds_per_batch(call, batches, device) for call in passes]
    both = seconds_per_batch(lambda batch: [call(batch) for call in passes], batches, device)
    moved = 3 * 2 * tokens * case.n + 3 * index.blocks * case.block**2
    return Row(
        case=case,
        kernel=kernel,
        tokens=tokens,
        density=index.density,
        forward=single[0],
        input_gradient=single[1],
        value_gradient=single[2],
        both=both,
        dense=dense,
        bsr_forward=_bsr_seconds(operands, device) if kernel == "triton" else None,
        bytes=moved * dtype.itemsize,
    )


def pass_calls(kernel: str, operands: Operands, config: Config | None = None) -> list[Call]:
    """Return the three passes, each a call that takes the number of a batch; with tuned settings, or those given.

    float32 is multiplied exactly.
    """
    index, values = operands.index, operands.values
    xs, grads = operands.xs, operands.grads
    given: tuple[Callable[[int], tuple[Any, ...]], ...] = (
        lambda batch: (xs[batch], values, index),
        lambda batch: (grads[batch], values, index),
        lambda batch: (xs[batch], grads[batch], index),
    )

    tokens, dtype = xs[0].shape[0], values.dtype

    def call(name: str, function: Any, arguments: Callable[[int], tuple[Any, ...]]) -> Call:
        if kernel == "batched":
            return lambda batch: function(*arguments(batch))
        pass_: Any = name
        chosen = config or config_for(pass_, index, dtype, tokens, "ieee")
        return lambda batch: function(*arguments(batch), precision="ieee", config=chosen)

    return [call(name, function, arguments) for (name, function), arguments in zip(KERNELS[kernel], given, strict=True)]


def dense_seconds(n: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Dense:
    """Measure `torch.nn.functional.linear` and both of its gradients."""
    operands = operands_of(Case(n, n, "random", 0.0), tokens, dtype, device)
    xs, grads, weight = operands.xs, operands.grads, operands.values[0]

    def forward(batch: int) -> Tensor:
        return linear(xs[batch], weight)

    def both(batch: int) -> tuple[Tensor, ...]:
        return forward(batch), grads[batch] @ weight, grads[batch].t() @ xs[batch]

    return Dense(forward=seconds_per_batch(forward, len(xs), device), both=seconds_per_batch(both, len(xs), device))


def seconds_per_batch(call: Call, batches: int, device: torch.device) -> float:
    """Return the median seconds of a call, all batches in turn."""

    def every() -> None:
        for batch in range(batches):
            call(batch)

    return median_seconds(graphed(every, device) or every, device) / batches


def _bsr_seconds(operands: Operands, device: torch.device) -> float | None:
    """Measure torch's forward product with the same blocks, as it comes: it has no gradients. None if it refuses."""
    index, values = operands.index, operands.values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta, and not tuned for this card
        try:
            weight = torch.sparse_bsr_tensor(
                index.indptr_t,
                index.indices_t,
                values[index.permutation].transpose(1, 2).contiguous(),
                size=(index.n_out, index.n_in),
            )
            return seconds_per_batch(lambda batch: linear(operands.xs[batch], weight), len(operands.xs), device)
        except (RuntimeError, ValueError, NotImplementedError):
            return None
