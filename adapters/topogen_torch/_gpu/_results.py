"""What the benchmark of a card has found, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from topogen_torch._gpu._accuracy import BOUNDS, Accuracy
from topogen_torch._gpu._cases import Case
from topogen_torch._gpu._ceilings import Ceilings
from topogen_torch._gpu._goals import goal_lines
from topogen_torch._gpu._timed import Row
from topogen_torch._gpu._training_steps import Steps
from topogen_torch._gpu._tune import Tuned

__all__ = ["Results", "row_line"]

_HEADER = [
    "n", "b", "pattern", "kernel", "forward ms", "dx ms", "dw ms", "both ms", "TFLOP/s", "of the ceiling",
    "of the copy", "of L2", "forward, dense", "both, dense", "forward, BSR",
]  # fmt: skip
_NOT = "not measured"


@dataclass(slots=True, kw_only=True)
class Results:
    """What was measured so far, of what was `planned`."""

    facts: dict[str, str]
    settings: dict[str, Any]
    ceilings: Ceilings | None = None
    accuracies: list[Accuracy] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    planned: list[tuple[Case, str]] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)
    steps: list[Steps] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def missing(self) -> list[tuple[Case, str]]:
        """What failed, or was not begun within the budget."""
        found = {(row.case, row.kernel) for row in self.rows}
        return [each for each in self.planned if each not in found]

    @property
    def holds(self) -> bool:
        """Whether all that was checked was right; a task that failed has shown nothing."""
        return not self.failures and all(each.holds for each in (*self.accuracies, *self.rows))

    @property
    def ceiling(self) -> float | None:
        """FLOP/s of the dense product in the dtype of the table."""
        return None if self.ceilings is None else self.ceilings.products[self.settings["dtype"]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, strings, lists and dicts, ready for JSON: seconds, FLOP/s, bytes."""
        return {
            "facts": self.facts,
            "settings": self.settings,
            "complete": self.complete,
            "ceilings": None if self.ceilings is None else self.ceilings._asdict(),
            "accuracies": [each._asdict() | {"holds": each.holds} for each in self.accuracies],
            "tuned": [each._asdict() | {"config": asdict(each.config)} for each in self.tuned],
            "rows": [asdict(row) | {"rate": row.rate, "holds": row.holds} for row in self.rows],
            "not measured": [asdict(case) | {"kernel": kernel} for case, kernel in self.missing],
            "steps": [each._asdict() for each in self.steps],
            "failures": self.failures,
        }

    def to_markdown(self) -> str:
        """Return the tables."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield ", ".join(f"{name} {value}" for name, value in self.facts.items())
        yield ""
        settings = self.settings
        yield (
            f"Square layers, {settings['dtype']}, {settings['tokens']} tokens; medians of graphs. `dx` and `dw` are "
            "the gradients of input and values, `both` is the forward pass with them; a ratio is how many times as "
            "fast as what it names, `of the copy` the share of the copy rate if no byte moved twice, "
            "`of L2` that of its rate by what the programs read and write."
        )
        yield ""
        yield from _table_head(_HEADER)
        for row in sorted(self.rows, key=lambda row: row.case.n):
            yield row_line(row, self.ceilings, self.ceiling)
        for case, kernel in self.missing:
            yield f"| {case.n} | {case.block} | {case.name} | {kernel} |" + f" {_NOT} |" * (len(_HEADER) - 4)
        yield ""
        yield from _tuned_lines(self.tuned)
        yield from _ceiling_lines(self.ceilings)
        yield ""
        yield from _accuracy_lines(self.accuracies)
        yield ""
        yield from _step_lines(self.steps)
        yield ""
        yield from goal_lines(self.rows, self.ceilings)
        for text in self.failures:
            yield ""
            yield f"**Failed:** {text}"
        if not self.complete:
            yield ""
            yield "Stopped before everything was measured."


def row_line(row: Row, ceilings: Ceilings | None, ceiling: float | None) -> str:
    """Return one line of the table of layers."""
    cells = [
        str(row.case.n),
        str(row.case.block),
        row.case.name,
        row.kernel,
        *(_figure(seconds * 1e3) for seconds in (row.forward, row.input_gradient, row.value_gradient, row.both)),
        _figure(row.rate / 1e12),
        _NOT if ceiling is None else f"{100 * row.rate / ceiling:.3g} %",
        _NOT if ceilings is None else f"{100 * row.bytes / row.both / ceilings.copy:.3g} %",
        _NOT
        if ceilings is None or ceilings.l2 is None or row.through_l2 is None
        else f"{100 * row.through_l2 / row.both / ceilings.l2:.3g} %",
        f"{_figure(row.dense.forward / row.forward)}x",
        f"{_figure(row.dense.both / row.both)}x{'' if row.holds else ' **WRONG**'}",
        _NOT
        if row.bsr is None
        else f"{_figure(row.bsr.forward / row.forward)}x{'' if row.bsr.as_graph else ', launched'}",
    ]
    return f"| {' | '.join(cells)} |"


def _ceiling_lines(ceilings: Ceilings | None) -> Iterator[str]:
    yield from _table_head(["ceiling", "measured"])
    if ceilings is None:
        yield f"| dense product, copy, L2 | {_NOT} |"
        return
    for name, rate in ceilings.products.items():
        yield f"| dense product, {name} | {_figure(rate / 1e12)} TFLOP/s |"
    yield f"| copy, bytes read and written | {_figure(ceilings.copy / 1e12)} TB/s |"
    yield f"| reading L2 | {_NOT if ceilings.l2 is None else f'{_figure(ceilings.l2 / 1e12)} TB/s'} |"


def _tuned_lines(tuned: list[Tuned]) -> Iterator[str]:
    if not tuned:
        return
    yield from _table_head(["tuned for this card", "settings", "times as fast as before"])
    for each in tuned:
        settings = ", ".join(f"{name} {value}" for name, value in asdict(each.config).items())
        yield f"| {each.key} | {settings} | {_figure(each.default_seconds / each.seconds)} |"
    yield ""


def _accuracy_lines(accuracies: list[Accuracy]) -> Iterator[str]:
    """Yield the largest error of each kernel over all blocks, by arithmetic."""
    names = list(dict.fromkeys(each.kernel for each in accuracies))
    yield from _table_head(["largest relative error", *(f"{name} (<= {bound:g})" for name, bound in BOUNDS.items())])
    for name in names or ["all kernels"]:
        cells: list[str] = []
        for arithmetic in BOUNDS:
            mine = [each for each in accuracies if (each.kernel, each.arithmetic) == (name, arithmetic)]
            errors = [each.error for each in mine if each.error is not None]
            wrong = "" if all(each.holds for each in mine) else " **WRONG**"
            cells.append(f"{max(errors):.2g}{wrong}" if errors else "not checked")
        yield f"| {name} | {' | '.join(cells)} |"


def _step_lines(steps: list[Steps]) -> Iterator[str]:
    yield from _table_head(["training", "weights", "step ms", "as a graph, ms", "peak MiB", "loss, first to last"])
    for each in steps:
        graph = _NOT if each.graph_step is None else _figure(each.graph_step * 1e3)
        peak = _NOT if each.peak is None else f"{each.peak / 2**20:.0f}"
        loss = " to ".join(f"{value:.4g}" for value in each.loss)
        yield f"| {each.model} | {each.kind} | {_figure(each.step * 1e3)} | {graph} | {peak} | {loss} |"
    if not steps:
        yield f"| all models |{f' {_NOT} |' * 5}"


def _table_head(names: list[str]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
