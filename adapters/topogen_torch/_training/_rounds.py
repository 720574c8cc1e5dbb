"""Which step of the schedule a run takes next: a lottery ticket goes back to an earlier one after each pruning."""

from __future__ import annotations

from dataclasses import dataclass

from topogen.errors import SpecError
from topogen_torch.controllers import Controller, LotteryTicket

__all__ = ["Rounds"]


@dataclass(frozen=True, slots=True)
class Rounds:
    """How the steps of a run follow the schedule, whose step decides learning rate, images and random numbers.

    Attributes
    ----------
    schedule : int
        Its steps.
    ticket : LotteryTicket or None
        What makes the run go back.
    """

    schedule: int
    ticket: LotteryTicket | None

    @classmethod
    def of(cls, controller: Controller | None, schedule: int) -> Rounds:
        """Return the rounds of a method; SpecError where it counts another number of steps for one of them."""
        ticket = controller if isinstance(controller, LotteryTicket) else None
        if ticket is not None and ticket.round_steps != schedule:
            raise SpecError(
                "The 'round_steps' parameter of LotteryTicket must be the steps that train gives to a method, "
                f"{schedule}. Got {ticket.round_steps}."
            )
        return cls(schedule, ticket)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.schedule if self.ticket is None else self.ticket.total_steps

    def position(self, step: int) -> int:
        """Return the step of the schedule that a step of the run takes; both are counted from 0."""
        return step if self.ticket is None else self.ticket.position_at(step)

    def ends(self, step: int) -> bool:
        """Whether the run goes back to an earlier step of the schedule after this one."""
        return step + 1 < self.steps and self.position(step + 1) != self.position(step) + 1

    def done(self, step: int) -> int:
        """Return the steps before this one since the run last went back, or began."""
        position = self.position(step)
        return position if step < self.schedule else position - self.position(self.schedule)
