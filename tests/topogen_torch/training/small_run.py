"""A run that is small and hard to resume: what the tests of this folder share."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import topogen as tg
from topogen_torch._stack import sparse_mlp
from topogen_torch._training._epoch import Epoch
from topogen_torch.data import DataSet

N_TRAIN, BATCH = 53, 8  # the last step of an epoch has 5 images
STEPS = math.ceil(N_TRAIN / BATCH)
KW: dict[str, Any] = {"epochs": 3, "batch_size": BATCH, "lr": 0.1, "seed": 5}


def data_set(n_train: int = N_TRAIN, n_test: int = 20, features: int = 8, classes: int = 4) -> DataSet:
    """Noisy images of one pixel pair a class."""
    rng = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, classes, n)
        x = rng.standard_normal((n, features)).astype(np.float32)
        x[np.arange(n), 2 * y] += 2
        return x, y

    (train_x, train_y), (test_x, test_y) = part(n_train), part(n_test)
    return DataSet(
        name="noise", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=tuple("abcd"[:classes]), image_shape=(features,),
    )  # fmt: skip


DATA = data_set()
SPEC = tg.Chain(tg.RadixNet(systems=[[2, 2, 2]], widths=[1, 2, 1, 2]), tg.Dense(sizes=[16, 4]))


def network(spec: tg.AbstractSpec = SPEC) -> nn.Module:
    """Sparse layers, and what makes resuming hard: running statistics and random numbers."""
    torch.manual_seed(0)
    first, *rest = sparse_mlp(tg.generate(spec, rng=1))
    return nn.Sequential(first, nn.BatchNorm1d(first.out_features), nn.Dropout(0.2), *rest)


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return sparse_mlp(tg.generate(SPEC))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def timeless(history: list[Epoch]) -> list[Epoch]:
    return [replace(row, seconds=0.0) for row in history]


class Stopper:
    """Sends this process a signal after a step, as Ctrl-C would."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times, self.last = step, times, 0

    def __call__(self, step: int, steps: int, loss: float, accuracy: float) -> None:
        self.last = step
        if step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
