"""Seconds that a layer takes, beside the dense layer of the same shape."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._layers import SparseLinear

__all__ = ["Seconds", "beside_dense"]

_LAP = 2e-3  # seconds that one timed lap takes at least, so that the clock's own cost does not count
_BUDGET = 1.0  # seconds after which no further round is started
_ROUNDS = (5, 25)  # at least and at most

Call = Callable[[], Any]


class Seconds(NamedTuple):
    """Median seconds of one call."""

    forward: float
    forward_backward: float


def beside_dense(layer: SparseLinear | nn.Linear, inputs: tuple[int, ...]) -> tuple[Seconds | None, Seconds | None]:
    """Time a copy of `layer` and, in turns with it, its dense twin: the original's hooks and gradients stay out of it.

    Parameters
    ----------
    layer : SparseLinear or nn.Linear
        A dense layer is its own twin.
    inputs : tuple of int
        Shape of the batch, (..., in_features); its numbers are random, with a fixed seed of their own.

    Returns
    -------
    seconds : Seconds or None
        None for a layer on ``meta``, which holds no data.
    dense_seconds : Seconds or None
        None too where the dense layer would not fit in memory.
    """
    weight = layer.values if isinstance(layer, SparseLinear) else layer.weight
    if weight.is_meta:
        return None, None
    with torch.inference_mode(False), torch.enable_grad():  # gradients are wanted whatever mode the caller is in
        x = torch.randn(inputs, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
        calls = _calls(copy.deepcopy(layer), x)
        if isinstance(layer, SparseLinear):
            with suppress(SpecError, torch.OutOfMemoryError):
                calls += _calls(_dense_twin(layer), x)
        medians = _medians(calls, x.device)
    own = Seconds(*medians[:2])
    if isinstance(layer, nn.Linear):
        return own, own
    return own, Seconds(*medians[2:]) if len(medians) > 2 else None


def _dense_twin(layer: SparseLinear) -> nn.Linear:
    """Return an ``nn.Linear`` of the same shape, dtype and bias; drawing its weights would move the random state."""
    if layer.values.device.type == "cpu":
        weight = layer.in_features * layer.out_features * layer.values.itemsize
        checks.fits_in_memory(3 * weight, "model", "report")  # weight, gradient, and room to work
    twin: Any = nn.utils.skip_init(
        nn.Linear, layer.in_features, layer.out_features, bias=layer.bias is not None,
        dtype=layer.values.dtype, device=layer.values.device,
    )  # fmt: skip
    for parameter in twin.parameters():
        nn.init.constant_(parameter, 1 / layer.in_features)
    return twin


def _calls(layer: SparseLinear | nn.Linear, x: torch.Tensor) -> list[Call]:
    """Return the forward and the forward+backward call; they bypass hooks and accumulate no gradient."""
    x = x.clone().requires_grad_()
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    dy = torch.ones(*x.shape[:-1], layer.out_features, dtype=x.dtype, device=x.device)

    def forward() -> None:
        with torch.no_grad():
            layer.forward(x)

    def forward_backward() -> None:
        torch.autograd.grad(layer.forward(x), wanted, dy, allow_unused=True)

    return [forward, forward_backward]


def _medians(calls: Sequence[Call], device: torch.device) -> list[float]:
    """Return the median seconds of each call; every round times all of them."""
    repeats: list[int] = []
    for call in calls:
        call()  # compiles and allocates
        repeats.append(max(1, math.ceil(_LAP / _lap(call, 1, device))))
    laps: list[list[float]] = [[] for _ in calls]
    least, most = _ROUNDS
    start = perf_counter()
    for done in range(most):
        if done >= least and perf_counter() - start > _BUDGET:
            break
        for times, call, number in zip(laps, calls, repeats, strict=True):
            times.append(_lap(call, number, device))
    return [statistics.median(times) for times in laps]


def _lap(call: Call, number: int, device: torch.device) -> float:
    _finish(device)
    start = perf_counter()
    for _ in range(number):
        call()
    _finish(device)
    return (perf_counter() - start) / number


def _finish(device: torch.device) -> None:
    """Wait for the work that was handed to an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
