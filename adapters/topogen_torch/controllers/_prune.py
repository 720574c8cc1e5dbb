"""Pruning: connections go and never come back."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from topogen import Schedule, checks, connection_counts
from topogen.errors import SpecError
from topogen_torch._block import BlockSparseLinear
from topogen_torch._conv import SparseConv1d, SparseConv2d
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Rewiring
from topogen_torch.controllers._base import Controller, Target
from topogen_torch.controllers._places import (
    best,
    best_within,
    count_of,
    largest_remainders,
    rounded_down,
    whole_units,
)
from topogen_torch.controllers.criteria import Score, checked_score, per_weight, scored

__all__ = ["GradualMagnitude", "OneShot", "Pruner"]

_SCOPES = ("layer", "global")
_DISTRIBUTIONS = ("uniform", "er", "erk", "global")


class Pruner(Controller):
    """What pruning methods share: keep the best by a score, so many in each layer or in all layers together."""

    _per_layer = ("density", "score")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        score: str | Score | Mapping[str, Tensor],
        scope: str,
        settings: Mapping[str, Any],
        **shared: Any,
    ) -> None:
        owner = type(self).__name__
        checks.one_of(scope, "scope", owner, _SCOPES)
        checked_score(score, owner, may_draw=shared.get("rng") is not None)
        distribution = checks.one_of(settings.get("distribution", "uniform"), "distribution", owner, _DISTRIBUTIONS)
        if scope == "global" and distribution not in ("uniform", "global"):
            raise SpecError(
                f"The 'scope' parameter of {owner} must be 'layer' with distribution='{distribution}', which shares "
                "the density out among the layers. Got 'global'."
            )
        super().__init__(model, optimizer, settings={**settings, "score": score, "scope": scope}, **shared)
        self._distribution, self._joint = distribution, "global" in (scope, distribution)
        if self._joint and self._groups:
            asked = "scope='global'" if scope == "global" else "distribution='global'"
            raise SpecError(f"The 'groups' parameter of {owner} must be empty with {asked}. Got {self._groups}.")
        if distribution != "uniform" and any("density" in group for group in self._groups):
            raise SpecError(
                f"The 'groups' parameter of {owner} must set no density with distribution='{distribution}', which "
                f"shares one out. Got {self._groups}."
            )
        for group in self._groups:
            checked_score(group.get("score", "magnitude"), owner, may_draw=self._seed is not None)
            if "density" in group:
                checks.real(group["density"], "density", owner, high=1.0, open_low=True)

    @property
    def _sizes(self) -> list[int]:
        """Weights of a unit of each target."""
        return [math.prod(target.layer._unit) for target in self.targets]

    def _shared_out(self, density: float) -> list[int]:
        """Return the number of units of each target at a density of all together, as `distribution` shares it out."""
        if self._joint:  # rounded once, since only the sum counts
            return whole_units(density, [target.possible for target in self.targets], self._sizes)
        if self._distribution == "uniform":
            return [count_of(target.at("density", self._count), target.possible) for target in self.targets]
        shapes = [_weight_shape(target.layer) for target in self.targets]
        weights = connection_counts(shapes, density=density, distribution=self._distribution)
        return largest_remainders([Fraction(w, size) for w, size in zip(weights, self._sizes, strict=True)])

    def _kept(self, wanted: Sequence[int]) -> list[Rewiring]:
        """Return the rewirings that leave `wanted[k]` units in target k, or as many in all together."""
        scores = [self._scores(target) for target in self.targets]
        if not self._joint:
            kept = [best(own, count) for own, count in zip(scores, wanted, strict=True)]
        else:
            sizes, score = self._sizes, self._settings["score"]
            if len(set(sizes)) > 1:
                scores = [own / per_weight(score, size) for own, size in zip(scores, sizes, strict=True)]
            each = np.repeat(sizes, [len(own) for own in scores])
            joint = best_within(np.concatenate(scores), each, self._weights(wanted))
            borders = np.cumsum([0, *map(len, scores)])
            kept = [joint[(joint >= a) & (joint < b)] - a for a, b in zip(borders, borders[1:], strict=False)]
        return [Rewiring.keeping(t.layer, own) for t, own in zip(self.targets, kept, strict=True)]

    def _scores(self, target: Target) -> NDArray[Any]:
        score = target.setting("score")
        found = scored(score, target.name, target.layer, lambda: self._stream(target))
        return self._sound(found, target, score if isinstance(score, str) else "score")

    def _refuse_growth(self, wanted: Sequence[int]) -> None:
        """Refuse a density that a layer, or all of them where they share one budget, does not have."""
        stored = [target.stored for target in self.targets]
        possible = self._weights([target.possible for target in self.targets])
        if self._joint:
            if self._weights(wanted) > self._weights(stored):
                most = rounded_down(self._weights(stored), possible)
                self._refuse_density(f"that of the layers, {most}", self._settings["density"])
            return
        lacking = [target for target, count in zip(self.targets, wanted, strict=True) if count > target.stored]
        if not lacking:
            return
        least = min(lacking, key=lambda target: target.stored / target.possible)
        if self._distribution == "uniform":
            most = rounded_down(least.stored, least.possible)
            self._refuse_density(f"the layer's own, {most} for '{least.name}'", least.setting("density"))

        def lacks(weights: int) -> bool:
            return any(count > own for count, own in zip(self._shared_out(weights / possible), stored, strict=True))

        most = rounded_down(bisect_left(range(1, self._weights(wanted)), True, key=lacks), possible)
        rule = f"with distribution='{self._distribution}', for the connections that '{least.name}' has"
        self._refuse_density(f"{most} {rule}", self._settings["density"])

    def _refuse_density(self, most: str, given: float) -> NoReturn:
        raise SpecError(
            f"The 'density' parameter of {self._owner} must be at most {most}, since pruning adds nothing. "
            f"Got {given:g}."
        )

    def _weights(self, units: Sequence[int]) -> int:
        """Return how many weights so many units of each target have."""
        return sum(count * size for count, size in zip(units, self._sizes, strict=True))


def _weight_shape(layer: Patterned) -> tuple[int, ...]:
    """Return the shape of the dense weight in torch's order, as the rules of budgets read it."""
    if isinstance(layer, (SparseConv1d, SparseConv2d)):
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    sizes = [size * (layer.block if isinstance(layer, BlockSparseLinear) else 1) for size in layer._stored_sizes]
    return sizes[1], sizes[0]


