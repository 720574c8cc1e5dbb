"""A run of ``topogen train``: a folder that holds its settings, and everything that follows from them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from safetensors.torch import save as to_safetensors
from torch import nn

import topogen as tg
from topogen import checks
from topogen.io import replacing
from topogen_torch._layers import SparseLinear
from topogen_torch._reports._report import report
from topogen_torch._training._curve import draw_curves
from topogen_torch._training._descent import make_optimizer
from topogen_torch._training._epoch import Epoch, LayerState
from topogen_torch._training._loggers import Logger, check_loggers, open_loggers
from topogen_torch._training._members import (
    START,
    Member,
    follows_method,
    members,
    method_of,
    model_of,
    topology_of,
)
from topogen_torch._training._methods import epochs_of, is_once
from topogen_torch._training._recipe import recipe_text
from topogen_torch._training._settings import SCORED, Settings, check_sizes, launched_from_outside, read_settings
from topogen_torch._training._show import Show
from topogen_torch._training._train import train
from topogen_torch.data import DataSet

__all__ = ["execute"]

_OWNER = "topogen train"
Histories = dict[Member, list[Epoch]]
Connections = dict[str, int]  # of each kind of member at the end of its first training


def execute(
    settings: Settings,
    folder: Path,
    data: DataSet,
    show: Show,
    *,
    recipe: Path | None = None,
    source: Path | None = None,
) -> Histories:
    """Carry a run out, or on from where it stopped, and write its folder.

    Parameters
    ----------
    settings : Settings
    folder : Path
        New, empty, or of a run with the same settings that has stopped.
    data : DataSet
    show : Show
        What the user sees.
    recipe : Path, optional
        The file that the settings of a new run come from; the folder gets a copy.
    source : Path, optional
        The weights that a new run begins with; the folder gets a copy.

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
    check_loggers(settings.loggers, _OWNER)
    fabric = settings.fabric()
    torch.set_num_threads(settings.threads)
    from_outside = fabric.world_size > 1 and launched_from_outside()
    is_first = not from_outside or os.environ["RANK"] == "0"
    if is_first:  # alone, as long as the processes do not know each other: what measures or scores would wait for all
        _begin(settings, folder, data, show, recipe, source)
    if from_outside:
        fabric.launch()
        fabric.barrier()
    if fabric.world_size > 1 and not from_outside:
        histories, connections = _launched(fabric, folder, data)
    else:
        histories, connections = _train_members(fabric, settings, folder, data, show)
    if is_first:
        draw_curves(histories, folder / "learning_curve.png", title=f"{data.name}: {settings.spec or 'from weights'}")
        show.results(histories, connections, tg.load(folder / "topology.npz").sizes)
    return histories


