"""What happens to the nets of the study of Alford et al. while they learn: nothing, or pruning that is written down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from topogen_torch._layers import SparseLinear
from topogen_torch._rewire import Rewiring
from topogen_torch.controllers._base import Controller
from topogen_torch.controllers._prune import GradualMagnitude

__all__ = ["Pruning", "Unchanged", "Update", "decay_linear_weights_only"]


def decay_linear_weights_only(model: nn.Module, optimizer: Optimizer) -> None:
    """Take biases and kernels out of the weight decay, as the authors' penalty is one of linear layers' weights."""
    (group,) = optimizer.param_groups
    decayed = [layer.values for layer in model.modules() if isinstance(layer, SparseLinear)]
    spared = [one for one in group["params"] if not any(one is values for values in decayed)]
    group["params"] = decayed
    optimizer.add_param_group({"params": spared, "weight_decay": 0.0})


class Update(NamedTuple):
    """What one pruning left.

    Attributes
    ----------
    step : int
        Counted from 1.
    density : float
        Connections / possible connections, over all layers.
    thresholds : tuple of float
        The least magnitude that stayed, layer by layer.
    """

    step: int
    density: float
    thresholds: tuple[float, ...]


class Pruning(GradualMagnitude):
    """Gradual pruning by magnitude that keeps a record of its updates."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, **settings: Any) -> None:
        self.updates: list[Update] = []
        super().__init__(model, optimizer, **settings)

    def _carry_out(self, rewirings: Iterable[Rewiring]) -> None:
        super()._carry_out(rewirings)
        density = sum(t.stored for t in self.targets) / sum(t.possible for t in self.targets)
        thresholds = tuple(float(t.layer.values.detach().abs().min()) for t in self.targets)
        self.updates.append(Update(self.steps, density, thresholds))


class Unchanged(Controller):
    """No method: the connections stay as they are."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        super().__init__(model, optimizer, settings={})

    def _due(self, step: int) -> bool:
        return False

    def _proposal(self, step: int) -> list[Rewiring]:
        return []
