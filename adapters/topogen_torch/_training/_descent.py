"""How a run goes downhill: the optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from topogen import checks

__all__ = ["OPTIMIZERS", "SCHEDULES", "check_schedule", "make_optimizer", "rate_at"]

_MAKERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda parameters, momentum, **rest: SGD(parameters, momentum=momentum, **rest),
    "nesterov": lambda parameters, momentum, **rest: SGD(parameters, momentum=momentum, nesterov=True, **rest),
    "adam": lambda parameters, momentum, **rest: Adam(parameters, betas=(momentum, 0.999), **rest),
    "adamw": lambda parameters, momentum, **rest: AdamW(parameters, betas=(momentum, 0.999), **rest),
}
OPTIMIZERS = tuple(_MAKERS)

# what is left of the first learning rate at a step, counted from 0, of so many steps
_LEFT: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2,
    "linear": lambda step, steps: 1 - step / steps,
    "constant": lambda step, steps: 1.0,
}
SCHEDULES = tuple(_LEFT)


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, owner: str
) -> Optimizer:
    """Return the optimizer of that name; `momentum` is Adam's first beta."""
    checks.one_of(name, "optimizer", owner, OPTIMIZERS)
    if (name == "nesterov" and momentum == 0) or (name.startswith("adam") and momentum == 1):
        bound = "greater than 0" if name == "nesterov" else "less than 1"
        checks.refuse("momentum", owner, f"{bound} where the optimizer is {name!r}", momentum)
    return _MAKERS[name](list(parameters), lr=lr, momentum=momentum, weight_decay=weight_decay)


def check_schedule(schedule: Any, parameter: str, owner: str) -> str | dict[int, float]:
    """Return a schedule in the form in which it is stored, or refuse it."""
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return schedule
    if not isinstance(schedule, Mapping):
        names = ", ".join(map(repr, SCHEDULES))
        checks.refuse(parameter, owner, f"{names}, or a mapping from epochs to factors", schedule)
    return {
        checks.integer(epoch, parameter, owner, low=1): checks.real(factor, parameter, owner, open_low=True)
        for epoch, factor in schedule.items()
    }


def rate_at(schedule: str | Mapping[int, float], lr: float, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    if isinstance(schedule, str):
        return lr * _LEFT[schedule](step, steps)
    return lr * math.prod(factor for epoch, factor in schedule.items() if step >= epoch * steps_per_epoch)