class OneShot(Pruner):
    """Prune once: keep the connections of the highest score.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer.
    optimizer : torch.optim.Optimizer, optional
        Its state follows; None where nothing is trained yet.
    density : float, in (0, 1]
        What is to be left: connections / possible connections, in each layer or (``scope="global"``) in all together.
        Exact: ``round(density * possible)``, of whole units.
    score : {"magnitude", "random"}, callable or mapping
        A callable gets a layer and returns one number a unit of `values`; a mapping has a tensor for each layer's
        name, as `topogen_torch.snip_scores` returns it. Of equal scores the first in value ordering stay.
    scope : {"layer", "global"}
        "global" is short for ``distribution="global"``.
    distribution : {"uniform", "er", "erk", "global"}
        How the density is shared out: the same in each layer, by the Erdos-Renyi rules of `topogen.connection_counts`,
        or as the scores of all layers together say.
    layers, groups, rng
        See `Controller`; "random" needs `rng`. Groups may set `density` and `score`.

    Raises
    ------
    SpecError
        If a parameter is none of these, or a layer has fewer connections than it is to keep.

    Notes
    -----
    The first `step` prunes; later ones do nothing. Weights that stay keep value, gradient and optimizer state bit for
    bit. A layer's memory shrinks with it.

    Where single connections, blocks and kernels share one budget, connections count and not units, and scores are
    compared per weight: a norm over the root of their number, other scores over the number. What does not fit into what
    is left of the budget is passed over.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])))
    >>> tt.OneShot(model, density=0.1).step()
    True
    >>> [layer.nnz for layer in model if isinstance(layer, tt.SparseLinear)]
    [20, 5]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        density: float,
        score: str | Score | Mapping[str, Tensor] = "magnitude",
        scope: str = "layer",
        distribution: str = "uniform",
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
        rng: Any = None,
    ) -> None:
        checks.real(density, "density", "OneShot", high=1.0, open_low=True)
        super().__init__(
            model, optimizer, score=score, scope=scope, settings={"density": density, "distribution": distribution},
            layers=layers, groups=groups, rng=rng,
        )  # fmt: skip
        self._wanted = self._shared_out(density)
        self._refuse_growth(self._wanted)

    def _due(self, step: int) -> bool:
        return step == 1

    def _proposal(self, step: int) -> list[Rewiring]:
        return self._kept(self._wanted)


class GradualMagnitude(Pruner):
    """Prune little by little while the model trains, by magnitude (Zhu and Gupta, arXiv:1710.01878).

    At every update the layer keeps its largest weights, so many that its density is that of the schedule

    ``density + (first - density) * (1 - p)**3``, p = (step - begin_step) / (end_step - begin_step) clipped to [0, 1],

    where `first` is the density that the layer has when the controller is made. What has gone does not come back: a
    truly sparse layer has no weight there that could grow.

    Parameters
    ----------
    model, optimizer
        See `Controller`.
    density : float, in (0, 1]
        Final connections / possible connections, of all controlled layers together.
    begin_step, end_step : int
        Of the schedule. The last update is the first one at or after `end_step`.
    update_every : int >= 1
        The layers are pruned at steps which it divides.
    distribution : {"uniform", "er", "erk", "global"}
        How the final density is shared out among the layers, as for `OneShot`; with "global" the schedule is that of
        all layers together.
    shape : {"cubic", "linear", "cosine", "sigmoid"}
        Of the schedule.
    score, scope, layers, groups, rng
        As for `OneShot`.

    Raises
    ------
    SpecError
        If a parameter is none of these, or a layer has fewer connections than it is to keep.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10])))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> prune = tt.GradualMagnitude(model, optimizer, density=0.1, begin_step=0, end_step=10, update_every=5)
    >>> [(prune.step(), model[0].nnz)[1] for step in range(12)]
    [200, 200, 200, 200, 42, 42, 42, 42, 42, 20, 20, 20]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        density: float,
        begin_step: int,
        end_step: int,
        update_every: int,
        distribution: str = "uniform",
        shape: str = "cubic",
        score: str | Score | Mapping[str, Tensor] = "magnitude",
        scope: str = "layer",
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
        rng: Any = None,
    ) -> None:
        owner = "GradualMagnitude"
        checks.real(density, "density", owner, high=1.0, open_low=True)
        self._every = checks.integer(update_every, "update_every", owner, low=1)
        settings = {
            "density": density, "begin_step": begin_step, "end_step": end_step, "update_every": update_every,
            "distribution": distribution, "shape": shape,
        }  # fmt: skip
        super().__init__(
            model, optimizer, score=score, scope=scope, settings=settings, layers=layers, groups=groups, rng=rng
        )
        self._schedule = Schedule(shape=shape, initial=1.0, final=0.0, begin_step=begin_step, end_step=end_step)
        self._final = self._shared_out(density)
        self._first = [target.stored for target in self.targets]
        self._refuse_growth(self._final)
        self._finished = False

    def _due(self, step: int) -> bool:
        return not self._finished and step % self._every == 0 and step >= self._schedule.begin_step

    def _proposal(self, step: int) -> list[Rewiring]:
        return self._kept(self._counts(step))

    def _counts(self, step: int) -> list[int]:
        """Return the units of each target that the schedule has at a step."""
        left = self._schedule(step)
        return [round(last + left * (first - last)) for first, last in zip(self._first, self._final, strict=True)]

    def wanted(self) -> dict[str, int]:
        """Return for each layer the units that the schedule has at this step; with "global" there are none by layer."""
        if self._joint:
            return super().wanted()
        return {t.name: count for t, count in zip(self.targets, self._counts(self._count), strict=True)}

    def _carry_out(self, rewirings: Iterable[Rewiring]) -> None:
        super()._carry_out(rewirings)
        self._finished = self._count >= self._schedule.end_step

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the method must remember."""
        return {**super().state_dict(), "first": list(self._first), "finished": self._finished}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._first, self._finished = list(state["first"]), state["finished"]
