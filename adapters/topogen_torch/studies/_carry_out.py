"""Measuring the rows of a study that are not in its table yet, and writing its page."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

import topogen as tg
from topogen.errors import SpecError, TopogenError
from topogen.io import replacing
from topogen_torch._training._show import Show
from topogen_torch.data import DataSet, load_data
from topogen_torch.studies._ledger import Ledger
from topogen_torch.studies._page import whole_page
from topogen_torch.studies._study import Measured, Progress, Study

__all__ = ["carry_out", "processor"]

_REFRESH = 0.2  # seconds between two updates of the bar
_clock = time.monotonic


def carry_out(
    study: Study,
    table: Path,
    show: Show,
    *,
    data_dir: Path | None = None,
    quick: bool = False,
    budget: float | None = None,
    only: str = "*",
) -> None:
    """Measure the missing rows of a study, in order, and add each to the table as soon as it is done.

    Parameters
    ----------
    study : Study
    table : Path
        CSV file; page and pictures are written beside it, after every row.
    show : Show
    data_dir : Path, optional
        See `load_data`.
    quick : bool
        The study's quick form.
    budget : float, optional
        Seconds after which no further row is begun; 0 writes the page and measures nothing.
    only : str
        Pattern of ``fnmatch`` for the names of the rows to measure.

    Raises
    ------
    SpecError
        If no row's name matches `only`.
    FormatError
        If the table cannot be read.
    TopogenError
        At the end, if a row could not be measured.
    KeyboardInterrupt
        On Ctrl-C; the rows that are finished are in the table.
    """
    start = _clock()
    rows = study.rows(quick)
    wanted = [row for row in rows if fnmatchcase(str(row), only)]
    if not wanted:
        raise SpecError(f"The '--only' parameter of topogen study must match a row, such as '{rows[0]}'. Got {only!r}.")
    data = cache(lambda name: load_data(name, data_dir))
    ledger, failed = Ledger(table, study), 0
    try:
        _publish(study, rows, ledger, quick=quick)
        for row in wanted:
            if budget is not None and _clock() - start >= budget:
                break
            with ledger.claimed(row) as is_mine:
                if not is_mine or row in [one.row for one in ledger.read()]:
                    continue
                try:
                    measured = _measure(study, row, data(row.data), show)
                except TopogenError as error:
                    show.err.print(f"{row}: {error}", soft_wrap=True, markup=False)
                    failed += 1
                    continue
                ledger.append(measured)
            _publish(study, rows, ledger, quick=quick)
            show.out.print(f"{row}: {_shown(measured)}", soft_wrap=True, markup=False)
        found = [one.row for one in ledger.read()]
        show.out.print(f"{sum(row in found for row in rows)} of {len(rows)} rows measured: {table}", soft_wrap=True)
    finally:
        ledger.close()
    if failed:
        raise TopogenError(f"{failed} rows of {study.name} could not be measured.")


def _measure(study: Study, row: Any, data: DataSet, show: Show) -> Measured:
    with _bar(show, str(row)) as progress:
        start = time.perf_counter()
        results = study.run(row, data, progress)
        seconds = time.perf_counter() - start
    about = {
        "seconds": f"{seconds:.1f}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "topogen": tg.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "threads": str(torch.get_num_threads()),
    }
    return Measured(row, results, about)


def _publish(study: Study, rows: Sequence[Any], ledger: Ledger, *, quick: bool) -> None:
    """Write page and pictures, from the table alone."""
    with ledger.locked():
        place = {ledger.key(row): i for i, row in enumerate(rows)}
        measured = sorted(
            (one for one in ledger.read() if ledger.key(one.row) in place), key=lambda one: place[ledger.key(one.row)]
        )
        if not measured:
            return
        with replacing(ledger.path.with_suffix(".md")) as file:
            file.write(whole_page(study, rows, measured, ledger.path, quick=quick).encode())
        figures = study.figures(measured)
        if not figures:
            return
        from matplotlib import rc_context

        for name, figure in figures.items():
            picture = ledger.path.with_name(f"{ledger.path.stem}-{name}.svg")
            with replacing(picture) as file, rc_context({"svg.hashsalt": study.name}):  # equal rows give equal bytes
                figure.savefig(file, format="svg", metadata={"Date": None})


def _shown(measured: Measured) -> str:
    """Return the figures of a row that are single numbers, on one line."""
    numbers = {name: value for name, value in measured.results.items() if isinstance(value, (int, float))}
    figures = "  ".join(f"{name} {value:.6g}" for name, value in numbers.items())
    return f"{figures}  ({measured.about['seconds']} s)"


@contextmanager
def _bar(show: Show, description: str) -> Iterator[Progress]:
    """Show one bar while a row is measured."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=show.err, transient=True) as bars:
        task = bars.add_task(description, total=None, state="")
        shown = 0.0

        def progress(step: int, steps: int, loss: float, accuracy: float) -> None:
            nonlocal shown
            if time.monotonic() - shown > _REFRESH:
                shown = time.monotonic()
                state = f"loss {loss:.4f}  accuracy {100 * accuracy:.2f} %"
                bars.update(task, total=steps, completed=step, state=state)

        yield progress


def processor() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
