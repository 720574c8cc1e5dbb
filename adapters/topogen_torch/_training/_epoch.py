"""What is known after an epoch: of the model's accuracy, and of its connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from topogen_torch._patterned import Patterned
from topogen_torch.controllers import Controller

__all__ = ["Epoch", "LayerState", "layer_states"]


@dataclass(frozen=True, slots=True)
class LayerState:
    """The connections of one sparse layer; of blocks and convolution kernels, whole units are counted.

    Attributes
    ----------
    name : str
        In the model.
    stored, possible : int
        Units that exist, and places for them.
    wanted : int
        Units that the method wants now; those that exist where it does not say.
    fan_in_min, fan_in_mean, fan_in_max : float
        Units that reach an output.
    dead : int
        Outputs that no unit reaches.
    unread : int
        Inputs that no unit reads.
    explored : float
        Share of the places that were ever occupied: the in-time over-parametrisation rate.
    survival : float
        Share of the first units that are still there.
    """

    name: str
    stored: int
    possible: int
    wanted: int
    fan_in_min: int
    fan_in_mean: float
    fan_in_max: int
    dead: int
    unread: int
    explored: float
    survival: float

    @property
    def density(self) -> float:
        """Units that exist / places for them."""
        return self.stored / self.possible

    @property
    def target(self) -> float:
        """Units that the method wants / places for them."""
        return self.wanted / self.possible

    def figures(self) -> dict[str, float]:
        """Return what tables and loggers show, by name."""
        names = (
            "density",
            "target",
            "fan_in_min",
            "fan_in_mean",
            "fan_in_max",
            "dead",
            "unread",
            "explored",
            "survival",
        )
        return {name: float(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is known after an epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    lr : float
        Learning rate of its last step.
    train_loss, train_accuracy : float
        Mean over the epoch, each image judged before the step that learned from it; accuracy in [0, 1].
    test_loss, test_accuracy : float
        Mean over the test images after the epoch.
    seconds : float
        Time of its training steps, evaluation and checkpoint not included.
    layers : tuple of LayerState
        The sparse layers after the epoch, in the model's order.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    layers: tuple[LayerState, ...] = ()

    @property
    def density(self) -> float:
        """Units that exist / places for them, over all sparse layers; 1 where there are none."""
        possible = sum(layer.possible for layer in self.layers)
        return sum(layer.stored for layer in self.layers) / possible if possible else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the row as numbers, strings, lists and dicts."""
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Epoch:
        """Return what `to_dict` was called on."""
        return cls(**{**row, "layers": tuple(LayerState(**layer) for layer in row["layers"])})


def layer_states(model: nn.Module, controller: Controller | None) -> tuple[LayerState, ...]:
    """Look at every sparse layer; one that no controller changes has explored what it has, and lost nothing."""
    explored = controller.explored() if controller else {}
    survival = controller.survival() if controller else {}
    layers = {name or "(model)": module for name, module in model.named_modules() if isinstance(module, Patterned)}
    wanted = controller.wanted() if controller else {}
    return tuple(
        _state(name, layer, wanted.get(name), explored.get(name), survival.get(name, 1.0))
        for name, layer in layers.items()
    )


def _state(name: str, layer: Patterned, wanted: int | None, explored: float | None, survival: float) -> LayerState:
    n_in, n_out = layer._stored_sizes
    indptr, indices = layer.indptr.cpu().numpy(), layer.indices.cpu().numpy()
    fan_in = np.bincount(indices, minlength=n_out)
    return LayerState(
        name=name,
        stored=len(indices),
        possible=n_in * n_out,
        wanted=len(indices) if wanted is None else wanted,
        fan_in_min=int(fan_in.min()),
        fan_in_mean=float(fan_in.mean()),
        fan_in_max=int(fan_in.max()),
        dead=int((fan_in == 0).sum()),
        unread=int((np.diff(indptr) == 0).sum()),
        explored=layer.density if explored is None else explored,
        survival=survival,
    )