def _begin(
    settings: Settings, folder: Path, data: DataSet, show: Show, recipe: Path | None, source: Path | None
) -> None:
    """Write and show what is known before training; what cannot work is found before anything is written."""
    first = next(members(settings))
    model = model_of(settings, first, data, source or folder / START)
    patterns = [module.pattern for module in model.modules() if isinstance(module, SparseLinear)]
    as_promised = settings.spec is not None and not is_once(settings.method)
    net = topology_of(settings, first) if as_promised else tg.Topology(patterns)
    check_sizes(net.sizes, data, "--spec" if settings.start is None else "weights")
    sample = torch.from_numpy(data.test_x[: settings.batch_size])
    state = "adam" if settings.optimizer.startswith("adam") else "momentum" if settings.momentum else "sgd"
    layers = report(model, sample, optimizer=state, break_even=False)
    if "narrow" in settings.baselines and len(net.sizes) == 2:
        checks.refuse(
            "--baseline", _OWNER, "another one for a network without hidden layers, which cannot be narrower", "narrow"
        )
    _check_method(settings, first, data, model)
    for member in members(settings):
        if member.kind in SCORED and member.seed == first.seed:
            _check_method(settings, member, data, model_of(settings, member, data, source or folder / START))

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(".topogen-*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    if source is not None:
        _write(folder / START, source.read_bytes())
    if recipe is not None:
        _write(folder / f"recipe{recipe.suffix}", recipe.read_bytes())
    elif not (folder / "recipe.py").exists() and settings.spec is not None:
        _write(folder / "recipe.yaml", recipe_text(settings))
    _write(folder / "settings.json", settings.to_json())
    if settings.spec is not None:
        _write(folder / "spec.json", tg.spec_to_json(settings.spec) + "\n")
    tg.save(net, folder / "topology.npz")
    tg.draw(net, folder / "topology.png")
    show.certificate(net.spec, tg.verify(net))
    _write(folder / "report.json", json.dumps(layers.to_dict(), indent=2) + "\n")
    _write(folder / "report.txt", f"{layers}\n")
    show.layers(layers)


def _check_method(settings: Settings, member: Member, data: DataSet, model: nn.Module) -> None:
    """Have the method built once, for what it refuses."""
    optimizer = make_optimizer(
        settings.optimizer, model.parameters(), lr=settings.lr, momentum=settings.momentum,
        weight_decay=settings.weight_decay, owner=_OWNER,
    )  # fmt: skip
    method = method_of(settings, member, data)
    if method is not None:
        method(model, optimizer, settings.epochs * -(-len(data.train_y) // settings.batch_size))


def _launched(fabric: Fabric, folder: Path, data: DataSet) -> tuple[Histories, Connections]:
    """Train in several processes; Fabric hands neither frozen objects on to them nor back."""
    parts = {field.name: getattr(data, field.name) for field in fields(data)}
    rows, connections = cast(Any, fabric.launch)(_in_process, folder, parts)  # typed as if it took no arguments
    return {Member(kind, seed): [Epoch.from_dict(row) for row in own] for kind, seed, own in rows}, connections


def _in_process(fabric: Fabric, folder: Path, parts: dict[str, Any]) -> tuple[list[Any], Connections]:
    """Train in one of several processes, from what the folder says."""
    settings = read_settings(folder)
    torch.set_num_threads(settings.threads)
    show = Show(silent=not fabric.is_global_zero)
    histories, connections = _train_members(fabric, settings, folder, DataSet(**parts), show)
    return [[*member, [row.to_dict() for row in rows]] for member, rows in histories.items()], connections


def _train_members(
    fabric: Fabric, settings: Settings, folder: Path, data: DataSet, show: Show
) -> tuple[Histories, Connections]:
    histories: Histories = {}
    connections: Connections = {}
    trained: nn.Module | None = None  # the sparse model of this seed
    with show.progress(settings.epochs) as board:
        for member in members(settings):
            rows = histories.setdefault(member, [])
            loggers = (
                open_loggers(settings.loggers, folder, member.name, settings.to_dict()) if fabric.is_global_zero else []
            )

            def on_epoch(
                row: Epoch, rows: list[Epoch] = rows, member: Member = member, loggers: list[Logger] = loggers
            ) -> None:
                rows.append(row)
                board.epoch(row)
                if fabric.is_global_zero:
                    _write(folder / "metrics.csv", _metrics(histories))
                    _write(folder / "layers.csv", _layers(histories))
                for logger in loggers:
                    logger.log(row)

            model = model_of(settings, member, data, folder / START, trained)
            method = method_of(settings, member, data)
            try:
                train(
                    model,
                    data,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    accumulate=settings.accumulate,
                    optimizer=settings.optimizer,
                    lr=settings.lr,
                    schedule=settings.schedule,
                    momentum=settings.momentum,
                    weight_decay=settings.weight_decay,
                    method=method,
                    seed=member.seed,
                    fabric=fabric,
                    checkpoint=folder / "checkpoints" / f"{member.name}.pt",
                    on_step=board.start(str(member), layers=method is not None, epochs=_epochs(settings, member, data)),
                    on_epoch=on_epoch,
                )
            finally:
                for logger in loggers:
                    logger.close()
            trained = model if member.kind == "sparse" else trained
            connections.setdefault(member.kind, _connections(model))
            if member == next(members(settings)) and fabric.is_global_zero:
                state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
                _write(folder / "weights.safetensors", to_safetensors(state))
    return histories, connections


def _epochs(settings: Settings, member: Member, data: DataSet) -> int:
    """Return how many epochs a member's training has."""
    method = settings.method if follows_method(member) else None
    return epochs_of(method, settings.epochs, -(-len(data.train_y) // settings.batch_size))


def _connections(model: nn.Module) -> int:
    """Return how many weights a model has, biases not counted."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not name.endswith("bias"))


def _metrics(histories: Histories) -> str:
    """Return one row an epoch of every member, numbers in full precision."""
    names = [*(field.name for field in fields(Epoch) if field.name != "layers"), "density"]
    return _csv(
        ["model", "seed", *names],
        ([*member, *(getattr(row, name) for name in names)] for member, rows in histories.items() for row in rows),
    )


def _layers(histories: Histories) -> str:
    """Return one row for each sparse layer of every member after every epoch."""
    names = [*(field.name for field in fields(LayerState)), "density", "target"]
    return _csv(
        ["model", "seed", "epoch", *names],
        (
            [*member, row.epoch, *(getattr(layer, name) for name in names)]
            for member, rows in histories.items()
            for row in rows
            for layer in row.layers
        ),
    )


def _csv(names: list[str], rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, content: str | bytes) -> None:
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
