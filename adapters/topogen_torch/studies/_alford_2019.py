"""The study of S. Alford, R. Robinett, L. Milechin and J. Kepner: how nets with a given sparse topology learn."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from topogen_torch._patterned import Patterned
from topogen_torch._training._train import train
from topogen_torch.controllers import Controller, OneShot
from topogen_torch.data import DataSet
from topogen_torch.studies._alford_2019_figures import figures
from topogen_torch.studies._alford_2019_methods import Pruning, Unchanged, Update, decay_linear_weights_only
from topogen_torch.studies._alford_2019_nets import network_of, patterns_in, patterns_of
from topogen_torch.studies._alford_2019_page import page
from topogen_torch.studies._alford_2019_rows import Row, all_rows, source_of
from topogen_torch.studies._study import Progress, Study

__all__ = ["STUDY", "run"]

RESULTS = {
    "test_accuracy": float,  # share of the test images, after the last step
    "unnamed": int,  # classes that no test image is taken for
    "connections": int,  # of all layers
    "possible": int,
    "curve": tuple,  # test accuracy after every epoch
    "update_steps": tuple,  # of iterative pruning: when it pruned,
    "update_densities": tuple,  # what was left of all layers together,
    "update_thresholds": tuple,  # and the least magnitude that stayed, layer by layer, one update after the other
}


class _Net(NamedTuple):
    model: nn.Module
    curve: tuple[float, ...]
    updates: tuple[Update, ...] = ()


def run(row: Row, data: DataSet, progress: Progress) -> dict[str, Any]:
    """Train the net of a row and judge it."""
    net = _net(row, data, progress)
    named = _named(net.model, data)
    layers = [layer for layer in net.model.modules() if isinstance(layer, Patterned)]
    return {
        "test_accuracy": float((named == data.test_y).mean()),
        "unnamed": len(data.classes) - len(np.unique(named)),
        "connections": sum(layer.nnz for layer in layers),
        "possible": sum(round(layer.nnz / layer.density) for layer in layers),
        "curve": net.curve,
        "update_steps": tuple(float(one.step) for one in net.updates),
        "update_densities": tuple(one.density for one in net.updates),
        "update_thresholds": tuple(level for one in net.updates for level in one.thresholds),
    }


@torch.no_grad()
def _named(model: nn.Module, data: DataSet) -> np.ndarray:
    """Return the class that each test image is taken for; of equal logits the first one counts."""
    model.eval()
    return np.concatenate([model(part).argmax(1).numpy() for part in torch.from_numpy(data.test_x).split(1000)])


# What rows of one structure share: its nets are trained once in a process. A process that finds a row's net missing
# here trains it again, to the same bits.
_SHARED: dict[tuple[Row, DataSet], _Net] = {}
_MOST_SHARED = 24


def _net(row: Row, data: DataSet, progress: Progress) -> _Net:
    if row.topology not in ("dense", "iterative"):
        return _made(row, data, progress)
    key = row, data
    if key not in _SHARED:
        if len(_SHARED) == _MOST_SHARED:
            del _SHARED[next(iter(_SHARED))]
        _SHARED[key] = _made(row, data, progress)
    return _SHARED[key]


def _made(row: Row, data: DataSet, progress: Progress) -> _Net:
    if row.topology in ("one-time", "one-time global"):
        return _Net(_structure(row, data, progress), ())
    is_pruned = row.topology.endswith("retrained")
    patterns = patterns_in(_structure(row, data, progress)) if is_pruned else patterns_of(row)
    return _trained(network_of(row, patterns), row, data, progress)


def _structure(row: Row, data: DataSet, progress: Progress) -> nn.Module:
    """Return the pruned net whose accuracy is asked for, or whose connections are trained anew."""
    model = _net(source_of(row), data, progress).model
    if row.topology.startswith("one-time"):
        model = copy.deepcopy(model)
        distribution = "global" if row.topology.startswith("one-time global") else "uniform"
        OneShot(model, density=row.density, distribution=distribution).step()
    return model


def _trained(model: nn.Module, row: Row, data: DataSet, progress: Progress) -> _Net:
    controllers: list[Controller] = []

    def method(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        decay_linear_weights_only(model, optimizer)
        if row.topology == "iterative":
            controllers.append(
                Pruning(
                    model, optimizer, density=row.density, begin_step=row.begin_step, end_step=row.end_step,
                    update_every=row.update_every,
                )
            )  # fmt: skip
        else:
            controllers.append(Unchanged(model, optimizer))
        return controllers[0]

    curve: list[float] = []
    train(
        model, data, epochs=row.epochs, batch_size=row.batch_size, lr=row.lr, schedule=row.schedule,
        momentum=row.momentum, weight_decay=row.weight_decay, seed=row.seed, method=method, on_step=progress,
        on_epoch=lambda epoch: curve.append(epoch.test_accuracy),
    )  # fmt: skip
    updates = controllers[0].updates if isinstance(controllers[0], Pruning) else ()
    return _Net(model, tuple(curve), tuple(updates))


STUDY = Study(
    name="alford-2019",
    title="Training behaviour of sparse topologies (Alford et al., 2019)",
    row=Row,
    results=RESULTS,
    rows=all_rows,
    run=run,
    page=page,
    figures=figures,
)
