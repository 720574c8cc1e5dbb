"""Every kernel against the same product in float64, on random operands."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from topogen_torch._gpu._batched import batched_forward, batched_input_gradient, batched_value_gradient
from topogen_torch._gpu._cases import Case, Operands, operands_of
from topogen_torch._gpu._circulant import circulant_forward, circulant_input_gradient, circulant_value_gradient
from topogen_torch._gpu._config import Precision
from topogen_torch._gpu._dense import dense_forward, dense_input_gradient, dense_value_gradient
from topogen_torch._gpu._forward import block_forward
from topogen_torch._gpu._input_gradient import block_input_gradient
from topogen_torch._gpu._launch import is_interpreted
from topogen_torch._gpu._value_gradient import block_value_gradient

__all__ = ["BOUNDS", "KERNELS", "TOKENS", "Accuracy", "accuracies", "relative_error", "unwritten_is_nan"]

BOUNDS = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest relative error, ``|found - true| / |true|`` in the Frobenius norm: a few roundings of each kind of number."""

KERNELS: dict[str, tuple[tuple[str, Any], ...]] = {
    "triton": (
        ("forward", block_forward),
        ("input_gradient", block_input_gradient),
        ("value_gradient", block_value_gradient),
    ),
    "circulant": (
        ("circulant_forward", circulant_forward),
        ("circulant_input_gradient", circulant_input_gradient),
        ("circulant_value_gradient", circulant_value_gradient),
    ),
    "batched": (
        ("batched_forward", batched_forward),
        ("batched_input_gradient", batched_input_gradient),
        ("batched_value_gradient", batched_value_gradient),
    ),
}
"""The three passes of each way to compute a layer: forward, gradient of the input, gradient of the values."""

_RADICES = 4, 2
TOKENS = 200

_log = logging.getLogger("topogen")


class Accuracy(NamedTuple):
    """One kernel in one kind of arithmetic; `error` is None where it was not checked."""

    kernel: str
    block: int
    arithmetic: str
    error: float | None

    @property
    def holds(self) -> bool:
        """Whether the error is small enough; that of NaN never is."""
        return self.error is None or self.error <= BOUNDS[self.arithmetic]


def accuracies(
    blocks: Sequence[int],
    device: torch.device,
    *,
    tokens: int = TOKENS,
    arithmetics: Sequence[str] = tuple(BOUNDS),
    ways: Sequence[str] = tuple(KERNELS),
) -> list[Accuracy]:
    """Return what every pass errs by, for random blocks and a RadiX layer, in every kind of arithmetic.

    bfloat16 is not checked in Triton's interpreter, which multiplies the bits of bfloat16 as if they were numbers.
    """
    return list(_accuracies(blocks, device, tokens, arithmetics, ways))


def _accuracies(
    blocks: Sequence[int], device: torch.device, tokens: int, arithmetics: Sequence[str], ways: Sequence[str]
) -> Iterator[Accuracy]:
    nodes = _RADICES[0] * _RADICES[1]
    for block in blocks:
        cases = {
            "triton": Case(nodes * block, block, "random", 0.5),
            "circulant": Case(nodes * block, block, "RadiX", 0.5, _RADICES),
            "batched": Case(nodes * block, block, "RadiX", 0.75, _RADICES, 1),
        }
        for arithmetic in arithmetics:
            dtype = getattr(torch, "float32" if arithmetic == "tf32" else arithmetic)
            for way in ways:
                case = cases[way]
                if way == "batched" and arithmetic == "tf32":
                    continue  # multiplied by torch, as `torch.backends.cuda.matmul` has it
                if arithmetic == "bfloat16" and is_interpreted():
                    yield from (Accuracy(name, block, arithmetic, None) for name, _ in KERNELS[way])
                    continue
                operands = operands_of(case, tokens, dtype, device)
                yield from _errors(way, operands, arithmetic)


def _errors(way: str, operands: Operands, arithmetic: str) -> Iterator[Accuracy]:
    index, values, x, grad = operands.index, operands.values, operands.xs[0], operands.grads[0]
    bias = grad[0].clone()
    precision: Precision = "tf32" if arithmetic == "tf32" else "ieee"
    exact_x, exact_grad, exact_values = x.double(), grad.double(), values.double()
    true = (
        dense_forward(exact_x, exact_values, index, bias.double()),
        dense_input_gradient(exact_grad, exact_values, index),
        dense_value_gradient(exact_x, exact_grad, index),
    )
    arguments = (x, values, index, bias), (grad, values, index), (x, grad, index)
    for (name, kernel), given, expected in zip(KERNELS[way], arguments, true, strict=True):
        try:
            with unwritten_is_nan():
                found = kernel(*given, **({} if way == "batched" else {"precision": precision})).double()
        except Exception as failure:  # of whatever kind: the others are checked, and this one is wrong
            _log.error("%s, blocks of %d, %s: %s: %s", name, index.block, arithmetic, type(failure).__name__, failure)
            yield Accuracy(name, index.block, arithmetic, math.nan)
            continue
        yield Accuracy(name, index.block, arithmetic, relative_error(found, expected))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ``|found - expected| / |expected|`` in the Frobenius norm; NaN for NaN."""
    found, expected = (each if each.dtype == torch.float64 else each.float() for each in (found, expected))
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@contextmanager
def unwritten_is_nan() -> Generator[None]:
    """Let torch fill what it allocates with NaN, so that a kernel which leaves something out is seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some of torch's own products may not be deterministic
        before = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
