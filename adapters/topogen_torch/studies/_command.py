"""``topogen study``. Nothing heavy is imported before it runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import typer

from topogen import checks
from topogen_torch.studies import STUDIES, study_named

__all__ = ["study"]

_OWNER = "topogen study"
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def study(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A study; without it the studies are listed.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short form of the study, with a table of its own.")] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="As 90s, 60m or 2h: begin no further row after it.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Rows in it are not measured again; docs/studies/NAME.csv, or runs/NAME.csv where there is no such "
            "folder, or runs/NAME-quick.csv. Page and pictures are written beside it.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with mnist/ or cifar10/; then $TOPOGEN_DATA is looked in, then a download cache.",
        ),
    ] = None,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only rows whose name matches, as '*seed 0'.")] = "*",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads; several processes may share a table.")] = 1,
) -> None:
    """Measure a published experiment again, row by row; Ctrl-C keeps the rows that are finished."""
    if name is None:
        width = max(map(len, STUDIES))
        print("\n".join(f"{known:{width}}  {text}" for known, text in STUDIES.items()))
        return
    for module in ("torch", "lightning_fabric", "sklearn"):
        if importlib.util.find_spec(module) is None:
            typer.echo(f"topogen: {_OWNER} needs {module}: pip install 'topogen-nn[torch]'.", err=True)
            raise typer.Exit(2)
    chosen, seconds = study_named(name), None if budget is None else _seconds(budget)
    checks.integer(threads, "--threads", _OWNER, low=1)
    if data_dir is not None and not data_dir.is_dir():
        checks.refuse("--data-dir", _OWNER, "a folder that exists", str(data_dir))
    if table is not None and table.suffix != ".csv":
        checks.refuse("--table", _OWNER, "a file called .csv", str(table))
    import torch

    from topogen_torch._training._show import Show
    from topogen_torch.studies._carry_out import carry_out

    torch.set_num_threads(threads)
    carry_out(
        chosen, table or _table_of(name, quick), Show(), data_dir=data_dir, quick=quick, budget=seconds, only=only
    )


def _table_of(name: str, quick: bool) -> Path:
    if quick:
        return Path("runs") / f"{name}-quick.csv"
    committed = Path("docs/studies")
    return (committed if committed.is_dir() else Path("runs")) / f"{name}.csv"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None:
        checks.refuse("--budget", _OWNER, "a number and one of the units s, m and h, as '60m'", text)
    return float(found[1]) * _SECONDS[found[2]]
