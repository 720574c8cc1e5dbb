"""What the user of ``topogen train`` sees."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from topogen_torch._training._live import Board

if TYPE_CHECKING:
    from topogen import AbstractSpec, Report
    from topogen_torch._reports._report import ModelReport
    from topogen_torch._training._epoch import Epoch
    from topogen_torch._training._run import Member

__all__ = ["Show", "accuracy_text"]


class Show:
    """Results on stdout, progress on stderr; `silent` is for processes that another one speaks for."""

    def __init__(self, *, silent: bool = False) -> None:
        self.out = Console(highlight=False, file=io.StringIO() if silent else None)
        if not self.out.is_terminal:
            self.out.width = max(self.out.width, 120)  # a file has no edge at which a table must break
        self.err = Console(file=io.StringIO(), highlight=False) if silent else Console(stderr=True, highlight=False)

    def heading(self, text: str) -> None:
        """Print a heading."""
        self.out.print(Text(f"\n{text}", style="bold"))

    def certificate(self, spec: AbstractSpec | None, report: Report) -> None:
        """Print what the spec's theorem promises beside what was measured."""
        self.heading("certificate")
        self.out.print(Text("no spec: the pattern of trained weights" if spec is None else repr(spec)), soft_wrap=True)
        table = Text(f"\n{report}")
        table.highlight_regex(r"(?m)yes$", "green")
        table.highlight_regex(r"(?m)NO$", "bold red")
        self.out.print(table, soft_wrap=True)
        promised = [row.holds for row in report if row.holds is not None]
        self.out.print(f"{sum(promised)} of {len(promised)} claims held" if promised else "nothing was promised")

    def layers(self, report: ModelReport) -> None:
        """Print the per-layer table."""
        self.heading("layers")
        self.out.print(Text(str(report)), soft_wrap=True)

    def progress(self, epochs: int) -> Board:
        """Return what shows the models while they train."""
        self.heading("training")
        return Board(self.err, epochs)

    @contextmanager
    def steps(self, description: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show one bar while the block runs; yields what advances it and says what was done."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err, transient=True) as progress:
            task = progress.add_task(description, total=total)
            yield lambda done: progress.update(task, advance=1, description=f"{description}: {done}")

    def results(
        self, histories: Mapping[Member, Sequence[Epoch]], connections: Mapping[str, int], sizes: Sequence[int]
    ) -> None:
        """Print test accuracy and time of every model, and the connections that it has at the end."""
        self.heading("test accuracy after the last epoch")
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("model")
        for name in ("connections", "density", "test accuracy", "training"):
            table.add_column(name, justify="right", no_wrap=True)
        possible = sum(n_in * n_out for n_in, n_out in pairwise(sizes))
        for kind in dict.fromkeys(member.kind for member in histories):
            runs = [rows for member, rows in histories.items() if member.kind == kind]
            seconds = statistics.mean(sum(row.seconds for row in rows) for rows in runs)
            table.add_row(
                "sparse" if kind == "sparse" else f"{kind} twin",
                f"{connections[kind]:,}",
                f"{100 * connections[kind] / possible:.4g} %",
                accuracy_text([rows[-1].test_accuracy for rows in runs]),
                f"{seconds:.1f} s",
            )
        self.out.print(table)


def accuracy_text(accuracies: Sequence[float]) -> str:
    """Return one accuracy, or mean, standard deviation (of the sample) and range of several, in percent."""
    percent = [100 * accuracy for accuracy in accuracies]
    if len(percent) == 1:
        return f"{percent[0]:.2f} %"
    mean, deviation = statistics.mean(percent), statistics.stdev(percent)
    return f"{mean:.2f} % ± {deviation:.2f} ({min(percent):.2f}..{max(percent):.2f})"
