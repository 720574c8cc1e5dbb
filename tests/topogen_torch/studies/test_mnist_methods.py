"""The rows of `mnist-methods`: truly sparse, with the budget that they name; measured on the bundled digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from topogen_torch.data import load_data
from topogen_torch.studies import _mnist_methods_page as page
from topogen_torch.studies._mnist_methods import STUDY, Row, measure, rows, topology
from topogen_torch.studies._study import Measured

DIGITS = load_data("digits")
SIZES = {"300-100": (784, 300, 100, 10), "1568-1568-1568": (784, 1568, 1568, 1568, 10)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(method: str, **changes) -> Row:
    """A row of the study's own settings, on a net for the digits."""
    row = next(row for row in rows(False) if row.method == method and row.net == "300-100")
    return replace(row, data="digits", net="32-16", batch_size=100, epochs=3, density=0.25, lr=0.2, **changes)


# LeNet-300-100's connections by layer: reference implementation of ERK, largest remainders
COUNTS = {0.1: (18714, 6906, 1000), 0.05: (9051, 3340, 919), 0.02: (3621, 1336, 367), 0.01: (1810, 668, 184)}


@pytest.mark.parametrize("density", COUNTS)
def test_the_budget_of_lenet_is_exact(density: float) -> None:
    for row in rows(False):
        if row.net == "300-100" and row.density == density and row.method in ("set", "rigl", "static"):
            assert tuple(layer.nnz for layer in topology(row, SIZES[row.net])) == COUNTS[density]


def test_the_budget_of_the_wide_net_leaves_its_output_dense() -> None:
    row = next(row for row in rows(False) if row.net == "1568-1568-1568" and row.method == "set")
    counts = [layer.nnz for layer in topology(row, SIZES[row.net])]
    assert sum(counts[:-1]) == round(0.01 * (784 * 1568 + 2 * 1568**2))
    assert counts[-1] == 15_680


def test_radix_has_the_density_that_it_is_listed_under() -> None:
    row = next(row for row in rows(False) if row.method == "radix")
    net = topology(row, SIZES[row.net])
    assert net.sizes == SIZES[row.net]
    assert [layer.nnz for layer in net] == [784 * 30, 300 * 10, 1000]
    assert abs(net.nnz / 266_200 - row.density) < 0.004


def test_seeds_come_one_after_the_other_and_every_figure_has_three() -> None:
    every = rows(False)
    lenet = [row for row in every if row.net == "300-100"]
    assert [row.seed for row in lenet] == sorted(row.seed for row in lenet)
    alike = {replace(row, seed=0) for row in every}
    assert all({r.seed for r in every if replace(r, seed=0) == row} == {0, 1, 2} for row in alike if row.density != 1)


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "cubic"])
def test_a_row_is_what_it_says(method: str) -> None:
    changes = {"update_every": 5} if method in ("set", "rigl", "cubic") else {}
    row = small(method, **changes)
    seen: list[tuple[int, int]] = []
    results = measure(row, DIGITS, lambda step, steps, loss, accuracy: seen.append((step, steps)))
    assert seen == [(step + 1, 45) for step in range(45)]
    assert set(results) == set(STUDY.results)
    assert all(isinstance(results[name], kind) for name, kind in STUDY.results.items())
    possible = 64 * 32 + 32 * 16 + 160
    assert results["connections"] == (possible if method == "dense" else round(0.25 * possible))
    assert results["explored"] == pytest.approx(results["connections"] / possible) or method in ("set", "rigl", "cubic")
    assert 0.25 <= results["explored"] <= 1
    assert (results["explored"] > 0.3) == (method != "static")
    assert results["test_accuracy"] == results["curve"][-1] > 0.5
    assert results["best_accuracy"] == max(results["curve"])
    assert len(results["curve"]) == 3


def test_a_row_is_a_function_of_row_and_data() -> None:
    row = small("set", update_every=5)
    torch.manual_seed(1)
    first = measure(row, DIGITS, lambda *_: None)
    torch.manual_seed(2)
    second = measure(row, DIGITS, lambda *_: None)
    other = measure(replace(row, seed=1), DIGITS, lambda *_: None)
    assert first | {"cpu_seconds": 0.0} == second | {"cpu_seconds": 0.0}
    assert other["curve"] != first["curve"]


def test_held_out_images_judge_and_are_not_trained_on() -> None:
    """Labels of the held-out images are wrong, those of the test images nonsense: neither helps nor is looked at."""
    row = replace(small("static"), held_out=442, epochs=8)
    wrong = DIGITS.train_y.copy()
    wrong[-442:] = (wrong[-442:] + 1) % 10
    data = replace(DIGITS, train_y=wrong, test_y=np.zeros_like(DIGITS.test_y))
    assert measure(row, data, lambda *_: None)["test_accuracy"] < 0.1
    assert measure(row, replace(data, train_y=DIGITS.train_y), lambda *_: None)["test_accuracy"] > 0.5


def test_the_page_has_published_figures_beside_ours() -> None:
    results = {
        "test_accuracy": 0.98, "best_accuracy": 0.981, "test_loss": 0.1, "train_accuracy": 1.0, "connections": 13310,
        "explored": 0.5, "active": 0.75, "cpu_seconds": 60.0, "curve": (0.9, 0.98),
    }  # fmt: skip
    about = dict.fromkeys(("seconds",), "61.0")
    measured = [
        Measured(row, results | {"test_accuracy": 0.98 + row.seed / 1000}, about)
        for row in rows(False)
        if (row.method, row.density) in (("set", 0.05), ("dense", 1.0)) and row.net == "300-100"
    ]
    text = page.body(measured)
    assert "| 5 % | SET | published | 98.14 |" in text
    assert "| 5 % | SET | ours | **98.10 ± 0.10** | 13,310 | 75 % | 60 s |" in text
    assert "RigL | ours" not in text
    for some in (measured, measured[:1], [one for one in measured if one.row.method == "dense"]):
        assert page.body(some).count("![") == len(page.figures(some)) == 2
