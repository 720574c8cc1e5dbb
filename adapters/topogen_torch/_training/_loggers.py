"""Who is told of every epoch beside the CSV files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from topogen.errors import SpecError
from topogen.io import replacing
from topogen_torch._training._epoch import Epoch

__all__ = ["LOGGERS", "Logger", "check_loggers", "figures_of", "open_loggers"]


class Logger(Protocol):
    """What a run tells about one model."""

    def log(self, row: Epoch) -> None:
        """Note an epoch; epochs before a resumption come again."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class _TensorBoard:
    """Event files in the run's folder, written anew when a run goes on, so that no epoch is in them twice."""

    def __init__(self, folder: Path, member: str, about: Mapping[str, Any]) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        shutil.rmtree(folder / "tensorboard" / member, ignore_errors=True)
        self._logger = TensorBoardLogger(root_dir=folder / "tensorboard", name=member, version="")

    def log(self, row: Epoch) -> None:
        self._logger.log_metrics(figures_of(row), step=row.epoch)
        self._logger.save()

    def close(self) -> None:
        self._logger.finalize("success")


class _WeightsAndBiases:
    """A run of W&B, whose number stays in the folder; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, folder: Path, member: str, about: Mapping[str, Any]) -> None:
        import wandb

        place = folder / "wandb" / f"{member}.id"
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            with replacing(place) as file:
                file.write(secrets.token_hex(4).encode())
        self._run: Any = wandb.init(
            project="topogen", id=place.read_text(), resume="allow", name=f"{folder.name} {member}", dir=folder,
            config=dict(about), reinit="finish_previous", settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def log(self, row: Epoch) -> None:
        if row.epoch >= self._run.step:  # the others are known there
            self._run.log(figures_of(row), step=row.epoch)

    def close(self) -> None:
        self._run.finish()


_MAKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}
LOGGERS = tuple(_MAKERS)


def check_loggers(names: Iterable[str], owner: str) -> None:
    """Refuse a logger whose package, of the same name, is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise SpecError(
                f"The '--logger' parameter of {owner} must name a logger that is installed. "
                f"Got {name!r}: pip install {name}."
            )


def open_loggers(names: Iterable[str], folder: Path, member: str, about: Mapping[str, Any]) -> list[Logger]:
    """Return the loggers of one model of a run."""
    return [_MAKERS[name](folder, member, about) for name in names]


def figures_of(row: Epoch) -> dict[str, float]:
    """Return an epoch as numbers by name, those of a layer under its name."""
    figures = {
        "train/loss": row.train_loss, "train/accuracy": row.train_accuracy, "test/loss": row.test_loss,
        "test/accuracy": row.test_accuracy, "lr": row.lr, "seconds": row.seconds, "density": row.density,
    }  # fmt: skip
    for layer in row.layers:
        figures |= {f"layers/{layer.name}/{name}": value for name, value in layer.figures().items()}
    return figures
