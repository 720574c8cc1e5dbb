"""The picture of a run: loss and test accuracy over the epochs, one colour a model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topogen.io import replacing

if TYPE_CHECKING:
    from topogen_torch._training._epoch import Epoch
    from topogen_torch._training._run import Member

__all__ = ["draw_curves"]

_COLOURS = {
    "sparse": "#0072b2",
    "dense": "#444444",
    "random": "#d55e00",
    "static": "#009e73",
    "narrow": "#cc79a7",
    "shuffled": "#e69f00",
    "inverted": "#56b4e9",
}  # told apart by the colour-blind too


def draw_curves(histories: Mapping[Member, Sequence[Epoch]], path: Path, *, title: str) -> None:
    """Draw the learning curves of a run as PNG: each model's mean over its seeds, in a band from least to most."""
    from matplotlib.figure import Figure  # a figure of our own: no window, no global state
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    kinds = list(dict.fromkeys(member.kind for member in histories))
    for kind in kinds:
        runs = [rows for member, rows in histories.items() if member.kind == kind]
        epochs = [row.epoch for row in runs[0]]
        marker = "o" if len(epochs) == 1 else None  # a line of one point cannot be seen
        for axes, name, style, unit in (
            (loss_axes, "train_loss", "--", 1),
            (loss_axes, "test_loss", "-", 1),
            (accuracy_axes, "test_accuracy", "-", 100),
        ):
            values = unit * np.array([[getattr(row, name) for row in rows] for rows in runs])
            axes.plot(epochs, values.mean(0), style, color=_COLOURS[kind], linewidth=1.6, marker=marker)
            if len(runs) > 1:
                axes.fill_between(epochs, values.min(0), values.max(0), color=_COLOURS[kind], alpha=0.15, linewidth=0)
    loss_axes.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy_axes.set(xlabel="epoch", ylabel="test accuracy [%]")
    for axes in (loss_axes, accuracy_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    keys = [Line2D([], [], color=_COLOURS[kind], label=kind) for kind in kinds]
    keys += [Line2D([], [], color="grey", label="test"), Line2D([], [], color="grey", linestyle="--", label="training")]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    figure.suptitle(textwrap.fill(title, 120), fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
