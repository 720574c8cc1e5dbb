"""Optimizers and learning rates: those of a plain loop with torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from small_run import BATCH, DATA, KW, N_TRAIN, STEPS, plain_network
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, MultiStepLR

import topogen as tg
from topogen.errors import SpecError
from topogen_torch._training._descent import rate_at
from topogen_torch._training._train import train

TOTAL = 3 * STEPS


def plain(model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
    x, y = torch.from_numpy(DATA.train_x), torch.from_numpy(DATA.train_y)
    for epoch in range(3):
        order = torch.from_numpy(tg.stream(np.random.SeedSequence(5), 100, epoch).permutation(N_TRAIN))
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()


CASES: dict[str, tuple[Any, Any, str | Mapping[int, float]]] = {
    "sgd": (
        lambda p: SGD(p, lr=0.02, momentum=0.8, weight_decay=0.01),
        lambda o: LinearLR(o, start_factor=1.0, end_factor=1e-9, total_iters=TOTAL),
        "linear",
    ),
    "nesterov": (
        lambda p: SGD(p, lr=0.02, momentum=0.8, weight_decay=0.01, nesterov=True),
        lambda o: MultiStepLR(o, [STEPS, 2 * STEPS], gamma=0.1),
        {1: 0.1, 2: 0.1},
    ),
    "adam": (
        lambda p: Adam(p, lr=0.02, betas=(0.8, 0.999), weight_decay=0.01),
        lambda o: LambdaLR(o, lambda step: 1.0),
        "constant",
    ),
    "adamw": (
        lambda p: AdamW(p, lr=0.02, betas=(0.8, 0.999), weight_decay=0.01),
        lambda o: MultiStepLR(o, [2 * STEPS], gamma=0.5),
        {2: 0.5},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_goes_downhill_as_torch_does(name: str) -> None:
    make_optimizer, make_schedule, schedule = CASES[name]
    model, other = plain_network(), plain_network()
    train(model, DATA, **{**KW, "lr": 0.02}, optimizer=name, schedule=schedule, momentum=0.8, weight_decay=0.01)
    optimizer = make_optimizer(other.parameters())
    plain(other, optimizer, make_schedule(optimizer))
    for own, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_parts_of_a_batch_have_the_gradient_of_the_whole() -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    models = []
    for accumulate in (1, 3, 100):
        models.append(plain_network())
        rows = train(models[-1], DATA, accumulate=accumulate, fabric=fabric, **KW)
        assert rows[-1].train_loss == pytest.approx(train(plain_network(), DATA, **KW)[-1].train_loss, rel=1e-5)
    for other in models[1:]:
        for own, expected in zip(other.parameters(), models[0].parameters(), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_rates_by_hand() -> None:
    assert [rate_at({2: 0.5, 3: 0.1}, 8.0, step, 16, 4) for step in (0, 7, 8, 11, 12, 15)] == [8, 8, 4, 4, 0.4, 0.4]
    assert [rate_at("linear", 8.0, step, 16, 4) for step in (0, 4, 8, 15)] == [8, 6, 4, 0.5]
    assert [rate_at("constant", 8.0, step, 16, 4) for step in (0, 15)] == [8, 8]
    assert [round(rate_at("cosine", 8.0, step, 16, 4), 9) for step in (0, 8)] == [8, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schedule": "cosin"},
            "The 'schedule' parameter of train must be 'cosine', 'linear', 'constant', or a mapping from epochs to "
            "factors. Got 'cosin'.",
        ),
        ({"schedule": {0: 0.1}}, "The 'schedule' parameter of train must be an int >= 1. Got 0."),
        ({"schedule": {3: 0}}, "The 'schedule' parameter of train must be a finite number in (0, inf). Got 0."),
        (
            {"optimizer": "lbfgs"},
            "The 'optimizer' parameter of train must be 'sgd' or 'nesterov' or 'adam' or 'adamw'. Got 'lbfgs'.",
        ),
        (
            {"optimizer": "nesterov", "momentum": 0},
            "The 'momentum' parameter of train must be greater than 0 where the optimizer is 'nesterov'. Got 0.",
        ),
        (
            {"optimizer": "adam", "momentum": 1},
            "The 'momentum' parameter of train must be less than 1 where the optimizer is 'adam'. Got 1.",
        ),
        ({"accumulate": 0}, "The 'accumulate' parameter of train must be an int >= 1. Got 0."),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        train(plain_network(), DATA, **{**KW, **change})
    assert str(refused.value) == message
