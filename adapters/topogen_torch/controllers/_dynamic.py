"""Dynamic sparse training: as many connections grow as are dropped, so that the number stays, exactly."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from topogen import Schedule, checks, cosine
from topogen.errors import SpecError, TopogenError
from topogen_torch._rewire import Places, Rewiring, places_of
from topogen_torch._together import in_turns, together
from topogen_torch.controllers._base import Controller, Number, Target, value_at
from topogen_torch.controllers._places import nearest_to_zero, without, worst
from topogen_torch.controllers._tape import Tape
from topogen_torch.controllers.criteria import magnitude
from topogen_torch.controllers.growth import Request, Rule, at_random, by_gradient
from topogen_torch.controllers.redistribution import Redistribution, shared_out

__all__ = ["SET", "Annealed", "RigL"]


class _Dynamic(Controller):
    """What methods share that drop and grow every so many steps."""

    _per_layer = ("drop_fraction", "grow")

    def __init__(
        self,
        *args: Any,
        grow: Rule,
        update_every: int,
        redistribute: Redistribution | None = None,
        window: int = 1,
        decay: float = 1.0,
        settings: Mapping[str, Any],
        **shared: Any,
    ) -> None:
        owner = type(self).__name__
        self._every = checks.integer(update_every, "update_every", owner, low=1)
        if redistribute is not None and not callable(redistribute):
            checks.refuse("redistribute", owner, "None or a callable (layer, optimizer) -> number", redistribute)
        self._redistribute, self._window = redistribute, window
        settings = {**settings, "update_every": update_every, "grow": grow}
        settings |= {} if redistribute is None else {"redistribute": redistribute}
        super().__init__(*args, settings=settings, **shared)
        self._reads_gradients = any(target.setting("grow") is not at_random for target in self.targets)
        self._tapes = {target.name: Tape(target.layer, window=window, decay=decay) for target in self.targets}
        for target in self.targets:
            _check_fraction(target, owner)
            if not callable(target.setting("grow")):
                checks.refuse("grow", owner, "a callable (request) -> places", target.setting("grow"))
        self._listen()

    @abstractmethod
    def _dropped(self, target: Target, step: int) -> NDArray[np.bool_]:
        """Return a mask of the units that a layer loses."""

    def _fraction(self, target: Target, given: Number, step: int) -> float:
        """Return what share of its units a layer loses at a step."""
        fraction = value_at(given, step)
        if not 0 <= fraction < 1:
            raise SpecError(
                f"The 'drop_fraction' parameter of {self._owner} must give numbers in [0, 1). "
                f"Got {fraction} at step {step} for '{target.name}'."
            )
        return fraction

    def _magnitudes(self, target: Target) -> NDArray[Any]:
        sizes = magnitude(target.layer)
        return self._sound(sizes.to(torch.promote_types(sizes.dtype, torch.float32)).cpu().numpy(), target, "magnitude")

    def _due(self, step: int) -> bool:
        return step % self._every == 0

    def _proposal(self, step: int) -> list[Rewiring]:
        on_cpu = all(target.layer.values.is_cpu for target in self.targets)
        size = sum(target.stored for target in self.targets) if on_cpu else 0
        if self._redistribute is None and not self._reads_gradients:
            found = in_turns([self._drawn(target, step) for target in self.targets], size=size)
            return [rewiring for rewiring in found if rewiring is not None]
        dropped = together([partial(self._dropped, target, step) for target in self.targets], size=size)
        lost = [int(np.count_nonzero(own)) for own in dropped]
        counts = self._regained(lost)
        exchanges: list[Generator[None, None, Rewiring]] = []
        for target, own, less, count in zip(self.targets, dropped, lost, counts, strict=True):
            if less == count == 0:
                continue
            grown = None
            if target.setting("grow") is not at_random:  # other rules use all threads, or speak to other processes
                now = places_of(target.layer)
                grown = self._grown(target, without(now, own), count) if count else now[:0]
            exchanges.append(self._exchange(target, own, count, grown))
        return in_turns(exchanges, size=size)

    def _drawn(self, target: Target, step: int) -> Generator[None, None, Rewiring | None]:
        """Return what one layer is to become, which draws as many units as it drops; None if it drops none."""
        dropped = self._dropped(target, step)
        yield
        count = int(np.count_nonzero(dropped))
        return (yield from self._exchange(target, dropped, count, None)) if count else None

    def _exchange(
        self, target: Target, dropped: NDArray[np.bool_], count: int, grown: Places | None
    ) -> Generator[None, None, Rewiring]:
        """Return what one layer is to become, which drops some units and grows so many, drawn where none are given."""
        now = places_of(target.layer)
        if grown is None:
            grown = self._grown(target, without(now, dropped), count) if count else now[:0]
            yield
        rewiring = Rewiring.exchanging(target.layer, now, dropped, grown)
        if rewiring is None:  # places out of order, as few rules choose them, or impossible ones
            rewiring = Rewiring.exchanging(target.layer, now, dropped, np.sort(grown))
        if len(grown) != count or rewiring is None:
            self._refuse_growth(target, without(now, dropped), grown, count)
        return rewiring

    def _regained(self, dropped: list[int]) -> list[int]:
        """Return how many units each layer gains; connections move only between layers of equally large units."""
        if self._redistribute is None:
            return dropped
        shares = [self._share(target) for target in self.targets]
        sizes = [math.prod(target.layer._unit) for target in self.targets]
        counts = list(dropped)
        for size in set(sizes):
            alike = [k for k, own in enumerate(sizes) if own == size]
            empty = [self.targets[k].possible - self.targets[k].stored + dropped[k] for k in alike]
            found = shared_out(sum(dropped[k] for k in alike), [shares[k] for k in alike], empty)
            for k, count in zip(alike, found, strict=True):
                counts[k] = count
        return counts

    def _share(self, target: Target) -> float:
        assert self._redistribute is not None
        share = float(self._redistribute(target.layer, self.optimizer))
        if math.isnan(share):
            raise TopogenError(
                f"{self._owner} changes nothing at step {self._count}: the share of layer '{target.name}' in the "
                "growth is NaN. A learning rate that is too large, or a loss that is not finite, are the usual causes."
            )
        if share < 0 or math.isinf(share):
            raise SpecError(
                f"The 'redistribute' parameter of {self._owner} must return finite numbers >= 0. "
                f"Got {share!r} for '{target.name}'."
            )
        return share

    def _grown(self, target: Target, kept: Places, count: int) -> Places:
        request = Request(
            target.layer, kept, count, lambda: self._stream(target), self._tapes[target.name],
            lambda scores: self._sound(scores, target, "gradient"),
        )  # fmt: skip
        grown = np.asarray(target.setting("grow")(request))
        return grown if grown.dtype == kept.dtype else grown.astype(np.int64)

    def _refuse_growth(self, target: Target, kept: Places, grown: Places, count: int) -> NoReturn:
        outside = (grown < 0) | (grown >= target.possible)
        raise SpecError(
            f"The 'grow' parameter of {self._owner} must return {count} different empty places in "
            f"[0, {target.possible}) for '{target.name}'. Got {len(np.unique(grown))} different ones, "
            f"{int(np.isin(grown, kept).sum())} of them occupied and {int(outside.sum())} outside."
        )

    def step(self) -> bool:
        """Count one training step, and drop and grow if it is time. Return whether connections changed."""
        try:
            return super().step()
        finally:
            if self._reads_gradients:
                for tape in self._tapes.values():
                    tape.next_step()
                self._listen()

    def forget(self) -> None:
        """Forget what was recorded since the last step, which the optimizer skipped."""
        for tape in self._tapes.values():
            tape.pairs[:] = [pair for pair in tape.pairs if pair.age]

    def _listen(self) -> None:
        """Record what goes through the layers only in the steps whose gradients are wanted."""
        wanted = self._reads_gradients and any(self._due(self._count + 1 + k) for k in range(self._window))
        for tape in self._tapes.values():
            if wanted:
                tape.start()
            else:
                tape.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the method must remember; in a window, what went through the layers too."""
        tapes = {name: tape.state() for name, tape in self._tapes.items()}
        return {**super().state_dict(), **({"tapes": tapes} if self._window > 1 else {})}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._listen()
        for name, tape in self._tapes.items():
            tape.restore(state["tapes"][name] if self._window > 1 else ())


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
    redistribute : callable, optional
        A rule that moves connections between layers; see `topogen_torch.controllers.redistribution`. Without one every
        layer regains what it lost.
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
        redistribute: Redistribution | None = None,
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if rng is None:
            checks.refuse("rng", "SET", "an int, a SeedSequence or a Generator", rng)
        super().__init__(
            model, optimizer, grow=grow, update_every=update_every, redistribute=redistribute,
            settings={"drop_fraction": drop_fraction}, rng=rng, layers=layers, groups=groups,
        )  # fmt: skip

    def _dropped(self, target: Target, step: int) -> NDArray[np.bool_]:
        fraction = self._fraction(target, target.setting("drop_fraction"), step)
        if target.layer._unit:
            scores = self._magnitudes(target)
            return worst(scores, int(fraction * len(scores)))
        values = target.layer.values.detach()
        numbers = values.to(torch.promote_types(values.dtype, torch.float32)).cpu().numpy()
        return nearest_to_zero(self._sound(numbers, target, "magnitude"), fraction)

    def finish(self) -> None:
        """Drop once more, by the fraction of this step, and grow nothing: the topology that the paper reports."""
        self._check_unchanged()
        self._carry_out(Rewiring.keeping(t.layer, ~self._dropped(t, self._count)) for t in self.targets)


