"""How the settings of `mnist-methods` were chosen: by images held out of the training set, never by the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from topogen_torch.studies._mnist_methods import RESULTS, Row, measure
from topogen_torch.studies._mnist_methods_page import METHODS
from topogen_torch.studies._page import table
from topogen_torch.studies._study import Measured, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY", "Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Row):
    """A row that is known by its settings."""

    def __str__(self) -> str:
        rewiring = f", every {self.update_every}, drop {self.drop_fraction:g}, end {self.end:g}" if self.end else ""
        return f"{self.method} at {100 * self.density:g} %, lr {self.lr:g}, decay {self.weight_decay:g}{rewiring}"


_SHARED: dict[str, Any] = {"net": "300-100", "seed": 0, "epochs": 30, "held_out": 10_000}
_SET: dict[str, Any] = {"method": "set", "update_every": 200, "drop_fraction": 0.5, "end": 0.8}
_RIGL: dict[str, Any] = {"method": "rigl", "update_every": 100, "drop_fraction": 0.3, "end": 0.75}
_CUBIC: dict[str, Any] = {"method": "cubic", "update_every": 300, "end": 0.75}


def rows(quick: bool) -> list[Trial]:
    """Return the trials; the quick ones take one epoch."""
    shared: dict[str, Any] = _SHARED | ({"epochs": 1} if quick else {})
    rates: list[dict[str, Any]] = [
        {**method, "density": 0.01, "lr": lr}
        for lr in (0.1, 0.2, 0.3, 0.5)
        for method in (_SET, _RIGL, _CUBIC, {"method": "static"})
    ]
    at_03: list[dict[str, Any]] = [
        {**_SET, "density": 0.01, "lr": 0.3, **change}
        for change in (
            {"weight_decay": 0.0}, {"weight_decay": 3e-4}, {"update_every": 100}, {"update_every": 600},
            {"drop_fraction": 0.3}, {"end": 0.9}, {"lr": 0.8},
        )
    ]  # fmt: skip
    rigl: list[dict[str, Any]] = [
        {**_RIGL, "density": 0.01, "lr": 0.3, **change}
        for change in (
            {"update_every": 200, "drop_fraction": 0.5, "end": 0.8}, {"update_every": 300}, {"drop_fraction": 0.5},
            {"update_every": 300, "drop_fraction": 0.5},
        )
    ]  # fmt: skip
    dense = [{"method": "dense", "density": 1.0, "lr": lr} for lr in (0.1, 0.2, 0.3)]
    others = [
        {**method, "density": density, "lr": lr}
        for density in (0.1, 0.02)
        for method in (_SET, _RIGL, _CUBIC)
        for lr in (0.2, 0.3, 0.5)
    ]
    return [Trial(**shared | trial) for trial in (*rates, *at_03, *rigl, *dense, *others)]


def page(measured: Sequence[Measured]) -> str:
    """Return a table, the best of each method and density in bold."""
    best: dict[tuple[str, float], float] = {}
    for row, results, _ in measured:
        key = (row.method, row.density)
        best[key] = max(best.get(key, 0.0), results["test_accuracy"])
    lines: list[list[str]] = []
    for row, results, _ in sorted(measured, key=lambda one: (one.row.method, one.row.density)):
        accuracy = f"{100 * results['test_accuracy']:.2f}"
        if results["test_accuracy"] == best[row.method, row.density]:
            accuracy = f"**{accuracy}**"
        rewiring = ("-", "-", "-")
        if row.end:
            rewiring = (f"{row.update_every} steps", f"{row.drop_fraction:g}", f"{100 * row.end:g} %")
        lines.append([
            METHODS[row.method], f"{100 * row.density:g} %", f"{row.lr:g}", f"{row.weight_decay:g}", *rewiring,
            accuracy,
        ])  # fmt: skip
    header = [
        "method", "density", "learning rate", "weight decay", "rewired every", "drop fraction", "until", "accuracy [%]",
    ]  # fmt: skip
    return f"{_INTRODUCTION}\n{table(header, lines)}"


def figures(measured: Sequence[Measured]) -> Mapping[str, Figure]:
    """Return no pictures."""
    return {}


_INTRODUCTION = """\
LeNet-300-100, one seed, 30 epochs, trained on the first 50 000 training images of MNIST and judged on the other 10 000.
The test images were not looked at. What is not named is as in [the study itself](mnist-methods.md): momentum 0.9, batch
100, learning rate falling as a cosine, ERK.
"""

STUDY = Study(
    name="mnist-methods-tuning",
    title="Dynamic sparse training on MNIST: the choice of the settings",
    row=Trial,
    results=RESULTS,
    rows=rows,
    run=measure,
    page=page,
    figures=figures,
)
