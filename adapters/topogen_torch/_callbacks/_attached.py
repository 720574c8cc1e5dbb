"""A controller that is tied to an optimizer, so that it steps when, and only when, the optimizer does."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._training._epoch import layer_states
from topogen_torch.controllers import Controller

__all__ = ["NAME", "Attached", "Make"]

NAME = "controller"
"""Of the one controller of a run; where there are several, each has another."""

Make = Callable[..., Controller]
"""``(model, optimizer) -> Controller`` or ``(model, optimizer, total_steps) -> Controller``."""


class Attached:
    """What the callbacks of all frameworks share: a controller that is made late and follows its optimizer.

    The controller hangs on the optimizer itself and not on an event of the framework. Whatever the framework calls a
    step, with gradients that accumulate, a loss scale that skips one, or a loop that the user wrote, the controller
    steps directly after each ``optimizer.step()`` that took place.
    """

    def __init__(self, make: Make, owner: str, name: str) -> None:
        self._make, self._owner, self.name = make, owner, checks.instance(name, "name", owner, str)
        self._wants_total = _wants_total(make, owner)
        self.controller: Controller | None = None
        self.changed = False
        self._handle: RemovableHandle | None = None
        self._stepped = True

    def begin(
        self, model: nn.Module, optimizer: Optimizer, total: Callable[[], float], saved: Mapping[str, Any] | None
    ) -> None:
        """Make the controller for a model and an optimizer whose states are loaded; `saved` is the controller's own."""
        self.end()
        optimizer = _unwrapped(optimizer)
        steps = (self._known(total()),) if self._wants_total else ()
        controller = self._make(model, optimizer, *steps)
        if not isinstance(controller, Controller) or controller.optimizer is not optimizer:
            checks.refuse(
                "make",
                self._owner,
                "a callable that returns a controller of the optimizer that it gets",
                controller,
            )
        if saved is not None:
            controller.load_state_dict(saved)
        self.controller, self._stepped = controller, True
        self._handle = optimizer.register_step_post_hook(self._step)

    def end(self) -> None:
        """Let go of the optimizer; the controller stays to be looked at."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def new_gradients(self) -> None:
        """Say that gradients begin anew; those of a step that the optimizer skipped are forgotten."""
        if self.controller is not None and not self._stepped:
            self.controller.forget()
        self._stepped = False

    def figures(self, model: nn.Module, *, by_layer: bool) -> dict[str, float]:
        """Return the figures of all controlled layers together, and of each, as what loggers take."""
        assert self.controller is not None
        controlled = {target.name for target in self.controller.targets}
        layers = [layer for layer in layer_states(model, self.controller) if layer.name in controlled]
        possible = sum(layer.possible for layer in layers)
        figures = {
            "density": sum(layer.stored for layer in layers) / possible,
            "dead_neurons": float(sum(layer.dead for layer in layers)),
            "explored": sum(layer.explored * layer.possible for layer in layers) / possible,
        }
        for layer in layers if by_layer else ():
            figures[f"density/{layer.name}"] = layer.density
            figures[f"dead_neurons/{layer.name}"] = float(layer.dead)
            figures[f"explored/{layer.name}"] = layer.explored
            figures[f"survival/{layer.name}"] = layer.survival
        return figures if self.name == NAME else {f"{self.name}/{key}": value for key, value in figures.items()}

    def _step(self, *_: Any) -> None:
        assert self.controller is not None
        self._stepped = True
        if self.controller.step():
            self.changed = True

    def _known(self, total: float) -> int:
        if not math.isfinite(total) or total < 1:  # -1 and inf both stand for "no end"
            raise SpecError(
                f"The 'make' parameter of {self._owner} takes the total number of steps, so the trainer must know it: "
                f"limit the steps or epochs, and train on data that has a length. Got {total}."
            )
        return int(total)


def _wants_total(make: Make, owner: str) -> bool:
    """Whether the callable needs the total number of steps as its third argument."""
    fitting = [count for count in (2, 3) if callable(make) and _takes(make, count)]
    if not fitting:
        checks.refuse("make", owner, "a callable (model, optimizer) or (model, optimizer, total_steps)", make)
    return fitting[0] == 3


def _takes(make: Make, count: int) -> bool:
    try:
        inspect.signature(make).bind(*(None,) * count)
    except TypeError:
        return False
    return True


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that holds the state, out of what frameworks wrap around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
