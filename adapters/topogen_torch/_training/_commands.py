"""``topogen train`` and ``topogen prune``. Nothing heavy is imported before they run."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["prune", "require", "train"]

_TRAIN, _PRUNE = "topogen train", "topogen prune"

_DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder with mnist/ or cifar10/; then $TOPOGEN_DATA is looked in, then a download cache."
    ),
]
_Out = Annotated[Path | None, typer.Option(metavar="RUNDIR", help="New folder; by default runs/<data>-<time>.")]
_Logger = Annotated[
    list[str] | None,
    typer.Option("--logger", metavar="NAME", help="tensorboard or wandb, beside the CSV files; may come twice."),
]
_Optimizer = Annotated[str | None, typer.Option(metavar="NAME", help="sgd, nesterov, adam or adamw; sgd.")]
_Schedule = Annotated[
    str | None,
    typer.Option(metavar="NAME|{N: F}", help="cosine, linear, constant, or factors after epochs, '{30: 0.1}'; cosine."),
]
_Baseline = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        metavar="NAME",
        help="A further twin; may come several times. narrow: dense, with as many parameters; random: as many "
        "connections in each layer; shuffled, inverted: the method, with its scores dealt out anew or turned round; "
        "dense; static.",
    ),
]
_Threads = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads; as many as torch takes (digits: 1).")
]  # fmt: skip


def train(
    data: Annotated[
        str | None, typer.Option(metavar="digits|mnist|cifar10", help="Data set; digits by default.")
    ] = None,
    data_dir: _DataDir = None,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC|FILE.json",
            help="What to train; by default a RadixNet that suits the data, or a dense net for a method that prunes.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="What changes the connections, with settings: 'rigl(update_every=50)'. Moving them: set, rigl, snfs; "
            "pruning: cubic, movement, l1, threshold, lottery; pruning before training: oneshot, snip, grasp, synflow, "
            "neurons.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="20 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images a step; 100 (digits: 32).")] = None,
    accumulate: Annotated[
        int | None, typer.Option(metavar="N", help="Parts in which a batch is taken, for less memory; 1.")
    ] = None,
    optimizer: _Optimizer = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", help="First learning rate; 0.1 (mnist) or 0.05.")] = None,
    schedule: _Schedule = None,
    momentum: Annotated[float | None, typer.Option(metavar="M", help="0.9 by default; Adam's first beta.")] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="D", help="0.0001 (digits: 0.001).")] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="Of the first repeat; 0 by default.")] = None,
    repeats: Annotated[int | None, typer.Option(metavar="R", help="Seeds to train each model with; 1.")] = None,
    twins: Annotated[
        bool | None,
        typer.Option("--twins/--no-twins", help="Train a dense twin beside it, and a random or a static one, or not."),
    ] = None,
    baseline: _Baseline = None,
    threads: _Threads = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="As Fabric's accelerator; cpu by default.")] = None,
    devices: Annotated[int | None, typer.Option(metavar="N", help="Processes on each machine; 1.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Machines, each started by torchrun; 1.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="P", help="As Fabric's precision; 32-true by default.")
    ] = None,
    logger: _Logger = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="All of these settings from a .yaml or .py file; every run's folder has one."
        ),
    ] = None,
    out: _Out = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUNDIR", help="Go on with a run that has stopped.")] = None,
) -> None:
    """Train a sparse network, beside a dense and a random twin, and write a run folder."""
    require(_TRAIN, "torch", "lightning_fabric", "sklearn", "yaml")
    given = {
        "data": data, "spec": spec, "method": method, "epochs": epochs, "batch_size": batch_size,
        "accumulate": accumulate, "optimizer": optimizer, "lr": lr, "schedule": schedule, "momentum": momentum,
        "weight_decay": weight_decay, "seed": seed, "repeats": repeats, "twins": twins, "threads": threads,
        "baselines": baseline,
        "device": device, "devices": devices, "nodes": nodes, "precision": precision, "loggers": logger,
    }  # fmt: skip
    chosen = _parsed({name: value for name, value in given.items() if value is not None})
    from topogen_torch._training._recipe import read_recipe
    from topogen_torch._training._settings import read_settings

    _check_folder(data_dir, _TRAIN)
    if resume is not None:
        settings, folder = read_settings(resume), resume
        _check_unchanged(settings, chosen, out, recipe)
    else:
        if recipe is not None:
            _check_alone(chosen)
            chosen = read_recipe(recipe)
        settings = _new_settings(chosen)
        folder = _new_folder(out, settings, _TRAIN)
    _execute(settings, folder, data_dir, recipe=recipe if resume is None else None)


def prune(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUNDIR|FILE.safetensors", help="A run that is finished, or the weights of a multilayer perceptron."
        ),
    ],
    density: Annotated[
        float | None, typer.Option(metavar="D", help="Connections that stay / possible connections, in (0, 1].")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="How, with settings: oneshot, 'cubic(end=0.5)', movement, l1, threshold, lottery, snip, grasp, "
            "synflow or neurons; oneshot.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="digits|mnist|cifar10", help="Data set; a run has its own.")
    ] = None,
    data_dir: _DataDir = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="To train what is left; as the run.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images a step; as the run.")] = None,
    optimizer: _Optimizer = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", help="First learning rate; as the run.")] = None,
    schedule: _Schedule = None,
    momentum: Annotated[float | None, typer.Option(metavar="M", help="As the run.")] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="D", help="As the run.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="Of the first repeat; as the run.")] = None,
    repeats: Annotated[int | None, typer.Option(metavar="R", help="Seeds to train with; 1.")] = None,
    baseline: _Baseline = None,
    threads: _Threads = None,
    logger: _Logger = None,
    out: _Out = None,
) -> None:
    """Prune a trained network, train what is left, and write a new run folder; `topogen train --resume` goes on."""
    require(_PRUNE, "torch", "lightning_fabric", "sklearn", "yaml")
    from topogen.errors import SpecError
    from topogen_torch._training._members import model_from_weights
    from topogen_torch._training._methods import prunes, takes

    given = {
        "data": data, "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr,
        "schedule": schedule, "momentum": momentum, "weight_decay": weight_decay, "seed": seed, "threads": threads,
        "loggers": logger, "baselines": baseline or (),
    }  # fmt: skip
    chosen = _parsed(
        {name: value for name, value in given.items() if value is not None} | {"method": method or "oneshot"}
    )
    _check_folder(data_dir, _PRUNE)
    if density is not None:
        chosen["method"] = {**chosen["method"], "density": density}
    if takes(chosen["method"]["name"], "at"):  # what is trained need not be trained again first
        chosen["method"] = {"at": [0.0], **chosen["method"]}
    if takes(chosen["method"]["name"], "scope"):  # of a sparse net, some layers may be sparser than that already
        chosen["method"] = {"scope": "global", **chosen["method"]}
    weights = source / "weights.safetensors" if source.is_dir() else source
    content = weights.read_bytes()
    start = hashlib.sha256(content).hexdigest()
    before = _settings_before(source, chosen, model_from_weights(weights))
    settings = replace(before, **chosen, spec=None, start=start, twins=False, repeats=repeats or 1)
    if not prunes(settings.method):
        raise SpecError(
            f"The '--method' parameter of {_PRUNE} must be one that prunes. Got {chosen['method']['name']!r}."
        )
    _execute(settings, _new_folder(out, settings, _PRUNE), data_dir, source=weights)


def require(owner: str, *modules: str) -> None:
    """Leave with one sentence if a package is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            typer.echo(f"topogen: {owner} needs {module}: pip install 'topogen-nn[torch]'.", err=True)
            raise typer.Exit(2)


