"""The page of the study of Alford et al.: every figure on it is one of the table, beside the one that was printed."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from topogen_torch.studies._alford_2019_figures import figures
from topogen_torch.studies._alford_2019_page import page
from topogen_torch.studies._alford_2019_published import CURVES, GIVEN, PRUNED
from topogen_torch.studies._alford_2019_rows import Row, all_rows
from topogen_torch.studies._study import Measured

ROWS = all_rows(False)


def invented(rows: Sequence[Row], *, unnamed: int = 0) -> list[Measured]:
    """Return rows with figures that were never measured."""
    rng = np.random.default_rng(0)
    return [Measured(row, results(row, float(rng.uniform(0.5, 1)), unnamed), {}) for row in rows]


def results(row: Row, accuracy: float, unnamed: int) -> dict[str, Any]:
    steps: tuple[float, ...] = ()
    if row.topology == "iterative":
        steps = tuple(float(step) for step in range(row.begin_step, row.end_step + 1, row.update_every))
    layers = 3 if row.network == "lenet-300-100" else 4
    return {
        "test_accuracy": accuracy, "unnamed": unnamed if row.recipe == "published" else 0, "connections": 1234,
        "possible": 5678, "curve": (accuracy,), "update_steps": steps,
        "update_densities": tuple(np.linspace(1, row.density, len(steps))),
        "update_thresholds": tuple(np.linspace(0, 1, layers * len(steps))),
    }  # fmt: skip


def section(text: str, title: str) -> str:
    """Return what stands under a title of the second level."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.M)[0]


def test_tables_have_means_and_spreads_beside_the_published() -> None:
    measured = invented(ROWS)
    text = section(page(measured), "LeNet-300-100 on MNIST")
    for topology, title in (
        ("iterative", "Pruned during training"),
        ("one-time retrained", "Trained anew on the structure of one-time pruning, the same share of every layer"),
        ("iterative retrained", "Trained anew on the structure of iterative pruning"),
    ):
        under = text.split(f"### {title}\n")[1]
        for density, printed in PRUNED["lenet-300-100", "mnist"][topology].items():
            cells: list[str] = []
            for recipe in ("published", "unrectified", "modern"):
                own = [
                    100 * one.results["test_accuracy"]
                    for one in measured
                    if (one.row.network, one.row.recipe, one.row.topology, one.row.density)
                    == ("lenet-300-100", recipe, topology, density)
                ]
                count = "" if len(own) == 3 else f" ({len(own)} nets)"
                cells.append(f"{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}{count}")
            assert f"| {100 * (1 - density):g} % | {printed:.2f} | {' | '.join(cells)} |" in under


def test_what_was_not_published_or_not_measured_is_said() -> None:
    rows = [row for row in ROWS if row.network == "lenet-300-100" and row.recipe == "published" and row.structure == 0]
    text = page(invented(rows))
    assert "| RadiX, 50 % | 1,234 | not given |" in text
    assert "| not measured | not measured |" in section(text, "LeNet-300-100 on MNIST")
    assert section(text, "LeNet-5 on MNIST").strip() == "Not measured yet."
    assert section(text, "LeNet-5 on CIFAR-10").strip() == "Not measured yet."


def test_lost_classes_are_counted_by_net() -> None:
    text = page(invented(ROWS, unnamed=2))
    assert "65 of 65 (published settings), 0 of 65 (no rectifier on the logits), 0 of 45 (this library's" in text
    assert "| one-time retrained, 99 % | 5 of 5 | 0 of 5 | 0 of 3 |" in text
    assert "| one-time global retrained, 99 % | 3 of 3 | 0 of 3 | 0 of 3 |" in text


def test_both_ways_of_pruning_once_stand_beside_what_was_published() -> None:
    accuracies = {
        ("one-time", 0.1): 0.825, ("one-time global", 0.1): 0.951,
        ("one-time retrained", 0.01): 0.552, ("one-time global retrained", 0.01): 0.927,
    }  # fmt: skip
    rows = [row for row in ROWS if row.network == "lenet-300-100" and row.recipe == "published"]
    measured = [
        Measured(row, results(row, accuracies[row.topology, row.density], 0), {})
        for row in rows
        if (row.topology, row.density) in accuracies
    ]
    text = page(measured)
    assert "nets have 95.10 % with one threshold and 82.50 % with the same share of every layer" in text
    assert "about 95.2 % is published. Trained anew at 99 %, 92.70 and 55.20 %; 56.08 % is published." in text
    assert "One threshold, or" not in page(measured[:2])


def test_differences_between_radix_and_random_are_those_of_means() -> None:
    rows = [row for row in ROWS if row.network == "lenet-300-100" and row.recipe == "modern" and row.density == 0.1]
    rows = [row for row in rows if row.factor == 1 and row.topology in ("radix", "random")]
    measured = [Measured(row, results(row, 0.9 + 0.01 * (row.topology == "radix"), 0), {}) for row in rows]
    assert "is +1.00 to +1.00 points (this library's settings). Published" in page(measured)


@pytest.mark.parametrize("count", [1, 12, 40, len(ROWS)])
def test_the_page_shows_the_pictures_that_there_are(count: int) -> None:
    measured = invented(ROWS[:count])
    shown = set(re.findall(r"\(alford-2019-([a-z0-9-]+)\.svg\)", page(measured)))
    assert shown == set(figures(measured))


def test_every_retrained_net_is_a_dot_of_the_instability_figure() -> None:
    rows = [row for row in ROWS if row.network == "lenet-300-100"]
    measured = invented(rows)
    drawn = figures(measured)["lenet-300-100-mnist-instability"]
    wanted = sorted(
        round(100 * one.results["test_accuracy"], 9) for one in measured if one.row.topology.endswith("retrained")
    )
    dots = [
        round(float(y), 9) for axes in drawn.axes for line in axes.lines if line.get_marker() == "o"
        for y in np.asarray(line.get_ydata())
    ]  # fmt: skip
    assert sorted(dots) == wanted
    crosses = [
        float(y) for axes in drawn.axes for line in axes.lines if line.get_marker() == "x"
        for y in np.asarray(line.get_ydata())
    ]  # fmt: skip
    printed = PRUNED["lenet-300-100", "mnist"]
    assert sorted(crosses) == sorted(
        3 * [*printed["one-time retrained"].values(), *printed["iterative retrained"].values()]
    )


def test_every_published_figure_has_its_rows() -> None:
    keys = {(row.network, row.data, row.topology, row.density, row.factor) for row in ROWS}
    for net, topologies in PRUNED.items():
        for topology, accuracies in topologies.items():
            assert all((*net, topology, density, 1) in keys for density in accuracies)
    for net, densities in CURVES.items():
        assert all((*net, "one-time global", density, 1) in keys for density in densities)
    for net, patterns in GIVEN.items():
        assert all((*net, *pattern) in keys for pattern in patterns)