class Annealed(_Dynamic):
    """Methods that drop the smallest weights, ever fewer, until a last step."""

    def __init__(self, *args: Any, end_step: int, settings: Mapping[str, Any], **shared: Any) -> None:
        self._end = checks.integer(end_step, "end_step", type(self).__name__, low=1)
        super().__init__(*args, settings={**settings, "end_step": end_step}, **shared)

    def _due(self, step: int) -> bool:
        return super()._due(step) and step < self._end

    def _dropped(self, target: Target, step: int) -> NDArray[np.bool_]:
        given = target.setting("drop_fraction")
        schedule: Any = given if callable(given) else cosine(initial=given, end_step=self._end)
        f = self._fraction(target, schedule, step)
        scores = self._magnitudes(target)
        return worst(scores, int(f * len(scores)))


class RigL(Annealed):
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
    redistribute : callable, optional
        A rule that moves connections between layers; see `topogen_torch.controllers.redistribution`. Without one every
        layer regains what it lost.
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
    of the arithmetic of training a layer of density d. Between updates nothing is recorded; in the step of an update
    compiled models run uncompiled.

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
        redistribute: Redistribution | None = None,
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(
            model, optimizer, end_step=end_step, grow=grow, update_every=update_every, redistribute=redistribute,
            settings={"drop_fraction": drop_fraction}, rng=rng, layers=layers, groups=groups,
        )  # fmt: skip


def _check_fraction(target: Target, owner: str) -> None:
    value = target.setting("drop_fraction")
    if isinstance(value, Schedule) or not callable(value):
        for number in (value.initial, value.final) if isinstance(value, Schedule) else (value,):
            if not isinstance(number, Real) or isinstance(number, bool) or not 0 <= float(number) < 1:
                checks.refuse("drop_fraction", owner, "a number in [0, 1), or a schedule of such", number)
