"""What a study is: rows to be measured, how to measure one, and what to say of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from topogen_torch.data import DataSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Measured", "Progress", "Study"]

Progress = Callable[[int, int, float, float], None]
"""``progress(step, steps, loss, accuracy)``: what `train` calls its `on_step`."""


class Measured(NamedTuple):
    """A row of the table: what was to be measured, what came out, and the circumstances.

    Attributes
    ----------
    row : dataclass
        The study's description of the row.
    results : dict
        The figures that the study promises, each of the type that it promises.
    about : dict of str
        Seconds, date, versions and machine: see `_ledger.ABOUT`.
    """

    row: Any
    results: dict[str, Any]
    about: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """An experiment that is measured row by row.

    Attributes
    ----------
    name, title : str
        For the command line, and for the page.
    row : type
        A frozen dataclass whose fields are ints, floats, strings and bools: all that decides the figures of a row.
        The field `data` names the data set. ``str(row)`` is what the user sees and selects by.
    results : mapping of str to type
        The figures that `run` returns: int, float, str, or tuple for a sequence of numbers.
    rows : callable
        ``rows(quick)`` returns the rows in the order in which they are measured.
    run : callable
        ``run(row, data, progress)`` measures one row and returns its figures. Nothing but the row and the data may
        decide them.
    page : callable
        ``page(measured)`` returns the body of the summary page, Markdown; `measured` is in the order of the rows.
    figures : callable
        ``figures(measured)`` returns the page's pictures by name; the page shows them as ``{study}-{name}.svg``.
    """

    name: str
    title: str
    row: type
    results: Mapping[str, type]
    rows: Callable[[bool], Sequence[Any]]
    run: Callable[[Any, DataSet, Progress], dict[str, Any]]
    page: Callable[[Sequence[Measured]], str]
    figures: Callable[[Sequence[Measured]], Mapping[str, Figure]]

    @property
    def settings(self) -> dict[str, type]:
        """Name and type of what describes a row."""
        hints = get_type_hints(self.row)
        return {field.name: hints[field.name] for field in fields(self.row)}
