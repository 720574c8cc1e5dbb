"""A study that takes no time: what the machinery is tested with, here and from processes of its own."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topogen.errors import TopogenError
from topogen_torch.data import DataSet
from topogen_torch.studies._page import by_settings, percent, table
from topogen_torch.studies._study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    data: str = "digits"
    method: str
    density: float
    bias: bool = True
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.method} at {self.density}, seed {self.seed}"


RESULTS = {"test_accuracy": float, "connections": int, "note": str, "curve": tuple}


TINY = DataSet(
    name="tiny",
    train_x=np.zeros((2, 4), np.float32), train_y=np.zeros(2, np.int64),
    test_x=np.zeros((1, 4), np.float32), test_y=np.zeros(1, np.int64),
    classes=tuple(map(str, range(10))), image_shape=(2, 2),
)  # fmt: skip


def rows(quick):
    densities = (0.1,) if quick else (0.1, 1 / 3)
    return [Row(method=m, density=d, seed=s) for s in range(2) for d in densities for m in ("set", "static")]


def run(row, data, progress) -> dict[str, Any]:
    """Say in a file that the row was measured, so that a test sees what was measured twice."""
    if log := os.environ.get("TOY_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{row}\n")
    progress(1, 2, 0.5, 0.5)
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    if os.environ.get("TOY_FAILS") == str(row):
        raise TopogenError("the loss is inf.")
    if os.environ.get("TOY_INTERRUPTS") == str(row):
        raise KeyboardInterrupt
    accuracy = 0.9 + row.density / 10 + row.seed / 1000 + len(data.classes) / 1e6
    return {
        "test_accuracy": accuracy, "connections": 7, "note": 'says "a, b"\nand c', "curve": (0.1, accuracy),
    }  # fmt: skip


def page(measured):
    figures = by_settings(measured, lambda row: (row.method, row.density))
    rows = ([f"{m} {d:.3g}", percent(accuracies)] for (m, d), accuracies in figures.items())
    return table(["method", "accuracy"], rows) + "\n![Accuracy](toy-accuracy.svg), see [another](toy-other.md)\n"


def figures(measured):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([one.results["test_accuracy"] for one in measured])
    return {"accuracy": figure}


STUDY = Study(
    name="toy", title="A toy", row=Row, results=RESULTS, rows=rows, run=run, page=page, figures=figures,
)  # fmt: skip
