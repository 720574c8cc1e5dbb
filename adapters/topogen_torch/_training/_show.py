"""What the user of ``topogen train`` sees."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from topogen import AbstractSpec, Report, Topology
    from topogen_torch._reports._report import ModelReport
    from topogen_torch._training._run import Member
    from topogen_torch._training._train import Epoch

__all__ = ["Show", "accuracy_text"]

_REFRESH = 0.1  # seconds between two updates of the bar


class Show:
    """Results on stdout, progress on stderr."""

    def __init__(self) -> None:
        self.out = Console(highlight=False)
        if not self.out.is_terminal:
            self.out.width = max(self.out.width, 120)  # a file has no edge at which a table must break
        self.err = Console(stderr=True, highlight=False)

    def heading(self, text: str) -> None:
        """Print a heading."""
        self.out.print(Text(f"\n{text}", style="bold"))

    def certificate(self, spec: AbstractSpec, report: Report) -> None:
        """Print what the spec's theorem promises beside what was measured."""
        self.heading("certificate")
        self.out.print(Text(repr(spec)), soft_wrap=True)
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

    @contextmanager
    def progress(self, epochs: int) -> Iterator[_Bar]:
        """Show one bar for each model while the block runs."""
        self.heading("training")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err) as progress:
            yield _Bar(progress, epochs)

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

    def results(self, histories: Mapping[Member, Sequence[Epoch]], net: Topology) -> None:
        """Print test accuracy and time of every model."""
        self.heading("test accuracy after the last epoch")
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("model")
        for name in ("connections", "density", "test accuracy", "training"):
            table.add_column(name, justify="right", no_wrap=True)
        possible = sum(n_in * n_out for n_in, n_out in zip(net.sizes[:-1], net.sizes[1:], strict=True))
        names = {"sparse": "sparse", "dense": "dense twin", "random": "random twin"}
        for kind in dict.fromkeys(member.kind for member in histories):
            runs = [rows for member, rows in histories.items() if member.kind == kind]
            connections = possible if kind == "dense" else net.nnz
            seconds = statistics.mean(sum(row.seconds for row in rows) for rows in runs)
            table.add_row(
                names[kind],
                f"{connections:,}",
                f"{100 * connections / possible:.4g} %",
                accuracy_text([rows[-1].test_accuracy for rows in runs]),
                f"{seconds:.1f} s",
            )
        self.out.print(table)


class _Bar:
    """The bars of a run's models, one after the other."""

    def __init__(self, progress: Progress, epochs: int) -> None:
        self._progress = progress
        self._epochs = epochs
        self._task: Any = None

    def start(self, description: str) -> Callable[[int, int, float, float], None]:
        """Add a bar; return what `train` calls after every step."""
        self._task = self._progress.add_task(
            description, total=None, epoch=0, epochs=self._epochs, loss="-", accuracy="-"
        )
        shown = 0.0

        def on_step(step: int, steps: int, loss: float, accuracy: float) -> None:
            nonlocal shown
            if time.monotonic() - shown > _REFRESH:
                shown = time.monotonic()
                epoch = -(-step * self._epochs // steps)
                self._update(steps, step, epoch, loss, accuracy)

        return on_step

    def finish(self, last: Epoch) -> None:
        """Fill the bar, and show what the model has reached on the test images."""
        self._update(1, 1, self._epochs, last.test_loss, last.test_accuracy)

    def _update(self, total: int, completed: int, epoch: int, loss: float, accuracy: float) -> None:
        self._progress.update(
            self._task,
            total=total,
            completed=completed,
            epoch=epoch,
            loss=f"{loss:.4f}",
            accuracy=f"{100 * accuracy:.2f} %",
        )


def accuracy_text(accuracies: Sequence[float]) -> str:
    """Return one accuracy, or mean, standard deviation (of the sample) and range of several, in percent."""
    percent = [100 * accuracy for accuracy in accuracies]
    if len(percent) == 1:
        return f"{percent[0]:.2f} %"
    mean, deviation = statistics.mean(percent), statistics.stdev(percent)
    return f"{mean:.2f} % ± {deviation:.2f} ({min(percent):.2f}..{max(percent):.2f})"
