"""What goes through a layer in training steps, kept for the gradients of connections that do not exist."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
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

    A tape ends with whoever holds it: the layer does not keep it alive, and a copy of the layer has none. While any is
    on, models run as if `torch.compile` had not been called, since what it traced before knows nothing of a tape.

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
        self._end: weakref.finalize[..., Tape] | None = None

    @property
    def on(self) -> bool:
        """Whether passes are being recorded."""
        return self._end is not None

    def start(self) -> None:
        """Record from now on."""
        if self._end is None:
            ear = _Ear(self)
            handle = self.layer.register_forward_hook(ear, with_kwargs=True)
            self.layer._observer = ear.take  # for modules that read the weights and do not call the layer
            self._end = weakref.finalize(self, _let_go, weakref.ref(self.layer), handle, ear)
            self._end.atexit = False
        _on.add(self)
        _run_as_recorded()

    def stop(self) -> None:
        """Record no more and forget what was recorded."""
        if self._end is not None:
            _on.discard(self)
            self._end()
            self._end = None
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

    def _take(self, x: Tensor, dy: Tensor) -> None:
        x = x.detach()
        self.pairs.append(Pair(x.clone() if self.window > 1 else x, dy.detach()))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_end": None, "on": self.on}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Listen to a copied layer, whose ears are deaf, as the tape that was copied listened to its own."""
        vars(self).update({name: entry for name, entry in state.items() if name != "on"})
        for key in [key for key, hook in self.layer._forward_hooks.items() if isinstance(hook, _Ear)]:
            del self.layer._forward_hooks[key], self.layer._forward_hooks_with_kwargs[key]
        if state["on"]:
            self.start()


class _Ear:
    """What a layer calls while it is recorded: it does not keep the tape alive, and a copy of it hears nothing."""

    def __init__(self, tape: Tape | None = None) -> None:
        self._tape = None if tape is None else weakref.ref(tape)

    def __call__(self, layer: Any, arguments: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> None:
        if output.requires_grad:
            x = (*arguments, *named.values())[0].detach()
            output.register_hook(lambda dy: self.take(x, dy))

    def take(self, x: Tensor, dy: Tensor) -> None:
        """Add a pair to the tape, if it is there and on."""
        tape = self._tape and self._tape()
        if tape is not None and tape.on:
            tape._take(x, dy)

    def __reduce__(self) -> Any:
        return _Ear, ()


def _let_go(layer: weakref.ref[Patterned], handle: RemovableHandle, ear: _Ear) -> None:
    """Leave a layer, which may be gone already, and may have another tape by now."""
    handle.remove()
    held = layer()
    if held is not None and getattr(held._observer, "__self__", None) is ear:
        held._observer = None
    _run_as_recorded()


_on: weakref.WeakSet[Tape] = weakref.WeakSet()
_eager: list[ExitStack] = []  # what ends it, while compiled models run uncompiled


def _run_as_recorded() -> None:
    """Let what is compiled run uncompiled as long as any tape is on."""
    is_on = any(True for _ in _on)
    if is_on and not _eager and "torch._dynamo" in sys.modules:
        _eager.append(ExitStack())
        _eager[0].enter_context(torch.compiler.set_stance("force_eager"))
    elif not is_on and _eager:
        _eager.pop().close()
