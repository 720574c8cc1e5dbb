"""The commands of this adapter: ``topogen train``, ``prune``, ``bench`` and ``study``.

Nothing heavy is imported before a command runs, so that ``topogen --help`` answers at once.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from topogen_torch._training._commands import prune, require, train
from topogen_torch.studies._command import study

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this adapter's commands to the `topogen` command."""
    app.command()(train)
    app.command()(prune)
    app.command()(bench)
    app.command()(study)


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
    tune: Annotated[
        bool, typer.Option("--tune", help="Instead: find this graphics card's launch settings, and keep them.")
    ] = False,
) -> None:
    """Measure sparse layers beside dense ones on this machine, and print Markdown tables.

    Ctrl-C prints what was measured until then. For a graphics card see python -m topogen_torch.bench.
    """
    require("topogen bench", "torch")
    if tune:
        _tune()
        return
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


def _tune() -> None:
    """Fill the table of launch settings of this machine's card."""
    import torch

    from topogen_torch._gpu._choose import refuse_without_card

    device = refuse_without_card("--tune", "topogen bench")
    from topogen_torch._gpu._tune import tune, tuning_cases
    from topogen_torch._training._show import Show

    show, chosen = Show(), tuning_cases()
    with show.steps("tuning", len(chosen)) as on_step:
        path = tune(chosen, device, torch.cuda.get_device_name(device), on_step)
    show.out.print(f"wrote {path}", soft_wrap=True, markup=False)


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
