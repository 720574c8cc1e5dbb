"""Seconds of the passes of a layer on a card, beside the dense product and beside torch's own block-sparse one.

The work of all batches is captured in one CUDA graph and replayed, so that neither launches nor a cache that happens to
hold the activations are measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from topogen_torch._gpu._accuracy import BOUNDS, KERNELS, relative_error, unwritten_is_nan
from topogen_torch._gpu._cases import Case, Operands, operands_of
from topogen_torch._gpu._clock import graphed, median_seconds
from topogen_torch._gpu._config import Config, Pass
from topogen_torch._gpu._dense import dense_forward, dense_input_gradient, dense_value_gradient
from topogen_torch._gpu._launch import admitted_config
from topogen_torch._gpu._traffic import through_l2
from topogen_torch._gpu._tuning import config_for

__all__ = ["Bsr", "Dense", "Row", "dense_seconds", "pass_calls", "row_of", "seconds_per_batch"]

Call = Callable[[int], Any]  # takes the number of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Seconds of a dense layer of the same size."""

    forward: float
    both: float  # forward and both gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Bsr:
    """Seconds of torch's block-sparse product, forward, and whether it could be captured as a graph."""

    forward: float
    as_graph: bool


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
    bsr: Bsr | None
    bytes: int  # that the three passes must move through the card's memory, at least
    through_l2: int | None  # bytes that our own kernels read and write, by arithmetic
    configs: tuple[Config, ...]  # of the three passes, where they are our own
    error: float  # the largest of the three passes, relative to the dense product in the same dtype
    dtype: str

    @property
    def holds(self) -> bool:
        """Whether the error is small enough; that of NaN never is."""
        return self.error <= BOUNDS[self.dtype]

    @property
    def rate(self) -> float:
        """Useful FLOP/s of the three passes together."""
        return 6 * self.tokens * self.case.n**2 * self.density / self.both


def row_of(case: Case, kernel: str, tokens: int, dtype: torch.dtype, bsr_as_graph: bool, device: torch.device) -> Row:
    """Check and measure one case by one way to compute it, a key of `KERNELS`."""
    dense = dense_seconds(case.n, tokens, dtype, device)
    operands = operands_of(case, tokens, dtype, device)
    index, batches = operands.index, len(operands.xs)
    names: list[Pass] = [name for name, _ in KERNELS[kernel]]  # pyright: ignore[reportAssignmentType]
    configs = () if kernel == "batched" else tuple(_settings(name, operands) for name in names)
    passes = pass_calls(kernel, operands)

    def traffic(name: Pass, config: Config) -> int:
        return through_l2(name, config, index, tokens, dtype.itemsize)

    error = _largest_error(passes, operands)
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
        bsr=_bsr(operands, bsr_as_graph, device) if kernel == "triton" else None,
        bytes=moved * dtype.itemsize,
        through_l2=sum(map(traffic, names, configs)) if configs else None,
        configs=configs,
        error=error,
        dtype=str(dtype).removeprefix("torch."),
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

    def call(name: str, function: Any, arguments: Callable[[int], tuple[Any, ...]]) -> Call:
        if kernel == "batched":
            return lambda batch: function(*arguments(batch))
        pass_: Any = name
        chosen = config or _settings(pass_, operands)
        return lambda batch: function(*arguments(batch), precision="ieee", config=chosen)

    return [call(name, function, arguments) for (name, function), arguments in zip(KERNELS[kernel], given, strict=True)]


def _settings(kind: Pass, operands: Operands) -> Config:
    """Return what a pass is launched with: what was measured, else the general settings."""
    index, dtype, tokens = operands.index, operands.values.dtype, operands.xs[0].shape[0]
    known = config_for(kind, index, dtype, tokens, "ieee")
    return admitted_config(known, kind, index, dtype, tokens, "ieee", "bench")


def _largest_error(passes: list[Call], operands: Operands) -> float:
    """Return what the passes err by at this very size, NaN if by more than any number."""
    x, grad, values, index = operands.xs[0], operands.grads[0], operands.values, operands.index
    true = (
        lambda: dense_forward(x, values, index),
        lambda: dense_input_gradient(grad, values, index),
        lambda: dense_value_gradient(x, grad, index),
    )
    errors: list[float] = []
    for call, expected in zip(passes, true, strict=True):
        with unwritten_is_nan():
            found = call(0)
        errors.append(relative_error(found, expected()))
    return max(errors, key=lambda error: (error != error, error))


@lru_cache(maxsize=4)
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
    every = _in_turn(call, batches)
    return median_seconds(graphed(every, device) or every, device) / batches


def _in_turn(call: Call, batches: int) -> Callable[[], None]:
    def every() -> None:
        for batch in range(batches):
            call(batch)

    return every


def _bsr(operands: Operands, as_graph: bool, device: torch.device) -> Bsr | None:
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
            every = _in_turn(lambda batch: linear(operands.xs[batch], weight), len(operands.xs))
            every()
            graph = graphed(every, device) if as_graph else None
            seconds = median_seconds(graph or every, device) / len(operands.xs)
            return Bsr(forward=seconds, as_graph=graph is not None)
        except Exception:  # it is not ours: whatever it lacks, our row stands
            return None
