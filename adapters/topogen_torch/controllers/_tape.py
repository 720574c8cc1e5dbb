"""What goes through a layer in one training step, kept for the gradients of connections that do not exist."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from topogen_torch._patterned import Patterned

__all__ = ["Tape"]


class Tape:
    """Records a layer's inputs and the gradients of its outputs while `on`; every micro-batch adds a pair.

    Costs nothing while it is off. The gradient of the loss for the weight from input i to output j, present or not, is
    the sum over all samples of ``x_i * dy_j``.
    """

    def __init__(self, layer: Patterned) -> None:
        self.layer = layer
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._handle: RemovableHandle | None = None

    @property
    def on(self) -> bool:
        """Whether passes are being recorded."""
        return self._handle is not None

    def start(self) -> None:
        """Record from now on."""
        if self._handle is None:
            self._handle = self.layer.register_forward_hook(self._see)

    def stop(self) -> None:
        """Record no more and forget what was recorded."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.pairs.clear()

    def _see(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            x = inputs[0].detach()
            output.register_hook(lambda dy: self.pairs.append((x, dy.detach())))
