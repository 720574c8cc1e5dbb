"""The study of Alford et al.: its rows, and what is measured of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import topogen as tg
from topogen_torch._layers import SparseLinear
from topogen_torch.data import DataSet
from topogen_torch.studies import _alford_2019, study_named
from topogen_torch.studies._alford_2019 import RESULTS, STUDY, run
from topogen_torch.studies._alford_2019_methods import Pruning, Unchanged, decay_linear_weights_only
from topogen_torch.studies._alford_2019_nets import network_of, patterns_in, patterns_of
from topogen_torch.studies._alford_2019_rows import DENSITIES, Row, all_rows, source_of

SHORT = {"epochs": 2, "batch_size": 20, "begin_step": 4, "end_step": 12, "update_every": 4}  # 20 steps


def data_set() -> DataSet:
    """200 images of MNIST's size, each class brighter in a part of its own."""
    rng = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 10, n)
        x = rng.random((n, 784), dtype=np.float32) / 4
        for image, label in zip(x, y, strict=True):
            image[70 * label : 70 * label + 70] += 0.5
        return x, y

    (train_x, train_y), (test_x, test_y) = part(200), part(60)
    return DataSet(
        name="mnist", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y, classes=tuple("0123456789"),
        image_shape=(28, 28),
    )  # fmt: skip


DATA = data_set()


@pytest.fixture(autouse=True)
def _one_thread_and_nothing_shared() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _alford_2019._SHARED.clear()
    yield
    torch.set_num_threads(threads)


def short(**wanted: Any) -> Row:
    """Return the first row of LeNet-300-100 with these settings, made short."""
    rows = (row for row in all_rows(False) if all(getattr(row, name) == value for name, value in wanted.items()))
    return replace(next(rows), **SHORT)


def measured(row: Row) -> dict[str, Any]:
    return run(row, DATA, lambda *_: None)


PRUNINGS = ("one-time", "one-time global", "iterative")


# ---- rows


@pytest.mark.parametrize("quick", [False, True])
def test_rows_and_their_names_are_different(quick: bool) -> None:
    rows = all_rows(quick)
    assert len(set(rows)) == len(rows)
    assert len({str(row) for row in rows}) == len(rows)


def test_lenet_300_100_comes_first_and_one_structure_of_everything_before_two() -> None:
    rows = all_rows(False)
    networks = [row.network for row in rows]
    first = networks.count("lenet-300-100")
    assert set(networks[:first]) == {"lenet-300-100"}
    for topology in ("dense", "one-time retrained", "random"):
        structures = [row.structure for row in rows[:first] if row.topology == topology and row.factor < 100]
        assert structures == sorted(structures)
        assert set(structures) == {0, 1, 2}
    assert {row.network for row in all_rows(True)} == {"lenet-300-100"}


def test_what_is_published_of_lenet_300_100_has_three_nets_at_least() -> None:
    rows = [row for row in all_rows(False) if row.network == "lenet-300-100"]
    for recipe in ("published", "unrectified", "modern"):
        for topology in (*PRUNINGS, *(f"{way} retrained" for way in PRUNINGS)):
            for density in DENSITIES:
                wanted = (recipe, topology, density)
                assert sum((row.recipe, row.topology, row.density) == wanted for row in rows) >= 3


def test_every_source_is_a_row_that_comes_before() -> None:
    before: set[Row] = set()
    for row in all_rows(False):
        if row.topology.endswith("retrained") or row.topology.startswith("one-time"):
            source = source_of(row)
            assert source in before
            assert source.topology == ("iterative" if row.topology == "iterative retrained" else "dense")
            assert source.seed == row.structure
        before.add(row)


def test_the_study_is_known_by_its_name_and_promises_what_it_measures() -> None:
    assert study_named("alford-2019") is STUDY
    assert STUDY.settings.keys() >= {"data", "seed", "epochs", "lr", "rectified"}
    result = measured(short(topology="radix", density=0.1))
    assert {name: type(value) for name, value in result.items()} == RESULTS


# ---- what is measured


@pytest.mark.parametrize("recipe", ["published", "unrectified", "modern"])
def test_every_kind_of_row_has_the_connections_that_it_says(recipe: str) -> None:
    possible = (235_200, 30_000, 1_000)
    for topology in ("one-time", "iterative", "one-time retrained", "iterative retrained"):
        result = measured(short(recipe=recipe, topology=topology, density=0.05))
        assert result["connections"] == sum(round(0.05 * count) for count in possible)
        assert result["possible"] == sum(possible)
        assert len(result["curve"]) == (0 if topology == "one-time" else SHORT["epochs"])
    assert measured(short(recipe=recipe, topology="dense"))["connections"] == sum(possible)


def test_a_row_is_measured_alike_whatever_was_measured_before() -> None:
    retrained = short(recipe="published", topology="iterative retrained", density=0.1)
    alone = measured(retrained)
    _alford_2019._SHARED.clear()
    for topology in ("dense", "one-time", "iterative"):
        measured(short(recipe="published", topology=topology, density=1.0 if topology == "dense" else 0.1))
    assert measured(retrained) == alone


