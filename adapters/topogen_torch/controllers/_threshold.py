"""Pruning below a threshold that each layer has of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import TopogenError
from topogen_torch._rewire import Rewiring
from topogen_torch.controllers._base import Controller, Number, value_at
from topogen_torch.controllers.criteria import magnitude

__all__ = ["Threshold"]


class Threshold(Controller):
    r"""Prune what lies below a threshold of the layer's own: the second of three steps, train, prune, retrain.

    At the given steps a layer loses the connections with :math:`|w| < q \sigma`, where :math:`\sigma` is the standard
    deviation of its weights and q the `quality` parameter (Han et al. 2015). What stays goes on from its trained
    values.

    Parameters
    ----------
    model, optimizer
        See `Controller`.
    quality : number >= 0, schedule or function of the step
        q; a setting of its own for each group, since layers bear different amounts.
    steps : sequence of int >= 1
        When to prune, rising. Several make the method iterative; the authors' choice is two or three, with retraining
        after each.
    layers, groups
        See `Controller`. Groups may set `quality`.

    Raises
    ------
    SpecError
        If a parameter is none of these.
    TopogenError
        At a step: if weights are NaN, or their standard deviation is not finite. Nothing is changed.

    Notes
    -----
    How many stay follows from the quality: of normally distributed weights those beyond q standard deviations, 32 % for
    q = 1 and 4.6 % for q = 2. For a block or a convolution kernel the root of the mean of its squared weights counts. A
    layer may lose all its connections.

    The authors retrain with a tenth to a hundredth of the learning rate, with L2 regularisation, and with less dropout:
    :math:`D_o \sqrt{C_r / C_o}` for C connections of a layer, whose ratio is `survival`. See "Prune and regrow while a
    model trains" for the whole recipe.

    References
    ----------
    S. Han, J. Pool, J. Tran, W. Dally, "Learning both weights and connections for efficient neural networks", NeurIPS
    2015, sections 3, 3.2 and 3.3.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10])), bias=False)
    >>> _ = model[0].values.data.copy_(torch.linspace(-1, 1, 200))     # of standard deviation 0.58
    >>> prune = tt.Threshold(model, quality=1.0, steps=[3])
    >>> [(prune.step(), model[0].nnz)[1] for step in range(4)]
    [200, 200, 84, 84]
    """

    _per_layer = ("quality",)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        quality: Number,
        steps: Sequence[int],
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        owner = "Threshold"
        self._steps = checks.integers(steps, "steps", owner, low=1, at_least=1)
        if any(a >= b for a, b in zip(self._steps, self._steps[1:], strict=False)):
            checks.refuse("steps", owner, "rising", list(self._steps))
        settings = {"quality": quality, "steps": list(self._steps)}
        super().__init__(model, optimizer, settings=settings, layers=layers, groups=groups)
        for target in self.targets:
            for step in self._steps:
                checks.real(value_at(target.setting("quality"), step), "quality", owner)

    def _due(self, step: int) -> bool:
        return step in self._steps

    def _proposal(self, step: int) -> list[Rewiring]:
        rewirings: list[Rewiring] = []
        for target in self.targets:
            size = magnitude(target.layer).double() / math.sqrt(math.prod(target.layer._unit))
            scores = self._sound(size.cpu().numpy(), target, "magnitude")
            spread = float(target.layer.values.detach().double().std(correction=0)) if len(scores) else 0.0
            if not math.isfinite(spread):  # weights that are infinite, or whose squares are
                raise TopogenError(
                    f"{self._owner} changes nothing at step {step}: the standard deviation of the weights of layer "
                    f"'{target.name}' is {spread}. A learning rate that is too large is the usual cause."
                )
            kept = scores >= target.at("quality", step) * spread
            rewirings.append(Rewiring.keeping(target.layer, kept))
        return rewirings
