"""Lottery tickets: train, prune, go back, and train what is left again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from topogen import checks
from topogen_torch._rewire import Rewiring
from topogen_torch._signals import undisturbed
from topogen_torch.controllers._base import Number, value_at
from topogen_torch.controllers._prune import Pruner
from topogen_torch.controllers._rewind import followed
from topogen_torch.controllers._rewind import rewind as go_back
from topogen_torch.controllers.criteria import Score

__all__ = ["LotteryTicket"]

_MODES = ("weights", "learning rate")
_STATES = ("rewind", "reset", "keep")


class LotteryTicket(Pruner):
    r"""Find a lottery ticket by iterative magnitude pruning with rewinding (Frankle and Carbin 2019).

    A *round* trains for `round_steps` steps of the schedule. At its end each layer loses the share `drop_fraction` of
    its smallest weights, and training goes back to step `rewind_to`, with what is left: after `rounds` prunings a last
    round trains the ticket. Layer l of :math:`n_l` connections at first has
    :math:`\mathrm{round}(n_l \prod_{j \le r} (1 - p_j))` after r prunings.

    Parameters
    ----------
    model, optimizer
        See `Controller`; the optimizer is needed.
    rounds : int >= 1
        How often to prune.
    round_steps : int >= 1
        Steps of the whole schedule.
    drop_fraction : float in [0, 1), schedule or function of the round
        :math:`p_j`, j = 1 ... `rounds`; the paper's choice for a last layer is half of the others', by `groups`.
    rewind : {"weights", "learning rate"}
        With "weights" the parameters of the whole model, and its running statistics, go back to what they were at
        `rewind_to`; with "learning rate" they stay and only the schedule goes back (Renda et al. 2020).
    rewind_to : int in [0, round_steps)
        Step of the first round to which later rounds go back. 0 is the state when the controller is made; a few percent
        of the steps is late rewinding (Frankle et al. 2020).
    optimizer_state : {"rewind", "reset", "keep"}
        Whether momentum and the like go back with the rest, are cleared as in a new optimizer, or stay, those of the
        survivors bit for bit.
    scheduler : torch.optim.lr_scheduler.LRScheduler, optional
        Or anything with ``state_dict`` and ``load_state_dict``: goes back to `rewind_to`. The optimizer's settings, the
        learning rate among them, go back in any case. Call it before the controller:
        ``optimizer.step(); scheduler.step(); ticket.step()``.
    score, scope, layers, groups, rng
        As for `OneShot`.

    Attributes
    ----------
    round : int
        Prunings so far.
    position : int
        Steps done of the schedule in this round: `rewind_to` right after a pruning.
    finished : bool
        Whether the last round is over.
    total_steps : int
        Steps of all rounds together.

    Raises
    ------
    SpecError
        If a parameter is none of these.

    Notes
    -----
    The order of the data is the caller's: take the batch of step `position` to rewind it as well. Then a ticket that
    drops nothing repeats its first round bit for bit.

    The state holds what to go back to: a copy of the model and of the optimizer's state at `rewind_to`.

    References
    ----------
    J. Frankle, M. Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks", ICLR 2019,
    section 1, strategy with resetting. J. Frankle, G. K. Dziugaite, D. Roy, M. Carbin, "Linear mode connectivity and
    the lottery ticket hypothesis", ICML 2020, algorithm 2. A. Renda, J. Frankle, M. Carbin, "Comparing rewinding and
    fine-tuning in neural network pruning", ICLR 2020, section 2.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10])))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    >>> ticket = tt.LotteryTicket(model, optimizer, rounds=2, round_steps=4, rewind_to=1, scheduler=schedule)
    >>> while not ticket.finished:
    ...     model(torch.randn(16, 20)).square().mean().backward()
    ...     optimizer.step()
    ...     schedule.step()
    ...     if ticket.step():
    ...         print(ticket.round, ticket.position, optimizer.param_groups[0]["lr"], model[0].nnz)
    1 1 0.1 160
    2 1 0.1 128
    """

    _per_layer = ("drop_fraction", "score")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        rounds: int,
        round_steps: int,
        drop_fraction: Number = 0.2,
        rewind: str = "weights",
        rewind_to: int = 0,
        optimizer_state: str = "rewind",
        scheduler: Any = None,
        score: str | Score | Mapping[str, Tensor] = "magnitude",
        scope: str = "layer",
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
        rng: Any = None,
    ) -> None:
        owner = "LotteryTicket"
        checks.instance(optimizer, "optimizer", owner, Optimizer, "an")
        self._rounds = checks.integer(rounds, "rounds", owner, low=1)
        self._length = checks.integer(round_steps, "round_steps", owner, low=1)
        self._to = checks.integer(rewind_to, "rewind_to", owner, low=0, high=self._length - 1)
        self._mode = checks.one_of(rewind, "rewind", owner, _MODES)
        self._optimizer_state = checks.one_of(optimizer_state, "optimizer_state", owner, _STATES)
        if scheduler is not None and not hasattr(scheduler, "load_state_dict"):
            checks.refuse("scheduler", owner, "None or an object with state_dict and load_state_dict", scheduler)
        self._scheduler = scheduler
        settings = {
            "rounds": rounds, "round_steps": round_steps, "drop_fraction": drop_fraction, "rewind": rewind,
            "rewind_to": rewind_to, "optimizer_state": optimizer_state,
        }  # fmt: skip
        super().__init__(
            model, optimizer, score=score, scope=scope, settings=settings, layers=layers, groups=groups, rng=rng
        )
        self._first = [target.stored for target in self.targets]
        for target in self.targets:
            for number in range(1, rounds + 1):
                fraction = value_at(target.setting("drop_fraction"), number)
                if not 0 <= fraction < 1:
                    checks.refuse("drop_fraction", owner, "in [0, 1)", fraction)
        self._earlier: dict[str, Any] | None = None
        self._remember()

    @property
    def round(self) -> int:
        """Prunings so far."""
        return self._round_at(self._count)

    @property
    def position(self) -> int:
        """Steps done of the schedule in this round."""
        return self.position_at(self._count)

    @property
    def round_steps(self) -> int:
        """Steps of the whole schedule."""
        return self._length

    @property
    def total_steps(self) -> int:
        """Steps of all rounds together."""
        return self._length + self._rounds * self._again

    def position_at(self, step: int) -> int:
        """Return the steps done of the schedule when `step` of all rounds are done: which of its steps comes next."""
        return step - self._round_at(step) * self._again

    @property
    def finished(self) -> bool:
        """Whether the last round is over."""
        return self.round == self._rounds and self.position >= self._length

    @property
    def _again(self) -> int:
        """Steps of every round but the first."""
        return self._length - self._to

    def _round_at(self, step: int) -> int:
        return 0 if step < self._length else min(self._rounds, 1 + (step - self._length) // self._again)

    def step(self) -> bool:
        """Count one training step; prune and go back at the end of a round. Return whether connections changed."""
        changed = super().step()
        self._remember()
        return changed

    def _due(self, step: int) -> bool:
        since = step - self._length
        return since >= 0 and since % self._again == 0 and since // self._again < self._rounds

    def _proposal(self, step: int) -> list[Rewiring]:
        wanted: list[int] = []
        for target, first in zip(self.targets, self._first, strict=True):
            left = Fraction(first)
            for number in range(1, self.round + 1):
                left *= 1 - Fraction(str(value_at(target.setting("drop_fraction"), number)))
            wanted.append(round(left))
        return self._kept(wanted)

    def _carry_out(self, rewirings: Iterable[Rewiring]) -> None:
        with undisturbed():
            super()._carry_out(rewirings)
            self._go_back()

    def _remember(self) -> None:
        """Copy what later rounds go back to, when its step has come."""
        if self._earlier is not None or self._count != self._to:
            return
        assert self.optimizer is not None
        state = self.optimizer.state_dict()
        if self._optimizer_state != "rewind":
            state = {"state": {}, "param_groups": state["param_groups"]}
        self._earlier = copy.deepcopy({
            "model": self.model.state_dict() if self._needs_model else None,
            "optimizer": state,
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
        })  # fmt: skip

    @property
    def _needs_model(self) -> bool:
        """Whether numbers of connections go back, of weights or of the optimizer's state, which needs their places."""
        return self._mode == "weights" or self._optimizer_state == "rewind"

    def _go_back(self) -> None:
        assert self._earlier is not None
        assert self.optimizer is not None
        model, earlier = self._earlier["model"], self._earlier["optimizer"]
        if self._optimizer_state == "rewind":
            state = followed(self.model, model, self.optimizer, earlier)
        else:
            state = self.optimizer.state_dict()["state"] if self._optimizer_state == "keep" else {}
        if self._mode == "weights":
            go_back(self.model, model)
        self.optimizer.load_state_dict({"state": state, "param_groups": copy.deepcopy(earlier["param_groups"])})
        if self._scheduler is not None:
            self._scheduler.load_state_dict(copy.deepcopy(self._earlier["scheduler"]))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the method must remember, what to go back to included."""
        return {**super().state_dict(), "first": list(self._first), "earlier": copy.deepcopy(self._earlier)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._first, self._earlier = list(state["first"]), copy.deepcopy(state["earlier"])
