"""Proximal L1: weights that training does not hold are drawn to exactly zero, and then they go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Rewiring
from topogen_torch.controllers._base import Controller, Number, Target, value_at

__all__ = ["ProximalL1"]

_METRICS = ("plain", "adam")


class ProximalL1(Controller):
    r"""Minimise the loss plus `strength` times the sum of :math:`|w|`, and remove what is exactly zero.

    After every step of the optimizer :math:`w \leftarrow \mathrm{sign}(w) \max(|w| - \eta \lambda, 0)`, with the
    learning rate :math:`\eta` that the optimizer has for the layer and :math:`\lambda` the strength; every
    `update_every` steps connections of weight 0 are removed. How many stay follows from the strength.

    Parameters
    ----------
    model, optimizer
        See `Controller`; the optimizer is needed.
    strength : number >= 0, schedule or function of the step
        :math:`\lambda`; a setting of its own for each group.
    update_every : int >= 1
        Zeros are removed at steps which it divides.
    metric : {"plain", "adam"}
        With "adam" the threshold is :math:`\eta \lambda / (\sqrt{\hat v} + \epsilon)`, the proximal step in the
        diagonal metric in which Adam and its kin go downhill; without it their steps and the shrinkage disagree.
    layers, groups
        See `Controller`.

    Raises
    ------
    SpecError
        If a parameter is none of these, or the metric is "adam" and a layer has units of several weights, for which
        that step has no closed form. At a step: if the metric is "adam" and the optimizer keeps no second moments.

    Notes
    -----
    A block or a convolution kernel of n weights shrinks as a whole,
    :math:`w \leftarrow w \max(0, 1 - \eta \lambda \sqrt n / \|w\|)` (group lasso), so that whole units become zero. A
    subgradient of L1 in the loss never gives an exact zero. A connection whose weight is 0 for another reason, one just
    grown say, goes too. A layer may lose all its connections.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10])), bias=False)
    >>> _ = model[0].values.data.copy_(torch.linspace(-1, 1, 200))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> shrink = tt.ProximalL1(model, optimizer, strength=1.0, update_every=5)
    >>> [(shrink.step(), model[0].nnz)[1] for step in range(5)]    # 0.1 a step
    [200, 200, 200, 200, 100]
    """

    _per_layer = ("strength",)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        strength: Number,
        update_every: int = 100,
        metric: str = "plain",
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        owner = "ProximalL1"
        checks.instance(optimizer, "optimizer", owner, Optimizer, "an")
        self._every = checks.integer(update_every, "update_every", owner, low=1)
        self._metric = checks.one_of(metric, "metric", owner, _METRICS)
        settings = {"strength": strength, "update_every": update_every, "metric": metric}
        super().__init__(model, optimizer, settings=settings, layers=layers, groups=groups)
        for target in self.targets:
            checks.real(value_at(target.setting("strength"), 0), "strength", owner)
            if metric == "adam" and target.layer._unit:
                raise SpecError(
                    f"The 'metric' parameter of {owner} must be 'plain' for layers whose units have several weights. "
                    f"Got 'adam' for '{target.name}', a {type(target.layer).__name__}."
                )

    def step(self) -> bool:
        """Shrink the weights, and remove what is zero if it is time. Return whether connections went.

        Raises
        ------
        SpecError
            See `Controller.step`; and if the optimizer keeps no second moments where the metric needs them, or the
            strength of this step is none. No weight has been changed.
        """
        self._check_unchanged()
        thresholds = [self._threshold(target) for target in self.targets]
        for target, threshold in zip(self.targets, thresholds, strict=True):
            _shrink(target.layer.values.data, threshold)
        return super().step()

    def _due(self, step: int) -> bool:
        return step % self._every == 0 and any(not bool(_alive(target.layer).all()) for target in self.targets)

    def _proposal(self, step: int) -> list[Rewiring]:
        return [Rewiring.keeping(t.layer, _alive(t.layer).cpu().numpy()) for t in self.targets]

    def _threshold(self, target: Target) -> float | Tensor:
        """Return what a layer's weights shrink by, one number or one for each."""
        assert self.optimizer is not None
        values = target.layer.values
        group = next(g for g in self.optimizer.param_groups if any(p is values for p in g["params"]))
        strength = checks.real(target.at("strength", self._count + 1), "strength", self._owner)
        amount = float(group["lr"]) * strength
        if self._metric == "plain":
            return amount
        state = self.optimizer.state.get(values, {})
        if not {"exp_avg_sq", "step"} <= set(state) or "betas" not in group:
            raise SpecError(
                "The 'optimizer' parameter of ProximalL1 must keep second moments as Adam does where metric='adam', "
                f"and must have made a step. Got {type(self.optimizer).__name__}, with state {sorted(state)} for "
                f"'{target.name}'."
            )
        moments = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        unbiased = moments / (1 - group["betas"][1] ** float(state["step"]))
        return amount / (unbiased.sqrt() + group["eps"])


def _alive(layer: Patterned) -> Tensor:
    """Return for each unit whether it has a weight that is not 0; NaN is none."""
    values = layer.values.detach()
    return values.reshape(len(values), math.prod(values.shape[1:])).ne(0).any(1)


def _shrink(values: Tensor, threshold: float | Tensor) -> None:
    """Take the proximal step in place: of single weights, or of units as a whole."""
    if values.ndim == 1 and isinstance(threshold, float):
        values.copy_(softshrink(values, threshold))  # one pass instead of four
        return
    if values.ndim == 1:
        values.copy_(values.sign() * (values.abs() - threshold).clamp_min(0))
        return
    norms = values.flatten(1).norm(dim=1)
    amount = threshold * math.sqrt(math.prod(values.shape[1:]))
    factors = (norms - amount).clamp_min(0) / norms.where(norms != 0, torch.ones_like(norms))
    values.mul_(factors.view(-1, *(1,) * (values.ndim - 1)))