def _execute(
    settings: Any, folder: Path, data_dir: Path | None, *, recipe: Path | None = None, source: Path | None = None
) -> None:
    """Carry a run out; where it is stopped, say how to go on."""
    from topogen_torch._training._run import execute
    from topogen_torch._training._settings import launched_from_outside
    from topogen_torch._training._show import Show
    from topogen_torch.data import load_data

    show = Show(silent=launched_from_outside() and os.environ["RANK"] != "0")
    images = load_data(settings.data, data_dir)
    try:
        execute(settings, folder, images, show, recipe=recipe, source=source)
    except (KeyboardInterrupt, OSError):  # a full disk stops a run too
        command = ["topogen", "train", "--resume", str(folder)]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        if (folder / "settings.json").exists():
            show.err.print(f"stopped; to go on: {shlex.join(command)}", soft_wrap=True, markup=False)
        raise
    show.out.print(f"\nwrote {folder}{os.sep}", soft_wrap=True, markup=False)


def _parsed(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are expressions as what they say."""
    from topogen_torch._training._method_text import method_from_text, schedule_from_text

    readers = {
        "spec": _spec,
        "method": method_from_text,
        "schedule": schedule_from_text,
        "loggers": tuple,
        "baselines": tuple,
    }
    return {name: readers[name](value) if name in readers else value for name, value in chosen.items()}


def _spec(text: str) -> Any:
    import topogen as tg

    return tg.spec_from_json(Path(text).read_text()) if text.endswith(".json") else tg.spec_from_text(text)


def _new_settings(chosen: dict[str, Any]) -> Any:
    """Return what was chosen, and the data set's defaults for the rest."""
    import torch

    import topogen as tg
    from topogen_torch._training._methods import checked_method, prunes
    from topogen_torch._training._settings import DEFAULTS, Settings
    from topogen_torch.data import check_name

    name = chosen.get("data", "digits")
    check_name(name, "--data", _TRAIN)
    values = {"data": name, "threads": torch.get_num_threads(), **DEFAULTS[name], **chosen}
    if values.get("method") is not None and not callable(values["method"]):
        values["method"] = checked_method(values["method"], _TRAIN)
    if "spec" not in chosen:
        values["spec"] = tg.spec_from_text(values["spec"])
        if prunes(values.get("method")):
            values["spec"] = tg.Dense(sizes=values["spec"].sizes)
    return Settings(**values)


def _settings_before(source: Path, chosen: dict[str, Any], model: Any) -> Any:
    """Return the settings of the run that is pruned, or those that its data would have."""
    import topogen as tg
    from topogen.errors import SpecError
    from topogen_torch._layers import SparseLinear
    from topogen_torch._training._settings import read_settings

    if source.is_dir():
        settings = read_settings(source)
        if chosen.get("data", settings.data) != settings.data:
            raise SpecError(
                f"The '--data' parameter of {_PRUNE} must be the run's, {settings.data!r}. Got {chosen['data']!r}."
            )
        return settings
    if "data" not in chosen:
        raise SpecError(f"The '--data' parameter of {_PRUNE} must be given where {source} is no run. Got None.")
    layers = [module for module in model if isinstance(module, SparseLinear)]
    sizes = (layers[0].in_features, *(layer.out_features for layer in layers))
    return _new_settings({"data": chosen["data"], "spec": tg.Dense(sizes=sizes)})


def _check_folder(data_dir: Path | None, owner: str) -> None:
    from topogen import checks

    if data_dir is not None and not data_dir.is_dir():
        checks.refuse("--data-dir", owner, "a folder that exists", str(data_dir))


def _new_folder(out: Path | None, settings: Any, owner: str) -> Path:
    from topogen import checks
    from topogen_torch._training._settings import launched_from_outside

    if out is None and launched_from_outside():
        checks.refuse("--out", owner, "given where another program starts the processes, so that all know it", None)
    folder = out or Path("runs") / f"{settings.data}-{datetime.now():%Y-%m-%d-%H%M%S}"
    is_first = not launched_from_outside() or os.environ["RANK"] == "0"
    if is_first and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        checks.refuse(
            "--out", owner, "a new or an empty folder", str(folder), hint="To go on with a run, use --resume."
        )
    return folder


def _check_alone(chosen: dict[str, Any]) -> None:
    """Refuse options beside a recipe, which describes a run completely."""
    from topogen.errors import SpecError

    if chosen:
        options = _options(sorted(chosen))
        raise SpecError(f"{options} must be in the recipe: beside --recipe go --out and --data-dir only.")


def _check_unchanged(settings: Any, chosen: dict[str, Any], out: Path | None, recipe: Path | None) -> None:
    """Refuse options that differ from those of the run that is resumed."""
    from topogen.errors import SpecError
    from topogen_torch._training._methods import checked_method

    for option, value in (("--out", out), ("--recipe", recipe)):
        if value is not None:
            raise SpecError(f"The '{option}' option does not go with --resume: a run stays in its folder.")
    for field in fields(settings):
        had = getattr(settings, field.name)
        wanted = chosen.get(field.name, had)
        if field.name == "method" and "method" in chosen:
            wanted = checked_method(wanted, _TRAIN)
        if wanted != had:
            option = _options([field.name])
            raise SpecError(
                f"The {option} option of a run cannot change when it is resumed: it is {had!r}. Got {wanted!r}."
            )


def _options(names: Sequence[str]) -> str:
    typed = (
        f"--{name.removesuffix('s') if name in ('loggers', 'baselines') else name.replace('_', '-')}" for name in names
    )
    return ", ".join(f"'{option}'" for option in typed)
