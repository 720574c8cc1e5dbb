"""The controller as a callback of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._callbacks._attached import Attached, Make
from topogen_torch.controllers import Controller

__all__ = ["ControllerCallback"]

_OWNER = "lightning_callback"


class ControllerCallback(Callback):
    """See `topogen_torch.lightning_callback`.

    Lightning restores the model, then the callbacks, then the optimizers, and only then calls `on_train_start`: what
    the checkpoint holds for the controller waits until there.
    """

    def __init__(self, make: Make, *, optimizer: int, name: str, by_layer: bool) -> None:
        self._attached = Attached(make, _OWNER, name)
        self._optimizer, self._by_layer = optimizer, by_layer
        self._saved: Mapping[str, Any] | None = None

    @property
    def controller(self) -> Controller | None:
        """The controller; None until training begins."""
        return self._attached.controller

    @property
    def state_key(self) -> str:
        """The name of the callback's state in a checkpoint."""
        return f"topogen_torch.{self._attached.name}"

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state."""
        return self.controller.state_dict() if self.controller else dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the controller's state until there is a controller."""
        self._saved = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what another checkpoint held."""
        self._saved = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the controller, or restore it."""
        saved, self._saved = self._saved, None
        if trainer.ckpt_path and saved is None:
            raise SpecError(
                f"The checkpoint {trainer.ckpt_path} must hold the state of the controller '{self._attached.name}', "
                "without which the run cannot be resumed. Got none: to begin a new controller with its weights, load "
                "them and fit without ckpt_path."
            )
        if saved is None and trainer.global_step and self.controller:  # the same trainer goes on with a new optimizer
            saved = self.controller.state_dict()
        number = checks.integer(self._optimizer, "optimizer", _OWNER, low=0, high=len(trainer.optimizers) - 1)
        self._attached.begin(pl_module, trainer.optimizers[number], lambda: trainer.estimated_stepping_batches, saved)
        if saved is None:
            self._log(trainer, pl_module)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Forget the gradients of a step that was skipped."""
        self._attached.new_gradients()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what has changed."""
        if self._attached.changed:
            self._attached.changed = False
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizer."""
        self._attached.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizer."""
        self._attached.end()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.loggers:
            figures = self._attached.figures(pl_module, by_layer=self._by_layer)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)
