"""Dynamic sparse training: as many connections grow as are dropped, so that the number stays, exactly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from topogen import Schedule, checks, cosine
from topogen.errors import SpecError
from topogen_torch._rewire import Places, Rewiring, places_of
from topogen_torch.controllers._base import Controller, Number, Target, value_at
from topogen_torch.controllers._places import best, without
from topogen_torch.controllers._tape import Tape
from topogen_torch.controllers.criteria import magnitude
from topogen_torch.controllers.growth import Request, Rule, at_random, by_gradient

__all__ = ["SET", "RigL"]


class _Dynamic(Controller):
    """What methods share that drop and grow every so many steps."""

    def __init__(self, *args: Any, grow: Rule, update_every: int, settings: Mapping[str, Any], **shared: Any) -> None:
        owner = type(self).__name__
        self._every = checks.integer(update_every, "update_every", owner, low=1)
        self._grow = grow
        super().__init__(*args, settings={**settings, "update_every": update_every, "grow": grow}, **shared)
        self._tapes = {target.name: Tape(target.layer) for target in self.targets}
        for target in self.targets:
            _check_fraction(target, owner)
        self._listen()

    @abstractmethod
    def _dropped(self, target: Target, step: int) -> NDArray[np.int64]:
        """Return the indices of the units that a layer loses."""

    @property
    def _reads_gradients(self) -> bool:
        return self._grow is not at_random

    def _due(self, step: int) -> bool:
        return step % self._every == 0

    def _proposal(self, step: int) -> list[Rewiring]:
        rewirings = []
        for target in self.targets:
            now, dropped = places_of(target.layer), self._dropped(target, step)
            if len(dropped) == 0:
                continue
            kept = without(now, dropped)
            grown = self._grown(target, kept, len(dropped))
            rewirings.append(Rewiring(target.layer, np.sort(np.concatenate([kept, grown]))))
        return rewirings

    def _grown(self, target: Target, kept: Places, count: int) -> Places:
        request = Request(
            target.layer, kept, count, lambda: self._stream(target), self._tapes[target.name],
            lambda scores: self._sound(scores, target, "gradient"),
        )  # fmt: skip
        grown = np.asarray(self._grow(request), np.int64)
        taken, outside = np.isin(grown, kept), (grown < 0) | (grown >= target.possible)
        if len(np.unique(grown)) != count or taken.any() or outside.any():
            raise SpecError(
                f"The 'grow' parameter of {self._owner} must return {count} different empty places in "
                f"[0, {target.possible}) for '{target.name}'. Got {len(np.unique(grown))} different ones, "
                f"{int(taken.sum())} of them occupied and {int(outside.sum())} outside."
            )
        return grown

    def step(self) -> bool:
        """Count one training step, and drop and grow if it is time. Return whether connections changed."""
        try:
            return super().step()
        finally:
            self._listen()

    def _listen(self) -> None:
        """Record what goes through the layers only in the step whose gradients are wanted."""
        for tape in self._tapes.values():
            tape.stop()
            if self._reads_gradients and self._due(self._count + 1):
                tape.start()

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._listen()


class SET(_Dynamic):
    r"""Sparse evolutionary training: drop the weights nearest to zero, grow as many at random (Mocanu et al. 2018).

    At every update a layer with P positive and N negative weights loses the :math:`\lfloor \zeta P \rfloor` smallest
    positive and the :math:`\lfloor \zeta N \rfloor` least negative ones, and gains as many connections at uniformly
    chosen empty places, with weight 0.

    Parameters
    ----------
    model, optimizer
        See `Controller`.
    rng : int, numpy.random.SeedSequence or Generator
        Of the growth.
    update_every : int >= 1
        The layers change at steps which it divides; the paper's is one epoch.
    drop_fraction : float in [0, 1), or a schedule
        :math:`\zeta`.
    grow : callable
        A rule of growth; see `topogen_torch.controllers.growth`.
    layers, groups
        See `Controller`.

    Raises
    ------
    SpecError
        If a parameter is none of these.

    Notes
    -----
    Of equal weights the first in value ordering stay. Weights that are exactly 0, such as those that have just grown
    and received no gradient, count as positive. A connection that is dropped and drawn again in the same update keeps
    its value and the optimizer's state. Blocks and convolution kernels have no sign: the floor of :math:`\zeta` times
    their number, of the smallest norm, are dropped. After the last update the paper leaves the dropped connections out:
    `finish` does that.

    References
    ----------
    D. C. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", Nature Communications 9, 2383 (2018), algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        rng: Any,
        update_every: int,
        drop_fraction: Number = 0.3,
        grow: Rule = at_random,
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if rng is None:
            checks.refuse("rng", "SET", "an int, a SeedSequence or a Generator", rng)
        super().__init__(
            model, optimizer, grow=grow, update_every=update_every, settings={"drop_fraction": drop_fraction},
            rng=rng, layers=layers, groups=groups,
        )  # fmt: skip

    def _dropped(self, target: Target, step: int) -> NDArray[np.int64]:
        fraction = target.at("drop_fraction", step)
        scores = self._sound(magnitude(target.layer).cpu().double().numpy(), target, "magnitude")
        if target.layer._unit:
            sides = [np.arange(len(scores))]
        else:
            positive = target.layer.values.detach().cpu().numpy() >= 0
            sides = [np.flatnonzero(positive), np.flatnonzero(~positive)]
        return np.concatenate([side[_worst(scores[side], int(fraction * len(side)))] for side in sides])

    def finish(self) -> None:
        """Drop once more, by the fraction of this step, and grow nothing: the topology that the paper reports."""
        self._check_unchanged()
        self._carry_out(
            Rewiring(t.layer, without(places_of(t.layer), self._dropped(t, self._count))) for t in self.targets
        )


