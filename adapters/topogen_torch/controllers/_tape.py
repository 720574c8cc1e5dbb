"""What goes through a layer in training steps, kept for the gradients of connections that do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from topogen_torch._patterned import Patterned

__all__ = ["Pair", "Tape"]


class Pair(NamedTuple):
    """One pass through a layer: its inputs, the gradient of its outputs, and how many steps ago it was."""

    x: Tensor
    dy: Tensor
    age: int = 0


class Tape:
    """Records a layer's inputs and the gradients of its outputs while `on`; every micro-batch adds a pair.

    Costs nothing while it is off. The gradient of the loss for the weight from input i to output j, present or not, is
    the sum over all samples of ``x_i * dy_j``.

    Parameters
    ----------
    layer : Patterned
    window : int
        Training steps whose pairs are kept. With more than one, inputs are copied, since their memory may be used
        again before the gradients are.
    decay : float
        What a pair of age a counts: ``decay ** a``.
    """

    def __init__(self, layer: Patterned, *, window: int = 1, decay: float = 1.0) -> None:
        self.layer = layer
        self.window, self.decay = window, decay
        self.pairs: list[Pair] = []
        self._handle: RemovableHandle | None = None

    @property
    def on(self) -> bool:
        """Whether passes are being recorded."""
        return self._handle is not None

    def start(self) -> None:
        """Record from now on."""
        if self._handle is None:
            self._handle = self.layer.register_forward_hook(self._see)
            self.layer._observer = self._take  # for modules that read the weights and do not call the layer

    def stop(self) -> None:
        """Record no more and forget what was recorded."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self.layer._observer = None
        self.pairs.clear()

    def next_step(self) -> None:
        """Let everything grow one step older, and forget what leaves the window."""
        self.pairs[:] = [pair._replace(age=pair.age + 1) for pair in self.pairs if pair.age + 1 < self.window]

    def weight(self, pair: Pair) -> float:
        """Return the factor before a pair's gradient."""
        return self.decay**pair.age

    def state(self) -> list[list[Any]]:
        """Return the pairs as lists of tensors and numbers."""
        return [list(pair) for pair in self.pairs]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Take over pairs that were saved."""
        device = self.layer.values.device
        self.pairs[:] = [Pair(x.to(device), dy.to(device), int(age)) for x, dy, age in state]

    def _see(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            x = inputs[0].detach()
            output.register_hook(lambda dy: self._take(x, dy))

    def _take(self, x: Tensor, dy: Tensor) -> None:
        x = x.detach()
        self.pairs.append(Pair(x.clone() if self.window > 1 else x, dy.detach()))
