"""SET, RigL and gradual pruning on MNIST, truly sparse, beside dense and static nets: accuracy by density."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

import topogen as tg
from topogen_torch._layers import SparseLinear
from topogen_torch._stack import sparse_mlp
from topogen_torch._training._train import train
from topogen_torch.controllers import SET, Controller, GradualMagnitude, RigL
from topogen_torch.data import DataSet
from topogen_torch.studies._mnist_methods_page import body, figures
from topogen_torch.studies._study import Progress, Study

__all__ = ["STUDY", "Row", "measure"]

_INITIAL = 103  # names, below a row's seed, the draw of its initial weights; a run of `topogen train` has 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training.

    Attributes
    ----------
    net : str
        Sizes of the hidden layers, "300-100".
    method : {"dense", "static", "radix", "set", "rigl", "cubic"}
        "static" is a random pattern that does not change, "radix" a RadiX-Net's; "cubic" is gradual magnitude pruning.
    density : float
        Of the whole net, biases not counted; of "cubic", at the end.
    distribution : str
        Of the density over the layers, as `topogen.connection_counts` has it; "radix" shares it out itself.
    dense_output : bool
        Whether the last layer is dense, and the density that of the others.
    update_every, drop_fraction, end : int, float, float
        Of the rewiring: every so many steps until this share of the training; 0 where there is none. `drop_fraction`
        is the first one, which falls as half a cosine.
    held_out : int
        Training images, the last ones, that are not trained on and judge in place of the test images.
    """

    data: str = "mnist"
    net: str
    method: str
    density: float
    seed: int
    epochs: int
    batch_size: int = 100
    optimizer: str = "sgd"
    lr: float = 0.1
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    distribution: str = "erk"
    dense_output: bool = False
    update_every: int = 0
    drop_fraction: float = 0.0
    end: float = 0.0
    held_out: int = 0

    def __str__(self) -> str:
        return f"{self.net} {self.method} at {100 * self.density:g} %, seed {self.seed}"

    @property
    def hidden(self) -> tuple[int, ...]:
        """Sizes of the hidden layers."""
        return tuple(map(int, self.net.split("-")))


RESULTS = {
    "test_accuracy": float,  # after the last epoch; of the images that judge
    "best_accuracy": float,  # of all epochs: what some papers report
    "test_loss": float,
    "train_accuracy": float,
    "connections": int,
    "explored": float,  # share of all places that were ever occupied
    "active": float,  # share of the hidden neurons that something reaches and that reach something
    "cpu_seconds": float,  # of one core, judging after every epoch included
    "curve": tuple,  # accuracy after each epoch
}


def measure(row: Row, data: DataSet, progress: Progress) -> dict[str, Any]:
    """Train one net."""
    data = _held_out(data, row.held_out)
    model, start = _model(row, data), time.process_time()
    epochs = train(
        model,
        data,
        epochs=row.epochs,
        batch_size=row.batch_size,
        optimizer=row.optimizer,
        lr=row.lr,
        schedule=row.schedule,
        momentum=row.momentum,
        weight_decay=row.weight_decay,
        method=(lambda *parts: _method(row, *parts)) if row.end else None,
        seed=row.seed,
        on_step=progress,
    )
    curve, last = tuple(epoch.test_accuracy for epoch in epochs), epochs[-1]
    layers = [module for module in model if isinstance(module, SparseLinear)]
    possible = sum(layer.possible for layer in last.layers)
    return {
        "test_accuracy": last.test_accuracy,
        "best_accuracy": max(curve),
        "test_loss": last.test_loss,
        "train_accuracy": last.train_accuracy,
        "connections": sum(layer.nnz for layer in layers),
        "explored": sum(layer.explored * layer.possible for layer in last.layers) / possible,
        "active": _active(layers),
        "cpu_seconds": round(time.process_time() - start, 1),
        "curve": curve,
    }


def topology(row: Row, sizes: tuple[int, ...]) -> tg.Topology:
    """Return the pattern that a row begins with."""
    if row.method == "radix":
        spec = tg.Chain(
            tg.Trim(tg.RadixNet(systems=((10, 10),), widths=(8, 3, 1)), (784, 300, 100), keep="last"),
            tg.Dense(sizes=sizes[-2:]),
        )
        return tg.generate(spec)
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    density = 1.0 if row.method in ("dense", "cubic") else row.density
    sparse = pairs[: -1 if row.dense_output else None]
    counts = tg.connection_counts(sparse, density=density, distribution=row.distribution)
    densities = [count / math.prod(pair) for count, pair in zip(counts, sparse, strict=True)]
    return tg.generate(tg.ErdosRenyi(sizes=sizes, density=(*densities, 1.0)[: len(pairs)]), rng=row.seed)


