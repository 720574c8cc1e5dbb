"""Seconds that a module takes, beside its dense twin."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._conversion._kinds import is_sparse
from topogen_torch._conversion._swap import densified
from topogen_torch._gpu._clock import seconds_of
from topogen_torch._patterned import Patterned

__all__ = [
    "OPTIMIZERS", "Call", "Inputs", "Seconds", "beside_dense", "calls_of", "check_room", "medians", "random_inputs",
]  # fmt: skip

_LAP = 2e-3  # seconds that one timed lap takes at least, so that the clock's own cost does not count
_BUDGET = 1.0  # seconds after which no further round is started
_ROUNDS = (5, 25)  # at least and at most

Call = Callable[[], Any]

# With a rate of 0 a step costs what it always costs, and a thousand of them leave the weights where they are.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.0),
}


class Seconds(NamedTuple):
    """Median seconds of one call.

    Attributes
    ----------
    forward : float
        The forward pass, without a graph.
    forward_backward : float
        The forward pass and all gradients, the inputs' included.
    step : float
        The same and the optimizer's step.
    """

    forward: float
    forward_backward: float
    step: float


class Inputs(NamedTuple):
    """Arguments of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}


def beside_dense(module: nn.Module, inputs: Inputs, optimizer: str = "adam") -> tuple[Seconds | None, Seconds | None]:
    """Time a copy of `module` and, in turns with it, its dense twin: the original's hooks and gradients stay out of it.

    Parameters
    ----------
    module : nn.Module
        A topogen layer, or a dense module, which is its own twin.
    inputs : Inputs
        What it is called with.
    optimizer : {"adam", "momentum", "sgd"}
        Which one takes the step.

    Returns
    -------
    seconds : Seconds or None
        None for a module on ``meta``, which holds no data.
    dense_seconds : Seconds or None
        None too where the dense twin would not fit in memory.
    """
    first = next(module.parameters())
    if first.is_meta:
        return None, None
    with torch.inference_mode(False), torch.enable_grad():  # gradients are wanted whatever mode the caller is in
        calls = calls_of(copy.deepcopy(module), inputs, optimizer)
        sparse = is_sparse(module)
        if sparse:
            with suppress(SpecError, torch.OutOfMemoryError):
                check_room(module)
                calls += calls_of(densified(module), inputs, optimizer)
        found = medians(calls, first.device)
    own = Seconds(*found[:3])
    if not sparse:
        return own, own
    return own, Seconds(*found[3:]) if len(found) > 3 else None


def check_room(module: nn.Module) -> None:
    """Raise `SpecError` if the dense namesakes of the layers on the CPU would not fit in memory."""
    layers = [part for part in module.modules() if isinstance(part, Patterned) and part.values.device.type == "cpu"]
    weights = sum(math.prod((*part._stored_sizes, *part._unit)) * part.values.itemsize for part in layers)
    checks.fits_in_memory(3 * weights, "model", "report")  # weights, gradients, and room to work


def random_inputs(module: nn.Module, shape: tuple[int, ...]) -> Inputs:
    """Return one random batch of the module's dtype and device; its numbers have a fixed seed of their own."""
    first = next(module.parameters())
    return Inputs((torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype),))


def calls_of(module: nn.Module, inputs: Inputs, optimizer: str, *, input_gradients: bool = True) -> list[Call]:
    """Return the forward, the forward + backward and the step call; the module becomes theirs, and loses its hooks."""
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    args = tuple(_leaf(value, input_gradients) for value in inputs.args)
    kwargs = {name: _leaf(value, input_gradients) for name, value in inputs.kwargs.items()}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    leaves = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.requires_grad]
    wanted = [*leaves, *parameters]
    stepper = OPTIMIZERS[optimizer](parameters) if parameters else None

    def outputs() -> list[torch.Tensor]:
        found = tree_leaves(module.forward(*args, **kwargs))
        return [value for value in found if isinstance(value, torch.Tensor) and value.requires_grad]

    with torch.enable_grad():
        upstream = [torch.ones_like(value) for value in outputs()]

    def forward() -> None:
        with torch.no_grad():
            module.forward(*args, **kwargs)

    def forward_backward() -> tuple[torch.Tensor | None, ...]:
        return torch.autograd.grad(outputs(), wanted, upstream, allow_unused=True)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        gradients = forward_backward()[len(leaves) :]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if stepper is not None:
            stepper.step()

    return [forward, forward_backward, step]


def medians(calls: Sequence[Call], device: torch.device, budget: float | None = None) -> list[float]:
    """Return the median seconds of each call; every round times all of them."""
    repeats: list[int] = []
    for call in calls:
        call()  # compiles and allocates
        repeats.append(max(1, math.ceil(_LAP / _lap(call, 1, device))))
    laps: list[list[float]] = [[] for _ in calls]
    least, most = _ROUNDS
    start = perf_counter()
    for done in range(most):
        if done >= least and perf_counter() - start > (_BUDGET if budget is None else budget):
            break
        for times, call, number in zip(laps, calls, repeats, strict=True):
            times.append(_lap(call, number, device))
    return [statistics.median(times) for times in laps]


def _leaf(value: Any, wants_gradient: bool) -> Any:
    """Return a tensor's own copy; one of floats may want a gradient."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(wants_gradient and value.is_floating_point())


def _lap(call: Call, number: int, device: torch.device) -> float:
    if device.type == "cuda":
        return seconds_of(call, number, device)  # by events on the card: the host's clock would count its waiting
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