class RigL(_Dynamic):
    r"""Rigged lottery: drop the smallest weights, grow where the gradient is largest (Evci et al. 2020).

    At every update before `end_step`, at step t, a layer of n connections drops the
    :math:`k = \lfloor f(t) n \rfloor` smallest absolute weights, :math:`f(t) = \frac{\alpha}{2}(1 + \cos(\pi t / T))`
    with :math:`\alpha` = `drop_fraction` and :math:`T` = `end_step`, and gains the k places with the largest absolute
    gradient among all that are not kept, with weight 0.

    Parameters
    ----------
    model, optimizer
        See `Controller`.
    end_step : int >= 1
        Updates stop there; the paper's choice is 75 % of training.
    update_every : int >= 1
    drop_fraction : float in [0, 1), or a schedule
        :math:`\alpha`; a schedule replaces f(t) as it is.
    rng : int, numpy.random.SeedSequence or Generator, optional
        Only for a rule of growth that draws.
    grow : callable
        A rule of growth; see `topogen_torch.controllers.growth`.
    layers, groups
        See `Controller`.

    Raises
    ------
    SpecError
        If a parameter is none of these.

    Notes
    -----
    Of equal weights, and of equal gradients, the first in value ordering are taken. A connection that is dropped and
    chosen again in the same update keeps its value and the optimizer's state. The paper skips the weight update of such
    a step; a controller that acts after the optimizer cannot, so here the weights have moved before they are compared.

    An update costs one product of a dense layer's weight gradient, computed a chunk at a time: 1 / (3 d update_every)
    of the arithmetic of training a layer of density d. Between updates nothing is recorded.

    References
    ----------
    U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
    arXiv:1911.11134, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        end_step: int,
        update_every: int = 100,
        drop_fraction: Number = 0.3,
        rng: Any = None,
        grow: Rule = by_gradient,
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._end = checks.integer(end_step, "end_step", "RigL", low=1)
        super().__init__(
            model, optimizer, grow=grow, update_every=update_every,
            settings={"drop_fraction": drop_fraction, "end_step": end_step}, rng=rng, layers=layers, groups=groups,
        )  # fmt: skip

    def _due(self, step: int) -> bool:
        return super()._due(step) and step < self._end

    def _dropped(self, target: Target, step: int) -> NDArray[np.int64]:
        given = target.setting("drop_fraction")
        f = value_at(given if callable(given) else cosine(initial=given, end_step=self._end), step)
        scores = self._sound(magnitude(target.layer).cpu().double().numpy(), target, "magnitude")
        return _worst(scores, int(f * len(scores)))


def _worst(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` smallest scores, rising; of equal scores the last ones are taken."""
    return np.delete(np.arange(len(scores)), best(scores, len(scores) - count))


def _check_fraction(target: Target, owner: str) -> None:
    value = target.setting("drop_fraction")
    if isinstance(value, Schedule) or not callable(value):
        for number in (value.initial, value.final) if isinstance(value, Schedule) else (value,):
            if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 <= number < 1:
                checks.refuse("drop_fraction", owner, "a number in [0, 1), or a schedule of such", number)
