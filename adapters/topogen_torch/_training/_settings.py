"""All that decides the numbers of a run, checked; as JSON in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

import topogen as tg
from topogen import checks
from topogen.errors import FormatError, SpecError
from topogen_torch._training._descent import OPTIMIZERS, check_schedule
from topogen_torch._training._given import unknown
from topogen_torch._training._loggers import LOGGERS
from topogen_torch._training._methods import checked_method, is_dynamic, score_baselines
from topogen_torch.data import DataSet, check_name

__all__ = ["BASELINES", "DEFAULTS", "FORMAT", "SCORED", "Settings", "launched_from_outside", "read_settings"]

FORMAT = "topogen run 2"
SCORED = ("shuffled", "inverted")  # what a method's scores have to beat
BASELINES = ("dense", "narrow", "random", "static", *SCORED)
_OWNER = "topogen train"

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
    spec : AbstractSpec or None
        What is trained: as many inputs as the data has features, as many outputs as it has classes. None where the
        run begins with weights, whose pattern is trained.
    start : str or None
        SHA-256 of the weights that the run begins with, the file start.safetensors in its folder; None where they are
        drawn.
    epochs, batch_size, accumulate, optimizer, lr, schedule, momentum, weight_decay
        As for `train`.
    method : mapping, callable or None
        Settings of a method by name, as `checked_method` returns them; or what `train` takes, from a recipe in Python.
    seed : int
        Of the first repeat; the others follow. A repeat's seed decides its random topologies, initial weights, order of
        the images and what its method draws.
    repeats : int >= 1
        How often every model is trained.
    twins : bool
        Whether to train twins beside it: a dense one (same sizes), and a static one. Of a method that moves connections
        that is the same topology, left alone; without a method a random one with as many connections in each layer. A
        method that prunes has the dense twin only.
    baselines : tuple of {"dense", "narrow", "random", "static", "shuffled", "inverted"}
        Twins to train beside these: "narrow" is dense with as many parameters as the net has in the end, in narrower
        hidden layers; "random" has as many connections in each layer as the net has in the end; "shuffled" and
        "inverted" follow the method with its scores dealt out anew within each layer, or turned round.
    threads : int >= 1
        CPU threads.
    device, precision : str
        As Fabric's ``accelerator`` and ``precision``.
    devices, nodes : int >= 1
        Processes on each machine, and machines.
    loggers : tuple of {"tensorboard", "wandb"}
        Who is told of each epoch, beside metrics.csv.
    """

    data: str
    spec: tg.AbstractSpec | None
    start: str | None = None
    epochs: int
    batch_size: int
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float
    schedule: str | Mapping[int, float] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    method: Mapping[str, Any] | Callable[..., Any] | None = None
    seed: int = 0
    repeats: int = 1
    twins: bool = True
    baselines: tuple[str, ...] = ()
    threads: int
    device: str = "cpu"
    precision: str = "32-true"
    devices: int = 1
    nodes: int = 1
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.data, "--data", _OWNER)
        if self.start is None:
            checks.instance(self.spec, "--spec", _OWNER, tg.AbstractSpec, "an")
        for name in ("epochs", "batch_size", "accumulate", "repeats", "threads", "devices", "nodes"):
            checks.integer(getattr(self, name), f"--{name.replace('_', '-')}", _OWNER, low=1)
        checks.one_of(self.optimizer, "--optimizer", _OWNER, OPTIMIZERS)
        checks.real(self.lr, "--lr", _OWNER, open_low=True)
        object.__setattr__(self, "schedule", check_schedule(self.schedule, "--schedule", _OWNER))
        checks.real(self.momentum, "--momentum", _OWNER, high=1.0)
        checks.real(self.weight_decay, "--weight-decay", _OWNER)
        checks.integer(self.seed, "--seed", _OWNER, low=0)
        checks.instance(self.twins, "--twins", _OWNER, bool)
        if self.method is not None and not callable(self.method):
            object.__setattr__(self, "method", checked_method(self.method, _OWNER))
        object.__setattr__(self, "baselines", self._checked_baselines())
        loggers = checks.row(self.loggers, "--logger", _OWNER, "a sequence of names")
        object.__setattr__(self, "loggers", tuple(checks.one_of(one, "--logger", _OWNER, LOGGERS) for one in loggers))

    @property
    def possible_baselines(self) -> tuple[str, ...]:
        """Return the baselines that a run with this method, or with these weights to begin with, can have."""
        names = ("narrow", "random") if self.start is not None else ("dense", "narrow", "random")
        begins_sparse = callable(self.method) or is_dynamic(self.method)  # left alone, a dense start is a dense twin
        return (*names, *(("static",) if begins_sparse else ()), *score_baselines(self.method))

    def _checked_baselines(self) -> tuple[str, ...]:
        """Return the baselines, each once."""
        given = checks.row(self.baselines, "--baseline", _OWNER, "a sequence of names")
        for name in given:
            if name not in BASELINES:
                nearest = unknown(name, BASELINES)
                raise SpecError(f"The '--baseline' parameter of {_OWNER} must be a baseline ({nearest}). Got {name!r}.")
            if name not in self.possible_baselines:
                where = f"for the method {self.method['name']!r}" if isinstance(self.method, Mapping) else "here"
                where = "without a method" if self.method is None else where
                allowed = " or ".join(map(repr, self.possible_baselines))
                raise SpecError(f"The '--baseline' parameter of {_OWNER} must be {allowed} {where}. Got {name!r}.")
        return tuple(dict.fromkeys(given))

    def check_fits(self, data: DataSet) -> None:
        """Refuse a spec whose first or last size, or a batch size, that the data cannot have."""
        if self.spec is not None:
            check_sizes(self.spec.sizes, data, "--spec")
        checks.integer(self.batch_size, "--batch-size", _OWNER, low=1, high=len(data.train_y))

    def fabric(self) -> Fabric:
        """Return the Fabric that these settings ask for; SpecError where this machine has none of the kind."""
        processes = self.devices * self.nodes
        self._check_launched(processes)
        strategy = "auto" if processes == 1 else "ddp" if launched_from_outside() else "ddp_spawn"
        try:
            return Fabric(
                accelerator=self.device, devices=self.devices, num_nodes=self.nodes, strategy=strategy,
                precision=self.precision,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            raise SpecError(
                f"The '--device' and '--precision' parameters of {_OWNER} must be what Fabric finds on this machine. "
                f"Got {self.device!r} and {self.precision!r}: {' '.join(str(error).split())}"
            ) from None

    def _check_launched(self, processes: int) -> None:
        """Refuse what would wait for processes that nobody starts."""
        if self.nodes > 1 and not launched_from_outside():
            checks.refuse(
                "--nodes", _OWNER, "1 where no launcher has started the processes", self.nodes,
                hint=f"torchrun --nnodes {self.nodes} --nproc-per-node {self.devices} --no-python topogen train ... "
                "starts them, on each machine; for more processes on this one there is --devices.",
            )  # fmt: skip
        if launched_from_outside() and int(os.environ["WORLD_SIZE"]) != processes:
            raise SpecError(
                f"The '--devices' and '--nodes' parameters of {_OWNER} must make the {os.environ['WORLD_SIZE']} "
                f"processes that the launcher has started. Got {self.devices} times {self.nodes}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as numbers, strings, lists and mappings; a method that is a function by its name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["spec"] = None if self.spec is None else json.loads(tg.spec_to_json(self.spec))
        if callable(self.method):
            values["method"] = {"function": getattr(self.method, "__qualname__", type(self.method).__name__)}
        return values | {name: list(getattr(self, name)) for name in ("baselines", "loggers")}

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, indent=2) + "\n"


def check_sizes(sizes: tuple[int, ...], data: DataSet, parameter: str) -> None:
    """Refuse a network whose first or last size the data cannot have."""
    needed = (data.features, len(data.classes))
    if (sizes[0], sizes[-1]) != needed:
        raise SpecError(
            f"The '{parameter}' parameter of {_OWNER} must have {needed[0]} inputs and {needed[1]} outputs "
            f"for {data.name}. Got sizes {sizes}."
        )


def launched_from_outside() -> bool:
    """Whether torchrun, or a cluster's launcher that does as it does, has started the processes."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ)


def read_settings(folder: Path) -> Settings:
    """Return the settings of the run in `folder`; SpecError where it is no run, FormatError where it is damaged."""
    path = folder / "settings.json"
    if not path.is_file():
        checks.refuse("--resume", _OWNER, "the folder of a run, which holds a settings.json", str(folder))
    try:
        values: Any = json.loads(path.read_bytes())
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise FormatError(f"it must be a JSON object of the format '{FORMAT}'.")
        if values["spec"] is not None:
            values["spec"] = tg.spec_from_json(json.dumps(values["spec"]))
        if isinstance(values.get("schedule"), dict):  # JSON has no numbers as keys
            values["schedule"] = {int(epoch): factor for epoch, factor in values["schedule"].items()}
        method: Any = values.get("method")
        if isinstance(method, dict) and "function" in method:
            from topogen_torch._training._recipe import read_recipe

            values["method"] = read_recipe(folder / "recipe.py")["method"]
        return Settings(**values)
    except (ValueError, KeyError, TypeError) as error:  # FormatError and SpecError are ValueErrors
        raise FormatError(f"{path} is damaged or foreign: {error}") from None
