"""What TensorBoard and W&B are told of a run, read back from the files that they write."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_run import DATA, KW, plain_network
from torch import nn
from torch.optim import Optimizer

import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch._training._epoch import Epoch
from topogen_torch._training._loggers import check_loggers, figures_of, open_loggers
from topogen_torch._training._train import train


@pytest.fixture(scope="module")
def rows() -> list[Epoch]:
    def method(model: nn.Module, optimizer: Optimizer, steps: int) -> Any:
        return tt.SET(model, optimizer, rng=0, update_every=2)

    return train(plain_network(), DATA, method=method, **KW)


@contextmanager
def _foreign_warnings() -> Iterator[None]:
    """Let the loggers' own packages warn as they like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_an_epoch_as_figures(rows: list[Epoch]) -> None:
    figures, layer = figures_of(rows[-1]), rows[-1].layers[1]
    assert figures["test/accuracy"] == rows[-1].test_accuracy
    assert figures["density"] == rows[-1].density
    assert {name.rpartition("/")[2] for name in figures if name.startswith(f"layers/{layer.name}/")} == {
        "density", "target", "fan_in_min", "fan_in_mean", "fan_in_max", "dead", "unread", "explored", "survival"
    }  # fmt: skip
    assert figures[f"layers/{layer.name}/explored"] == layer.explored > layer.density


def test_tensorboard_has_every_epoch_once_though_the_run_went_on(tmp_path: Path, rows: list[Epoch]) -> None:
    with _foreign_warnings():
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        for known in (rows[:2], rows):  # a run that stopped after two epochs, and its resumption
            (logger,) = open_loggers(["tensorboard"], tmp_path, "sparse-seed0", {})
            for row in known:
                logger.log(row)
            logger.close()
        events = EventAccumulator(str(tmp_path / "tensorboard" / "sparse-seed0")).Reload()
    assert set(events.Tags()["scalars"]) == set(figures_of(rows[0]))
    for name in figures_of(rows[0]):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx([figures_of(row)[name] for row in rows], rel=1e-6)


def test_wandb_is_told_what_it_does_not_know(
    tmp_path: Path, rows: list[Epoch], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    told: list[tuple[int, dict[str, float]]] = []
    asked: list[dict[str, Any]] = []

    class Run:
        step = 0

        def log(self, figures: dict[str, float], step: int) -> None:
            told.append((step, figures))
            Run.step = step + 1

        def finish(self) -> None:
            told.append((-1, {}))

    monkeypatch.setattr(wandb, "init", lambda **settings: (asked.append(settings), Run())[1])
    for known in (rows[:2], rows):
        (logger,) = open_loggers(["wandb"], tmp_path, "sparse-seed0", {"lr": 0.1})
        for row in known:
            logger.log(row)
        logger.close()
    assert told == [
        (1, figures_of(rows[0])), (2, figures_of(rows[1])), (-1, {}), (3, figures_of(rows[2])), (-1, {})
    ]  # fmt: skip
    assert asked[0]["id"] == asked[1]["id"] == (tmp_path / "wandb" / "sparse-seed0.id").read_text()
    assert (asked[0]["project"], asked[0]["config"]) == ("topogen", {"lr": 0.1})
    assert asked[0]["name"] == f"{tmp_path.name} sparse-seed0"


@pytest.mark.slow
def test_wandb_writes_a_run_offline(tmp_path: Path, rows: list[Epoch], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with _foreign_warnings():
        (logger,) = open_loggers(["wandb"], tmp_path, "sparse-seed0", {})
        for row in rows:
            logger.log(row)
        logger.close()
        wandb.teardown()  # the process that writes for it is waited for only now
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"test/accuracy" in written.read_bytes()


def test_a_logger_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    check_loggers([], "topogen train")
    with pytest.raises(SpecError) as refused:
        check_loggers(["tensorboard", "wandb"], "topogen train")
    assert str(refused.value) == (
        "The '--logger' parameter of topogen train must name a logger that is installed. Got 'wandb': "
        "pip install wandb."
    )
