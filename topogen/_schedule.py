"""A number as a function of the training step: how density, drop fraction or penalty change while a network trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from topogen import checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Schedule", "cosine", "cubic", "linear", "sigmoid"]

_STEEPNESS = 6.0


def _logistic(p: float) -> float:
    """Fall from 1 to 0 as a logistic curve does between -`_STEEPNESS` and `_STEEPNESS`, scaled to reach both."""
    low, high = (1 / (1 + math.exp(sign * _STEEPNESS)) for sign in (1, -1))
    return (1 / (1 + math.exp(_STEEPNESS * (2 * p - 1))) - low) / (high - low)


# what is left of the way to the final value, at the share p of the time
_LEFT: dict[str, Callable[[float], float]] = {
    "cubic": lambda p: (1 - p) ** 3,
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "sigmoid": _logistic,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    r"""A number that moves from one value to another between two steps and stands still outside them.

    .. math:: v(t) = v_f + (v_i - v_f) \, \ell(p), \qquad p = \mathrm{clip}((t - t_0) / (t_1 - t_0), 0, 1)

    with :math:`\ell(0) = 1` and :math:`\ell(1) = 0`; both end values are met exactly.

    Parameters
    ----------
    shape : {"cubic", "linear", "cosine", "sigmoid"}
        :math:`\ell(p)`: :math:`(1 - p)^3`, :math:`1 - p`, :math:`(1 + \cos \pi p) / 2`, or a logistic curve.
    initial, final : float
        :math:`v_i` and :math:`v_f`.
    begin_step, end_step : int
        :math:`t_0 \le t_1`; where they are equal the value jumps at that step.

    Raises
    ------
    SpecError
        If a parameter is none of these.

    Examples
    --------
    >>> import topogen as tg
    >>> schedule = tg.cubic(initial=1.0, final=0.1, begin_step=0, end_step=10)
    >>> [round(schedule(step), 4) for step in (0, 1, 5, 9, 10, 99)]
    [1.0, 0.7561, 0.2125, 0.1009, 0.1, 0.1]
    """

    shape: str
    initial: float
    final: float
    begin_step: int
    end_step: int

    def __post_init__(self) -> None:
        checks.one_of(self.shape, "shape", "Schedule", tuple(_LEFT))
        for name in ("initial", "final"):
            object.__setattr__(self, name, checks.real(getattr(self, name), name, "Schedule"))
        begin = checks.integer(self.begin_step, "begin_step", "Schedule", low=0)
        end = checks.integer(self.end_step, "end_step", "Schedule", low=0)
        if end < begin:
            checks.refuse("end_step", "Schedule", f"at least begin_step, {begin}", end)

    def __call__(self, step: int) -> float:
        """Return the value at a step, counted from 0."""
        if step >= self.end_step:
            return self.final
        if step <= self.begin_step:
            return self.initial
        left = _LEFT[self.shape]((step - self.begin_step) / (self.end_step - self.begin_step))
        return self.initial * left + self.final * (1 - left)

    def plot(self, axes: Axes | None = None, **settings: Any) -> Axes:
        """Draw the value over the steps, a little beyond both ends; return the matplotlib axes.

        `settings` go to ``axes.plot``; without `axes` a new figure is made.
        """
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(5, 3), layout="constrained").subplots()
        canvas: Any = axes  # matplotlib's own types are partial
        margin = max(1, (self.end_step - self.begin_step) // 20)
        steps = range(max(0, self.begin_step - margin), self.end_step + margin + 1)
        shown = steps[:: max(1, len(steps) // 500)]
        canvas.plot(shown, [self(step) for step in shown], **settings)
        canvas.set_xlabel("step")
        return axes


def cubic(*, initial: float, final: float, begin_step: int, end_step: int) -> Schedule:
    """Return the schedule of gradual pruning: fast while there is much to spare, slow towards the end.

    ``final + (initial - final) * (1 - p)**3``; of densities or of sparsities, the formula is the same (M. Zhu and
    S. Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1).

    Parameters
    ----------
    initial, final : float >= 0
        Values at the two ends.
    begin_step, end_step : int >= 0
        Where the change begins and ends.

    Returns
    -------
    Schedule

    Raises
    ------
    SpecError
        As `Schedule`.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.cubic(initial=0.0, final=0.9, begin_step=0, end_step=10)(5)
    0.7875
    """
    return Schedule(shape="cubic", initial=initial, final=final, begin_step=begin_step, end_step=end_step)


def cosine(*, initial: float, final: float = 0.0, begin_step: int = 0, end_step: int) -> Schedule:
    """Return half a period of the cosine, as RigL's drop fraction follows it (arXiv:1911.11134, section 3 (2)).

    Parameters
    ----------
    initial, final : float >= 0
        Values at the two ends.
    begin_step, end_step : int >= 0
        Where the change begins and ends.

    Returns
    -------
    Schedule

    Raises
    ------
    SpecError
        As `Schedule`.

    Examples
    --------
    >>> import topogen as tg
    >>> [round(tg.cosine(initial=0.3, end_step=1000)(step), 6) for step in (0, 250, 500, 750, 1000)]
    [0.3, 0.256066, 0.15, 0.043934, 0.0]
    """
    return Schedule(shape="cosine", initial=initial, final=final, begin_step=begin_step, end_step=end_step)


def linear(*, initial: float, final: float, begin_step: int = 0, end_step: int) -> Schedule:
    """Return a straight line between the two values.

    Parameters
    ----------
    initial, final : float >= 0
        Values at the two ends.
    begin_step, end_step : int >= 0
        Where the change begins and ends.

    Returns
    -------
    Schedule

    Raises
    ------
    SpecError
        As `Schedule`.

    Examples
    --------
    >>> import topogen as tg
    >>> [tg.linear(initial=1.0, final=0.5, end_step=4)(step) for step in range(6)]
    [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    """
    return Schedule(shape="linear", initial=initial, final=final, begin_step=begin_step, end_step=end_step)


def sigmoid(*, initial: float, final: float, begin_step: int = 0, end_step: int) -> Schedule:
    """Return a logistic curve between the two values: slow at both ends, steepest in the middle.

    Parameters
    ----------
    initial, final : float >= 0
        Values at the two ends.
    begin_step, end_step : int >= 0
        Where the change begins and ends.

    Returns
    -------
    Schedule

    Raises
    ------
    SpecError
        As `Schedule`.

    Examples
    --------
    >>> import topogen as tg
    >>> [round(tg.sigmoid(initial=1.0, final=0.0, end_step=4)(step), 3) for step in range(5)]
    [1.0, 0.955, 0.5, 0.045, 0.0]
    """
    return Schedule(shape="sigmoid", initial=initial, final=final, begin_step=begin_step, end_step=end_step)