def test_one_time_pruning_leaves_the_net_that_others_share() -> None:
    dense = short(recipe="modern", topology="dense")
    before = measured(dense)
    measured(short(recipe="modern", topology="one-time", density=0.01))
    measured(short(recipe="modern", topology="one-time retrained", density=0.01))
    assert measured(dense) == before


def test_one_threshold_prunes_all_layers_together() -> None:
    dense, pruned = (
        _alford_2019._net(row, DATA, lambda *_: None).model
        for row in (
            short(recipe="modern", topology="dense"),
            short(recipe="modern", topology="one-time global", density=0.1),
        )
    )
    before, after = (
        {name: layer.values.detach().abs() for name, layer in model.named_modules() if isinstance(layer, SparseLinear)}
        for model in (dense, pruned)
    )
    threshold = torch.cat(list(before.values())).sort(descending=True).values[26_620 - 1]
    for name, values in after.items():
        assert torch.equal(values.sort().values, before[name][before[name] >= threshold].sort().values)
    assert sum(len(values) for values in after.values()) == 26_620


@pytest.mark.parametrize("topology", PRUNINGS)
def test_retraining_keeps_the_structure_and_nothing_else(topology: str) -> None:
    pruned, retrained = (
        short(recipe="modern", topology=f"{topology}{end}", density=0.1, structure=0) for end in ("", " retrained")
    )
    before, after = (_alford_2019._net(row, DATA, lambda *_: None).model for row in (pruned, retrained))
    anew = network_of(retrained, patterns_in(before))
    for name, pattern in patterns_in(before).items():
        assert (pattern != patterns_in(after)[name]).nnz == 0
        assert (pattern != patterns_in(anew)[name]).nnz == 0
        assert not torch.equal(anew.get_submodule(name).values, before.get_submodule(name).values)


def test_classes_that_no_image_is_taken_for_are_counted() -> None:
    class Sevens(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(torch.where(x[:, 0] > x[:, 1], 7, 3), 10).float()

    named = _alford_2019._named(Sevens(), DATA)
    assert set(named) == {3, 7}
    assert named.tolist() == np.where(DATA.test_x[:, 0] > DATA.test_x[:, 1], 7, 3).tolist()


def test_shared_nets_are_bounded() -> None:
    row = short(topology="radix")
    for seed in range(_alford_2019._MOST_SHARED + 3):
        _alford_2019._SHARED[replace(row, seed=seed), DATA] = _alford_2019._Net(nn.Identity(), ())
        if len(_alford_2019._SHARED) == _alford_2019._MOST_SHARED:
            break
    measured(short(topology="dense", recipe="modern"))
    assert len(_alford_2019._SHARED) == _alford_2019._MOST_SHARED


# ---- methods


def model() -> nn.Module:
    row = short(recipe="published", topology="dense")
    return network_of(row, patterns_of(row))


def test_the_penalty_is_one_of_linear_weights() -> None:
    net = nn.Sequential(network_of(short(topology="radix"), patterns_of(short(topology="radix"))), nn.Conv1d(1, 1, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.25)
    decay_linear_weights_only(net, optimizer)
    before = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in net.named_parameters():
        factor = 1 - 0.5 * 0.25 if name.endswith("values") else 1.0
        assert torch.equal(tensor, before[name] * factor), name


def test_pruning_records_what_it_left() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = Pruning(net, optimizer, density=0.1, begin_step=2, end_step=6, update_every=2)
    layers = [layer for layer in net.modules() if isinstance(layer, SparseLinear)]
    for step in range(1, 9):
        if method.step():
            update = method.updates[-1]
            assert update.step == step
            assert update.density == sum(layer.nnz for layer in layers) / 266_200
            assert update.thresholds == tuple(layer.values.abs().min().item() for layer in layers)
    assert [update.step for update in method.updates] == [2, 4, 6]
    schedule = tg.cubic(initial=1.0, final=0.1, begin_step=2, end_step=6)
    assert [update.density for update in method.updates] == pytest.approx(
        [schedule(step) for step in (2, 4, 6)], abs=1e-5
    )
    assert method.updates[0].thresholds < method.updates[1].thresholds < method.updates[2].thresholds


def test_iterative_rows_tell_when_and_how_far_they_pruned() -> None:
    result = measured(short(recipe="published", topology="iterative", density=0.1))
    assert result["update_steps"] == (4.0, 8.0, 12.0)
    assert result["update_densities"][-1] == result["connections"] / result["possible"]
    assert len(result["update_thresholds"]) == 9


def test_unchanged_changes_nothing() -> None:
    net = model()
    method = Unchanged(net, None)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items() if isinstance(tensor, torch.Tensor)}
    assert [method.step() for _ in range(3)] == [False] * 3
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert method._proposal(1) == []