def _model(row: Row, data: DataSet) -> nn.Sequential:
    """Return the net with its initial weights, He's for the fan-in that each neuron has; biases start at 0."""
    net = topology(row, (data.features, *row.hidden, len(data.classes)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(tg.stream(np.random.SeedSequence(row.seed), _INITIAL).integers(2**62)))
        return sparse_mlp(net)


def _method(row: Row, model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    end, names = (
        round(row.end * steps),
        [name for name, layer in model.named_modules() if isinstance(layer, SparseLinear)],
    )
    layers = names[: -1 if row.dense_output else None]
    fraction = tg.cosine(initial=row.drop_fraction, end_step=end)
    if row.method == "set":
        return SET(model, optimizer, rng=row.seed, update_every=row.update_every, drop_fraction=fraction, layers=layers)
    if row.method == "rigl":
        return RigL(
            model,
            optimizer,
            end_step=end,
            update_every=row.update_every,
            drop_fraction=row.drop_fraction,
            layers=layers,
        )
    return GradualMagnitude(
        model, optimizer, density=row.density, begin_step=0, end_step=end, update_every=row.update_every,
        distribution=row.distribution, layers=layers,
    )  # fmt: skip


def _held_out(data: DataSet, count: int) -> DataSet:
    """Return the data with its last `count` training images in place of the test images."""
    if not count:
        return data
    return replace(
        data,
        train_x=data.train_x[:-count], train_y=data.train_y[:-count],
        test_x=data.train_x[-count:], test_y=data.train_y[-count:],
    )  # fmt: skip


def _active(layers: Sequence[SparseLinear]) -> float:
    """Return the share of the hidden neurons that have both a connection from before and one to behind."""
    active = total = 0
    for before, behind in zip(layers[:-1], layers[1:], strict=True):
        reached, reaching = before.fan_in() > 0, behind.indptr.diff() > 0
        active += int((reached & reaching).sum())
        total += before.out_features
    return active / total


def rows(quick: bool) -> list[Row]:
    """Return the rows: all methods of a seed before those of the next, and what takes an hour at the end."""
    if quick:
        return [row for row in _lenet(0, (0.05,), epochs=5) if row.method != "radix"]
    wide = [_wide(method, seed) for seed in range(3) for method in ("rigl", "set", "static")]
    seeds = [_lenet(seed, (0.01, 0.02, 0.1, 0.05), epochs=100) for seed in range(3)]
    return [*seeds[0], *wide[:3], *seeds[1], *seeds[2], *wide[3:], _wide("dense", 0)]


# what was chosen, by the last 10 000 training images: see the study `mnist-methods-tuning`
_CHOSEN: dict[str, dict[str, Any]] = {
    "set": {"lr": 0.3, "update_every": 200, "drop_fraction": 0.5, "end": 0.8},
    "rigl": {"lr": 0.3, "update_every": 300, "drop_fraction": 0.5, "end": 0.75},
    "cubic": {"lr": 0.2, "update_every": 300, "end": 0.75},
    "static": {"lr": 0.2},
    "radix": {"lr": 0.2},
    "dense": {"lr": 0.2},
}


def _lenet(seed: int, densities: Sequence[float], epochs: int) -> list[Row]:
    shared: dict[str, Any] = {"net": "300-100", "seed": seed, "epochs": epochs}
    sparse = [
        Row(**shared, method=method, density=density, **_CHOSEN[method])
        for density in densities
        for method in ("set", "rigl", "cubic", "static")
    ]
    radix = Row(**shared, method="radix", density=0.1, **_CHOSEN["radix"])
    return [*sparse, radix, Row(**shared, method="dense", density=1.0, **_CHOSEN["dense"])]


def _wide(method: str, seed: int) -> Row:
    density = 1.0 if method == "dense" else 0.01
    chosen: dict[str, Any] = {
        **_CHOSEN[method],
        "lr": 0.2,
    }  # deeper and wider, it diverges at rates that LeNet still takes
    return Row(net="1568-1568-1568", method=method, density=density, seed=seed, epochs=100, dense_output=True, **chosen)


STUDY = Study(
    name="mnist-methods",
    title="Dynamic sparse training on MNIST",
    row=Row,
    results=RESULTS,
    rows=rows,
    run=measure,
    page=body,
    figures=figures,
)
