"""What is seen while models train: a bar and a table of the layers on a terminal, a line an epoch anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from topogen_torch._training._epoch import Epoch, LayerState

__all__ = ["Board"]

_REFRESH = 0.1  # seconds between two updates of the bar


class Board:
    """Shows the models of a run, one after the other, while its block runs.

    Parameters
    ----------
    console : Console
    epochs : int
        Of each model, where nothing else is said of it.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self._console, self._usual, self._epochs = console, epochs, epochs
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._live = Live(self._bars, console=console) if console.is_terminal else None
        self._task: Any = None
        self._name, self._layers = "", False

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def start(self, name: str, *, layers: bool, epochs: int | None = None) -> Callable[[int, int, float, float], None]:
        """Begin with a model, showing what becomes of its layers or not; return what `train` calls after every step."""
        self._name, self._layers = name, layers
        self._epochs = self._usual if epochs is None else epochs
        self._task = self._bars.add_task(name, total=None, epoch=0, epochs=self._epochs, loss="-", accuracy="-")
        shown = 0.0

        def on_step(step: int, steps: int, loss: float, accuracy: float) -> None:
            nonlocal shown
            if self._live and time.monotonic() - shown > _REFRESH:
                shown = time.monotonic()
                self._update(steps, step, -(-step * self._epochs // steps), loss, accuracy)

        return on_step

    def epoch(self, row: Epoch) -> None:
        """Show what an epoch has brought."""
        self._update(self._epochs, row.epoch, row.epoch, row.test_loss, row.test_accuracy)
        shown = row.layers if self._layers else ()
        if self._live:
            self._live.update(Group(self._bars, layer_table(shown)) if shown else self._bars)
            return
        text = (
            f"{self._name}: epoch {row.epoch}/{self._epochs}  test loss {row.test_loss:.4f}  "
            f"accuracy {100 * row.test_accuracy:.2f} %  density {100 * row.density:.4g} %"
        )
        lines = [text, *(f"  {layer.name}: {_line(layer)}" for layer in shown)]
        self._console.print("\n".join(lines), soft_wrap=True, markup=False)

    def _update(self, total: int, completed: int, epoch: int, loss: float, accuracy: float) -> None:
        self._bars.update(
            self._task, total=total, completed=completed, epoch=epoch, loss=f"{loss:.4f}",
            accuracy=f"{100 * accuracy:.2f} %",
        )  # fmt: skip


def layer_table(layers: tuple[LayerState, ...]) -> Table:
    """Return the layers' connections as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    for name in ("target", "density", "fan-in min", "mean", "max", "dead", "unread", "explored", "survival"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(
            Text(layer.name), _percent(layer.target), _percent(layer.density), str(layer.fan_in_min),
            f"{layer.fan_in_mean:.4g}", str(layer.fan_in_max), str(layer.dead), str(layer.unread),
            _percent(layer.explored), _percent(layer.survival),
        )  # fmt: skip
    return table


def _line(layer: LayerState) -> str:
    return (
        f"density {_percent(layer.density)} (target {_percent(layer.target)}), fan-in {layer.fan_in_min}/"
        f"{layer.fan_in_mean:.4g}/{layer.fan_in_max}, dead {layer.dead}, unread {layer.unread}, "
        f"explored {_percent(layer.explored)}, survival {_percent(layer.survival)}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
