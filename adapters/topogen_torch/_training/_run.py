"""A run of ``topogen train``: a folder that holds its settings, and everything that follows from them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import save as to_safetensors
from torch import nn

import topogen as tg
from topogen import checks
from topogen.errors import FormatError, SpecError
from topogen.io import replacing
from topogen_torch._reports._report import report
from topogen_torch._stack import sparse_mlp
from topogen_torch._training._curve import draw_curves
from topogen_torch._training._show import Show
from topogen_torch._training._train import Epoch, train
from topogen_torch.data import DataSet, check_name

__all__ = ["DEFAULTS", "Member", "Settings", "execute", "read_settings"]

_FORMAT = "topogen run 1"
_OWNER = "topogen train"
_INITIAL = 101  # names, below a member's seed, the draw of its initial weights; `_train` has 100

# What is trained where nothing else is asked for. Each spec was chosen by measuring; the first layer has one input a
# pixel and the last, dense, one output a class.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        # 24,960 of 249,600 connections, the read-out included: exactly 90 % sparse
        "spec": "Chain(RadixNet(systems=[[2, 8, 4]], widths=[1, 5, 5, 6]), Dense(sizes=[384, 10]))",
        "epochs": 20,
        "batch_size": 32,
        "lr": 0.05,
        "weight_decay": 0.001,
        "threads": 1,  # a step is too short to share: on a busy machine two threads wait for each other
    },
    "mnist": {  # LeNet-300-100
        "spec": "Chain(Trim(RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), [784, 300, 100], keep='last'), "
        "Dense(sizes=[100, 10]))",
        "epochs": 20,
        "batch_size": 100,
        "lr": 0.1,
    },
    "cifar10": {  # one Kronecker block for each colour
        "spec": "Chain(RadixNet(systems=[[32, 32]], widths=[3, 2, 1]), Dense(sizes=[1024, 10]))",
        "epochs": 20,
        "batch_size": 100,
        "lr": 0.05,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that decides the numbers of a run.

    Attributes
    ----------
    data : str
        Name of the data set.
    spec : AbstractSpec
        What is trained: as many inputs as the data has features, as many outputs as it has classes.
    epochs, batch_size, lr, momentum, weight_decay
        As for `train`.
    seed : int
        Of the first repeat; the others follow. A repeat's seed decides its random topologies, initial weights and
        order of the images.
    repeats : int >= 1
        How often every model is trained.
    twins : bool
        Whether to train beside it a dense twin (same sizes) and a random twin (same sizes, same number of connections
        in each layer).
    threads : int >= 1
        CPU threads.
    device, precision : str
        As Fabric's ``accelerator`` and ``precision``.
    """

    data: str
    spec: tg.AbstractSpec
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    repeats: int = 1
    twins: bool = True
    threads: int
    device: str = "cpu"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        check_name(self.data, "--data", _OWNER)
        checks.instance(self.spec, "--spec", _OWNER, tg.AbstractSpec, "an")
        checks.integer(self.epochs, "--epochs", _OWNER, low=1)
        checks.integer(self.batch_size, "--batch-size", _OWNER, low=1)
        checks.real(self.lr, "--lr", _OWNER, open_low=True)
        checks.real(self.momentum, "--momentum", _OWNER, high=1.0)
        checks.real(self.weight_decay, "--weight-decay", _OWNER)
        checks.integer(self.seed, "--seed", _OWNER, low=0)
        checks.integer(self.repeats, "--repeats", _OWNER, low=1)
        checks.integer(self.threads, "--threads", _OWNER, low=1)

    def check_fits(self, data: DataSet) -> None:
        """Refuse a spec whose first or last size, or a batch size, that the data cannot have."""
        needed = (data.features, len(data.classes))
        if (self.spec.sizes[0], self.spec.sizes[-1]) != needed:
            raise SpecError(
                f"The '--spec' parameter of {_OWNER} must have {needed[0]} inputs and {needed[1]} outputs "
                f"for {data.name}. Got sizes {self.spec.sizes}."
            )
        checks.integer(self.batch_size, "--batch-size", _OWNER, low=1, high=len(data.train_y))

    def fabric(self) -> Fabric:
        """Return the Fabric that these settings ask for; SpecError where this machine has none of the kind."""
        try:
            return Fabric(accelerator=self.device, devices=1, precision=self.precision)  # pyright: ignore[reportArgumentType]
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            raise SpecError(
                f"The '--device' and '--precision' parameters of {_OWNER} must be what Fabric finds on this machine. "
                f"Got {self.device!r} and {self.precision!r}: {' '.join(str(error).split())}"
            ) from None

    def to_json(self) -> str:
        """Return the settings as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return (
            json.dumps({"format": _FORMAT, **values, "spec": json.loads(tg.spec_to_json(self.spec))}, indent=2) + "\n"
        )


def read_settings(folder: Path) -> Settings:
    """Return the settings of the run in `folder`; SpecError where it is no run, FormatError where it is damaged."""
    path = folder / "settings.json"
    if not path.is_file():
        checks.refuse("--resume", _OWNER, "the folder of a run, which holds a settings.json", str(folder))
    try:
        values: Any = json.loads(path.read_bytes())
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise FormatError(f"it must be a JSON object of the format '{_FORMAT}'.")
        values["spec"] = tg.spec_from_json(json.dumps(values["spec"]))
        return Settings(**values)
    except (ValueError, KeyError, TypeError) as error:  # FormatError and SpecError are ValueErrors
        raise FormatError(f"{path} is damaged or foreign: {error}") from None


class Member(NamedTuple):
    """One training of a run: which of the models, and with which seed."""

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}"


def members(settings: Settings) -> Iterator[Member]:
    """Yield the trainings of a run, in order."""
    for repeat in range(settings.repeats):
        for kind in ("sparse", "dense", "random") if settings.twins else ("sparse",):
            yield Member(kind, settings.seed + repeat)


def topology_of(settings: Settings, member: Member) -> tg.Topology:
    """Return the topology that a member trains; of the dense one it is never needed."""
    net = tg.generate(settings.spec, rng=member.seed)
    if member.kind == "sparse":
        return net
    density = tuple(layer.nnz / (layer.shape[0] * layer.shape[1]) for layer in net)
    return tg.generate(tg.ErdosRenyi(sizes=net.sizes, density=density), rng=member.seed)


def model_of(settings: Settings, member: Member) -> nn.Module:
    """Return a member's model with its initial weights, drawn for the actual fan-in; biases start at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(tg.stream(np.random.SeedSequence(member.seed), _INITIAL).integers(2**62)))
        if member.kind != "dense":
            return sparse_mlp(topology_of(settings, member))
        return _dense_mlp(settings.spec.sizes)


