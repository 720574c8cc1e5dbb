"""The controller as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._callbacks._attached import Attached, Make
from topogen_torch.controllers import Controller

__all__ = ["ControllerCallback", "callback_of"]

_OWNER = "transformers_callback"


class ControllerCallback(TrainerCallback, ExportableState):
    """See `topogen_torch.transformers_callback`.

    The Trainer knows callbacks by the name of their class, and may make them anew from the class alone: each has a
    class of its own, made by `callback_of`. Their states are a part of the checkpoint's ``trainer_state.json``.
    """

    _settings: ClassVar[tuple[Make, bool]]

    def __init__(self) -> None:
        make, self._by_layer = self._settings
        self._attached = Attached(make, _OWNER, type(self).__name__)

    @property
    def controller(self) -> Controller | None:
        """The controller; None until training begins."""
        return self._attached.controller

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into a checkpoint: the controller's state as text."""
        return {"args": {}, "attributes": {}, "controller": self.controller and _text(self.controller.state_dict())}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the controller, or restore it: the model and the optimizer have their states already."""
        model: nn.Module = kwargs["model"]
        optimizer: Optimizer = kwargs["optimizer"]
        name = self._attached.name
        every: Any = state.stateful_callbacks
        stored = every.get(name)
        if isinstance(stored, list):
            raise SpecError(
                f"The 'name' parameter of {_OWNER} must differ between the callbacks of a Trainer. "
                f"Got {len(stored)} named '{name}'."
            )
        saved = None
        if state.global_step:
            text: str | None = stored and stored["controller"]
            if not text:
                raise SpecError(
                    f"The checkpoint of step {state.global_step} must hold the state of the controller '{name}', "
                    "without which the run cannot be resumed. Got none: to begin a new controller with its weights, "
                    "load them and train without resume_from_checkpoint."
                )
            saved = _state(text)
        self._attached.begin(model, optimizer, lambda: state.max_steps, saved)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the gradients of a step that was skipped."""
        self._attached.new_gradients()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the figures to what is logged of training: to its history, and for the callbacks behind this one."""
        logs = kwargs["logs"]
        if "loss" in logs:
            figures = self._attached.figures(kwargs["model"], by_layer=self._by_layer)
            logs.update(figures)
            state.log_history[-1].update(figures)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the optimizer."""
        self._attached.end()


def callback_of(make: Make, *, name: str, by_layer: bool) -> ControllerCallback:
    """Return a callback whose class has this name and these settings."""
    return type(checks.instance(name, "name", _OWNER, str), (ControllerCallback,), {"_settings": (make, by_layer)})()


def _text(state: dict[str, Any]) -> str:
    """Return a state as text, since the Trainer keeps callbacks' states in a JSON file."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(zlib.compress(file.getvalue(), 1)).decode("ascii")


def _state(text: str) -> dict[str, Any]:
    """Return the state that `_text` was given."""
    return torch.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), weights_only=True)
