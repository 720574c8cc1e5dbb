"""The pictures of the study of Alford et al."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from topogen_torch.studies._alford_2019_published import CURVES, GIVEN, PRUNED
from topogen_torch.studies._alford_2019_rows import DENSITIES, RECIPES
from topogen_torch.studies._study import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from topogen_torch.studies._alford_2019_rows import Row

__all__ = ["RECIPE_TITLES", "RETRAINED", "figures", "figures_of", "sparsity"]

RECIPE_TITLES = {
    "published": "published settings",
    "unrectified": "no rectifier on the logits",
    "modern": "this library's settings",
}

RETRAINED = ("one-time retrained", "one-time global retrained", "iterative retrained")
"""The topologies of nets that were trained anew on what pruning left."""

_COLOURS = {"published": "#d55e00", "unrectified": "#0072b2", "modern": "#009e73"}  # told apart by the colour-blind too
_LAYER_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_CROSS: dict[str, Any] = {"marker": "x", "color": "#111111", "linestyle": "none", "markersize": 6, "zorder": 4}
_HOLLOW: dict[str, Any] = {**_CROSS, "marker": "D", "markersize": 5, "markerfacecolor": "none"}
_ASIDE = 0.12  # of RadiX, so that it does not hide random patterns
_PRINTED = "published, one net each"


def figures(measured: Sequence[Measured]) -> Mapping[str, Figure]:
    """Return the pictures that there are rows for, by name: four for each network and data set."""
    drawn: dict[str, Figure] = {}
    for net in PRUNED:
        own = [one for one in measured if (one.row.network, one.row.data) == net]
        for name in figures_of(own):
            drawn["-".join((*net, name))] = _FIGURES[name][1](own, net)
    return drawn


def figures_of(own: Sequence[Measured]) -> list[str]:
    """Return the names of the pictures that the rows of one network on one data set make."""
    topologies = {one.row.topology for one in own}
    return [name for name, (needed, _) in _FIGURES.items() if topologies & needed]


def _pruned(measured: Sequence[Measured], net: tuple[str, str]) -> Figure:
    """Draw what pruning leaves, not trained any further: once after the training, or little by little during it."""
    figure, panels = _panels(1, 3)
    titles = {
        "one-time": "pruned once, every layer alike",
        "one-time global": "pruned once, by one threshold",
        "iterative": "pruned during training",
    }
    for axes, (topology, title) in zip(panels, titles.items(), strict=True):
        printed = CURVES[net] if topology == "one-time global" else PRUNED[net].get(topology, {})
        places = [1.0, *DENSITIES]
        for recipe in RECIPES:
            groups = _grouped(measured, lambda row: row.density, recipe, topology, "dense")
            _band(axes, [places.index(density) for density in groups], list(groups.values()), recipe)
        _printed(axes, [places.index(d) for d in printed], list(printed.values()))
        _sparsities(axes, places)
        axes.set_title(title, fontsize=9)
    panels[0].set_ylabel("test accuracy [%]")
    lows = [100 * one.results["test_accuracy"] for one in measured if one.row.topology == "iterative"]
    panels[-1].set_ylim(min([*lows, *PRUNED[net].get("iterative", {}).values()]) - 1, None)
    _legend(figure, _recipes(measured))
    return figure


def _instability(measured: Sequence[Measured], net: tuple[str, str]) -> Figure:
    """Draw one dot for each net that was trained anew on a pruned structure."""
    anew = [one for one in measured if one.row.topology in RETRAINED]
    topologies, recipes = [name for name in RETRAINED if any(one.row.topology == name for one in anew)], _recipes(anew)
    figure, panels = _panels(len(topologies), len(recipes), height=0.4 + 3 * len(topologies), share="all")
    panels = np.reshape(panels, (len(topologies), -1))
    for row_of_panels, topology in zip(panels, topologies, strict=True):
        for axes, recipe in zip(row_of_panels, recipes, strict=True):
            for place, density in enumerate(DENSITIES):
                nets = [
                    one for one in measured
                    if (one.row.recipe, one.row.topology, one.row.density) == (recipe, topology, density)
                ]  # fmt: skip
                aside = place + np.linspace(-0.22, 0.22, len(nets)) if len(nets) > 1 else [place] * len(nets)
                axes.plot(
                    aside, [100 * one.results["test_accuracy"] for one in nets], "o", markersize=4.5, alpha=0.8,
                    markeredgewidth=0, color=_COLOURS[recipe],
                )  # fmt: skip
            printed = PRUNED[net].get(topology, {})
            _printed(axes, [DENSITIES.index(density) for density in printed], list(printed.values()))
            _sparsities(axes, DENSITIES)
            axes.set_ylim(0, 103)
            axes.set_yticks(range(0, 101, 10))
        row_of_panels[0].set_ylabel(f"{topology}:\ntest accuracy [%]")
    for axes, recipe in zip(panels[0], recipes, strict=True):
        axes.set_title(RECIPE_TITLES[recipe], fontsize=9)
    _legend(figure, recipes, dots=True)
    return figure


def _given(measured: Sequence[Measured], net: tuple[str, str]) -> Figure:
    """Draw random and RadiX patterns: the same size with fewer connections, as many connections in a larger net."""
    figure, (size, count) = _panels(1, 2, share="row")
    densities, factors = (1.0, 0.5, 0.1, 0.05, 0.01), (1, 2, 10, 100)
    sides: tuple[tuple[Axes, Sequence[float], Callable[[Row], float | None]], ...] = (
        (size, densities, lambda row: row.density if row.factor == 1 else None),
        (count, factors, lambda row: row.factor if row.factor > 1 or row.topology == "dense" else None),
    )
    for axes, places, key in sides:
        for recipe in RECIPES:
            groups = _grouped(measured, key, recipe, "random", "dense")
            order = sorted(groups, key=places.index)
            _band(axes, [places.index(k) for k in order], [groups[k] for k in order], recipe)
            groups = _grouped(measured, key, recipe, "radix")
            for k, accuracies in groups.items():
                axes.plot(
                    [places.index(k) + _ASIDE] * len(accuracies), accuracies, "D", markersize=5, alpha=0.85,
                    color=_COLOURS[recipe], markeredgecolor="white", markeredgewidth=0.6,
                )  # fmt: skip
        printed = {("random", 1.0, 1): PRUNED[net]["dense"][1.0], **GIVEN[net]}
        for (topology, density, factor), accuracy in printed.items():
            place = density if axes is size else factor
            if axes is (size if factor == 1 else count) or density == 1.0:
                aside, mark = (_ASIDE, _HOLLOW) if topology == "radix" else (0.0, _CROSS)
                axes.plot([places.index(place) + aside], [accuracy], **mark)
        axes.set_xticks(range(len(places)))
    _sparsities(size, densities)
    count.set_xticklabels([str(factor) for factor in factors])
    count.set_xlabel("width of the layer / width in the dense net")
    size.set_title("the same size, fewer connections", fontsize=9)
    count.set_title("a larger net, as many connections", fontsize=9)
    size.set_ylabel("test accuracy [%]")
    _legend(figure, _recipes(measured), diamond=True)
    return figure


def _threshold(measured: Sequence[Measured], net: tuple[str, str]) -> Figure:
    """Draw sparsity and threshold of iterative pruning over the steps."""
    first = next(one.row for one in measured if one.row.topology == "iterative")
    traced = [
        one for one in measured
        if (one.row.topology, one.row.recipe, one.row.seed) == ("iterative", first.recipe, first.seed)
    ]  # fmt: skip
    figure, (left, right) = _panels(1, 2)
    shades = np.linspace(0.35, 1.0, len(traced))
    for one, shade in zip(traced, shades, strict=True):
        steps, densities = one.results["update_steps"], one.results["update_densities"]
        left.step(
            [0, *steps], [0.0, *(100 * (1 - density) for density in densities)], where="post", color="#0072b2",
            alpha=shade, linewidth=1.6,
        )  # fmt: skip
        left.annotate(
            sparsity(one.row.density), (steps[-1], 100 * (1 - one.row.density)), (4, -9),
            textcoords="offset points", fontsize=8, color="#333333",
        )  # fmt: skip
    left.set(xlabel="step", ylabel="sparsity [%]", ylim=(0, 104))
    left.set_title("sparsity over time, by final sparsity", fontsize=9)
    one = next((one for one in traced if one.row.density == 0.05), traced[-1])
    steps = one.results["update_steps"]
    thresholds = np.array(one.results["update_thresholds"]).reshape(len(steps), -1)
    names = ("dense1", "dense2", "logits") if net[0] == "lenet-300-100" else ("conv1", "conv2", "dense1", "logits")
    for name, levels, colour in zip(names, thresholds.T, _LAYER_COLOURS, strict=False):
        right.plot(steps, levels, "o-", markersize=3, color=colour, linewidth=1.4, label=name)
    right.set(xlabel="step", ylabel="threshold: least magnitude kept", ylim=(0, None))
    right.set_title(f"threshold over time, at {sparsity(one.row.density)} in the end", fontsize=9)
    right.legend(frameon=False, fontsize=8)
    return figure


# name -> topologies of which there must be a row, and what draws it
_FIGURES: dict[str, tuple[set[str], Callable[[Sequence[Measured], tuple[str, str]], Figure]]] = {
    "pruned": ({"iterative"}, _pruned),
    "instability": (set(RETRAINED), _instability),
    "given": ({"random", "radix"}, _given),
    "threshold": ({"iterative"}, _threshold),
}


# ---- what they share


def _panels(rows: int, columns: int, *, height: float = 4.2, share: Any = False) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # a figure of our own: no window, no global state

    figure = Figure(figsize=(10, height), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharey=share))
    for axes in panels.flat:
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _recipes(measured: Sequence[Measured]) -> list[str]:
    present = {one.row.recipe for one in measured}
    return [recipe for recipe in RECIPES if recipe in present]


def _grouped(
    measured: Sequence[Measured], key: Callable[[Row], Any], recipe: str, *topologies: str
) -> dict[Any, list[float]]:
    """Return the accuracies [%] of a recipe's nets by ``key(row)``, where it is not None."""
    groups: dict[Any, list[float]] = {}
    for one in measured:
        if one.row.recipe == recipe and one.row.topology in topologies and key(one.row) is not None:
            groups.setdefault(key(one.row), []).append(100 * one.results["test_accuracy"])
    return groups