def _dense_mlp(sizes: tuple[int, ...]) -> nn.Module:
    modules: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(n_in, n_out)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")  # as the sparse layers
        nn.init.zeros_(linear.bias)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def execute(settings: Settings, folder: Path, data: DataSet, show: Show) -> dict[Member, list[Epoch]]:
    """Carry a run out, or on from where it stopped, and write its folder.

    Parameters
    ----------
    settings : Settings
    folder : Path
        New, empty, or of a run with the same settings that has stopped.
    data : DataSet
    show : Show
        What the user sees.

    Returns
    -------
    dict
        The epochs of every member.

    Raises
    ------
    SpecError
        If settings and data do not fit together; nothing has been written then.
    KeyboardInterrupt
        On Ctrl-C, after a checkpoint has been written.
    """
    settings.check_fits(data)
    fabric = settings.fabric()
    torch.set_num_threads(settings.threads)
    first = next(members(settings))
    net = topology_of(settings, first)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(".topogen-*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    _write(folder / "settings.json", settings.to_json())
    _write(folder / "spec.json", tg.spec_to_json(settings.spec) + "\n")
    tg.save(net, folder / "topology.npz")
    tg.draw(net, folder / "topology.png")
    show.certificate(settings.spec, tg.verify(net))
    sample = torch.from_numpy(data.test_x[: settings.batch_size])
    optimizer = "momentum" if settings.momentum else "sgd"
    layers = report(model_of(settings, first), sample, optimizer=optimizer, break_even=False)
    _write(folder / "report.json", json.dumps(layers.to_dict(), indent=2) + "\n")
    _write(folder / "report.txt", f"{layers}\n")
    show.layers(layers)

    histories: dict[Member, list[Epoch]] = {}
    with show.progress(settings.epochs) as progress:
        for member in members(settings):
            model, rows = model_of(settings, member), histories.setdefault(member, [])
            on_step = progress.start(str(member))

            def on_epoch(row: Epoch, rows: list[Epoch] = rows) -> None:
                rows.append(row)
                _write(folder / "metrics.csv", _csv(histories))

            train(
                model,
                data,
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                seed=member.seed,
                fabric=fabric,
                checkpoint=folder / "checkpoints" / f"{member.kind}-seed{member.seed}.pt",
                on_step=on_step,
                on_epoch=on_epoch,
            )
            progress.finish(rows[-1])
            if member == first:
                with replacing(folder / "weights.safetensors") as file:
                    file.write(to_safetensors({name: t.cpu() for name, t in model.state_dict().items()}))
    draw_curves(histories, folder / "learning_curve.png", title=f"{data.name}: {settings.spec}")
    show.results(histories, net)
    return histories


def _csv(histories: dict[Member, list[Epoch]]) -> str:
    """Return one row an epoch of every member, numbers in full precision."""
    text = io.StringIO()
    names = [field.name for field in fields(Epoch)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "seed", *names])
    for member, rows in histories.items():
        writer.writerows([*member, *(getattr(row, name) for name in names)] for row in rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
