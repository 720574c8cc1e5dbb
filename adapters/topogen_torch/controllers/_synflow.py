"""Iterated synaptic flow: prune before training, without data, in so many rounds that no layer collapses."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._rewire import Rewiring
from topogen_torch.controllers._at_init import flow_scores
from topogen_torch.controllers._base import Controller
from topogen_torch.controllers._places import best, best_within, rounded_down, whole_units

__all__ = ["SynFlow"]

_log = logging.getLogger("topogen")


class SynFlow(Controller):
    """Prune once, before training and without data, by synaptic flow that is measured anew in every round.

    In round e = 1 ... `rounds` the connections with the largest scores of all layers together stay, so many that of n
    at first and m at last there are ``n (m / n)**(e / rounds)``, rounded; then the scores of what is left are computed.
    Blocks and kernels stay or go as wholes, by their score over the number of their weights.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer. It takes one tensor and returns one.
    optimizer : torch.optim.Optimizer, optional
        Its state follows; None where nothing is trained yet.
    input_shape : sequence of int
        Shape of one sample.
    density : float, in (0, 1]
        What is to be left in all controlled layers together: connections / possible connections, exactly.
    rounds : int >= 1
    least : int >= 0
        What guards against the collapse of a layer. With 0, a round in which a layer would lose all that it has is an
        error and the model is not changed; otherwise every layer keeps at least so many of its units, other layers
        give way, and the log says so once.
    layers : str or sequence of str
        See `Controller`. What is not controlled stays whole, and the flow goes through it.

    Raises
    ------
    SpecError
        If a parameter is none of these, or there are fewer connections than are to stay.

    Notes
    -----
    The first `step` prunes; later ones do nothing. It costs `rounds` passes of one sample; see `synflow_scores`.

    References
    ----------
    H. Tanaka, D. Kunin, D. Yamins, S. Ganguli, NeurIPS 2020, algorithm 1.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])))
    >>> tt.SynFlow(model, input_shape=[20], density=0.1).step(), model[0].nnz + model[2].nnz
    (True, 25)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        input_shape: Sequence[int],
        density: float,
        rounds: int = 100,
        least: int = 0,
        layers: str | Sequence[str] = "*",
    ) -> None:
        owner = "SynFlow"
        checks.real(density, "density", owner, high=1.0, open_low=True)
        self._shape = checks.integers(input_shape, "input_shape", owner, low=1, at_least=1)
        self._rounds = checks.integer(rounds, "rounds", owner, low=1)
        self._least = checks.integer(least, "least", owner, low=0)
        settings = {"density": density, "input_shape": list(self._shape), "rounds": rounds, "least": least}
        super().__init__(model, optimizer, layers=layers, settings=settings)
        self._sizes = [math.prod(target.layer._unit) for target in self.targets]
        possible = [target.possible for target in self.targets]
        self._last = self._weights(whole_units(density, possible, self._sizes))
        self._refuse_impossible(density)

    def _weights(self, units: Sequence[int]) -> int:
        """Return how many weights so many units of each target have."""
        return sum(count * size for count, size in zip(units, self._sizes, strict=True))

    def _refuse_impossible(self, density: float) -> None:
        stored, possible = (self._weights([getattr(t, name) for t in self.targets]) for name in ("stored", "possible"))
        if self._last > stored:
            raise SpecError(
                f"The 'density' parameter of SynFlow must be at most that of the layers, "
                f"{rounded_down(stored, possible)}, since pruning adds nothing. Got {density:g}."
            )
        needed = self._weights([min(max(1, self._least), target.stored) for target in self.targets])
        if self._last < needed:
            raise SpecError(
                f"The 'density' parameter of SynFlow must leave {max(1, self._least)} of its connections to each "
                f"layer, at least {needed / possible:.6g}. Got {density:g}."
            )

    def _due(self, step: int) -> bool:
        return step == 1

    def _proposal(self, step: int) -> list[Rewiring]:
        layers = {target.name: target.layer for target in self.targets}
        kept = {
            name: torch.ones(len(layer.values), dtype=torch.bool, device=layer.values.device)
            for name, layer in layers.items()
        }
        unit = math.gcd(*self._sizes)  # all that units of one size can make
        first = max(1, self._weights([target.stored for target in self.targets]) // unit)
        last = self._last // unit
        guarded = False
        for number in range(1, self._rounds + 1):
            budget = unit * round(first * (last / first) ** (number / self._rounds))
            flows = flow_scores(self.model, layers, self._shape, kept, "SynFlow")
            scores = [
                flow.masked_fill(~kept[name], -1).cpu().numpy() / size
                for (name, flow), size in zip(flows.items(), self._sizes, strict=True)
            ]
            chosen, helped = self._chosen(scores, budget, number)
            guarded = guarded or helped
            kept = {name: torch.from_numpy(own).to(kept[name].device) for name, own in zip(kept, chosen, strict=True)}
        if guarded:
            _log.warning("SynFlow leaves %d of their connections to layers that would have kept fewer.", self._least)
        return [Rewiring.keeping(t.layer, kept[t.name].cpu().numpy()) for t in self.targets]

    def _chosen(
        self, scores: list[NDArray[np.float64]], budget: int, number: int
    ) -> tuple[list[NDArray[np.bool_]], bool]:
        """Return which units stay in each layer, the best of all and of each at least `least`, and if that mattered."""
        borders = np.cumsum([0, *map(len, scores)])
        joint, sizes = np.concatenate(scores), np.repeat(self._sizes, [len(own) for own in scores])
        stay = np.zeros(len(joint), np.bool_)
        stay[best_within(joint, sizes, budget)] = True
        pieces = np.split(stay, borders[1:-1])
        if not self._least:
            for target, own in zip(self.targets, pieces, strict=True):
                if target.stored and not own.any():
                    raise SpecError(
                        f"SynFlow changes nothing: in round {number} of {self._rounds} layer '{target.name}' would "
                        "lose all its connections. A higher density, or least=1, keeps it."
                    )
            return pieces, False
        if all(own.sum() >= min(self._least, len(own)) for own in pieces):
            return pieces, False
        raised = joint.copy()
        for begin, own in zip(borders, scores, strict=False):
            raised[begin + best(own, self._least)] = np.inf
        stay[:] = False
        stay[best_within(raised, sizes, budget)] = True
        return np.split(stay, borders[1:-1]), True
