"""``topogen train`` and ``topogen bench``.

Nothing heavy is imported before a command runs, so that ``topogen --help`` answers at once.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from dataclasses import fields
from datetime import datetime
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["register"]

_OWNER = "topogen train"


def register(app: typer.Typer) -> None:
    """Add this adapter's commands to the `topogen` command."""
    app.command()(train)
    app.command()(bench)


def train(
    data: Annotated[
        str | None, typer.Option(metavar="digits|mnist|cifar10", help="Data set; digits by default.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with mnist/ or cifar10/; then $TOPOGEN_DATA is looked in, then a download cache.",
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(metavar="SPEC|FILE.json", help="What to train; by default a RadixNet that suits the data."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="20 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images a step; 100 (digits: 32).")] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="First learning rate; 0.1 (mnist) or 0.05. It falls as a cosine."),
    ] = None,
    momentum: Annotated[float | None, typer.Option(metavar="M", help="0.9 by default.")] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="D", help="0.0001 (digits: 0.001).")] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="Of the first repeat; 0 by default.")] = None,
    repeats: Annotated[int | None, typer.Option(metavar="R", help="Seeds to train each model with; 1.")] = None,
    twins: Annotated[
        bool | None, typer.Option("--twins/--no-twins", help="Train a dense and a random twin beside it, or not.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads; as many as torch takes (digits: 1).")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="As Fabric's accelerator; cpu by default.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="P", help="As Fabric's precision; 32-true by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUNDIR", help="New folder; by default runs/<data>-<time>.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUNDIR", help="Go on with a run that has stopped.")] = None,
) -> None:
    """Train a sparse network, beside a dense and a random twin, and write a run folder."""
    _require(_OWNER, "torch", "lightning_fabric", "sklearn")
    given = {
        "data": data, "spec": spec, "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "seed": seed, "repeats": repeats, "twins": twins, "threads": threads,
        "device": device, "precision": precision,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    from topogen import checks
    from topogen_torch._training._run import execute, read_settings
    from topogen_torch._training._show import Show
    from topogen_torch.data import load_data

    if data_dir is not None and not data_dir.is_dir():
        checks.refuse("--data-dir", _OWNER, "a folder that exists", str(data_dir))
    if resume is None:
        settings = _new_settings(chosen)
        folder = _new_folder(out, settings.data)
    else:
        settings, folder = read_settings(resume), resume
        _check_unchanged(settings, chosen, out)
    show = Show()
    images = load_data(settings.data, data_dir)
    try:
        execute(settings, folder, images, show)
    except (KeyboardInterrupt, OSError):  # a full disk stops a run too
        command = ["topogen", "train", "--resume", str(folder)]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        if (folder / "settings.json").exists():
            show.err.print(f"stopped; to go on: {shlex.join(command)}", soft_wrap=True, markup=False)
        raise
    show.out.print(f"\nwrote {folder}{os.sep}", soft_wrap=True, markup=False)


def bench(
    size: Annotated[int, typer.Option(metavar="N", help="Inputs and outputs of the layer.")] = 1024,
    batch: Annotated[str, typer.Option(metavar="N,N,..", help="Samples a call.")] = "1,64,256",
    density: Annotated[
        str, typer.Option(metavar="D,D,..", help="Stored connections / possible connections, in [0, 1].")
    ] = "0.1,0.05,0.01",
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads; as many as torch takes.")] = None,
    dtype: Annotated[str, typer.Option(metavar="float32|float64", help="Numbers to compute with.")] = "float32",
    seed: Annotated[int, typer.Option(metavar="S", help="Of the random patterns.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures to this file too.")] = None,
) -> None:
    """Measure sparse layers beside dense ones on this machine, and print Markdown tables.

    Ctrl-C prints what was measured until then.
    """
    _require("topogen bench", "torch")
    import torch

    from topogen_torch._reports._bench import Bench, BenchSettings, facts, measure
    from topogen_torch._training._show import Show

    settings = BenchSettings(
        size=size,
        batches=_numbers("--batch", batch, int),
        densities=_numbers("--density", density, float),
        threads=torch.get_num_threads() if threads is None else threads,
        dtype=dtype,
        seed=seed,
    )
    result, show = Bench(settings=settings, facts=facts()), Show()
    try:
        with show.steps("measuring", settings.steps) as on_step:
            measure(result, on_step)
    finally:
        show.out.print(result.to_markdown(), soft_wrap=True, markup=False)
        if json is not None:
            json.write_text(dumps(result.to_dict(), indent=2) + "\n")
            show.out.print(f"\nwrote {json}", soft_wrap=True, markup=False)


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """Read numbers that commas or spaces separate."""
    from topogen import checks

    try:
        found = tuple(kind(part) for part in text.replace(",", " ").split())
    except ValueError:
        found = ()
    if not found:
        name = "ints" if kind is int else "numbers"
        checks.refuse(option, "topogen bench", f"{name} with commas between them", text)
    return found


def _require(owner: str, *modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            typer.echo(f"topogen: {owner} needs {module}: pip install 'topogen-nn[torch]'.", err=True)
            raise typer.Exit(2)


def _new_settings(chosen: dict[str, Any]) -> Any:
    """Return what was chosen, and the data set's defaults for the rest."""
    import torch

    from topogen_torch._training._run import DEFAULTS, Settings
    from topogen_torch.data import check_name

    name = chosen.get("data", "digits")
    check_name(name, "--data", _OWNER)
    values = {"data": name, "threads": torch.get_num_threads(), **DEFAULTS[name], **chosen}
    return Settings(**values | {"spec": _spec(values["spec"])})


def _spec(text: str) -> Any:
    import topogen as tg

    return tg.spec_from_json(Path(text).read_text()) if text.endswith(".json") else tg.spec_from_text(text)


def _new_folder(out: Path | None, data: str) -> Path:
    from topogen import checks

    folder = out or Path("runs") / f"{data}-{datetime.now():%Y-%m-%d-%H%M%S}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        checks.refuse(
            "--out", _OWNER, "a new or an empty folder", str(folder), hint="To go on with a run, use --resume."
        )
    return folder


def _check_unchanged(settings: Any, chosen: dict[str, Any], out: Path | None) -> None:
    """Refuse options that differ from those of the run that is resumed."""
    from topogen.errors import SpecError

    if out is not None:
        raise SpecError("The '--out' option does not go with --resume: a run stays in its folder.")
    for field in fields(settings):
        had = getattr(settings, field.name)
        wanted = _spec(chosen["spec"]) if field.name == "spec" and "spec" in chosen else chosen.get(field.name, had)
        if wanted != had:
            option = f"--{field.name.replace('_', '-')}"
            raise SpecError(
                f"The '{option}' option of a run cannot change when it is resumed: it is {had!r}. Got {wanted!r}."
            )