def _band(axes: Axes, places: Sequence[int], groups: Sequence[Sequence[float]], recipe: str) -> None:
    """Draw means, in a band from least to most."""
    canvas: Any = axes  # matplotlib's own types are partial
    means = [float(np.mean(group)) for group in groups]
    canvas.plot(places, means, "o-", markersize=3.5, linewidth=1.6, color=_COLOURS[recipe])
    canvas.fill_between(
        places, [min(group) for group in groups], [max(group) for group in groups], color=_COLOURS[recipe], alpha=0.15,
        linewidth=0,
    )  # fmt: skip


def _printed(axes: Axes, places: Sequence[int], accuracies: Sequence[float]) -> None:
    axes.plot(places, accuracies, **_CROSS)


def sparsity(density: float) -> str:
    """Return 1 - density in percent."""
    return f"{100 * (1 - density):g} %"


def _sparsities(axes: Axes, densities: Sequence[float]) -> None:
    axes.set_xticks(range(len(densities)), [sparsity(density) for density in densities])
    axes.set_xlabel("sparsity")


def _legend(figure: Any, recipes: Sequence[str], *, dots: bool = False, diamond: bool = False) -> None:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": "o", "linestyle": "none"} if dots else {}
    keys = [Line2D([], [], color=_COLOURS[recipe], label=RECIPE_TITLES[recipe], **style) for recipe in recipes]
    keys.append(Line2D([], [], label=_PRINTED, **_CROSS))
    if diamond:
        keys.append(Line2D([], [], color="grey", label="random"))
        keys.append(Line2D([], [], color="grey", marker="D", linestyle="none", label="RadiX"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8.5)
