"""Lottery tickets: what goes back and what stays, schedules, exact counts, exact resuming, refusals."""

import copy
import io
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch._rewire import places_of

MAKES = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "plain": lambda p: torch.optim.SGD(p, lr=0.05),
}


class Run:
    """A model with normalisation and dropout-free data by position, its optimizer, its schedule and its ticket."""

    def __init__(self, make="adam", seed=0, **settings):
        torch.manual_seed(seed)
        first, last = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[12, 9, 5])), dtype=torch.float64)[::2]
        self.model = nn.Sequential(first, nn.BatchNorm1d(9, dtype=torch.float64), nn.ReLU(), last)
        self.optimizer = MAKES[make](self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4], gamma=0.5)
        defaults = {"rounds": 2, "round_steps": 6, "scheduler": self.schedule}
        self.ticket = tt.LotteryTicket(self.model, self.optimizer, **defaults | settings)
        self.log = []

    @property
    def parts(self):
        return self.model, self.optimizer, self.schedule, self.ticket

    def train(self, steps=None):
        while not self.ticket.finished and (steps is None or steps > 0):
            steps = None if steps is None else steps - 1
            generator = torch.Generator().manual_seed(self.ticket.position)
            self.optimizer.zero_grad()
            x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
            loss = self.model(x).square().sum(1).mean()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.log.append((self.ticket.round, self.ticket.position, loss.item(), self.schedule.get_last_lr()[0]))
            self.ticket.step()
        return self

    def weights(self):
        return [layer.to_scipy().toarray() for layer in (self.model[0], self.model[3])]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("to", [0, 1, 3])
def test_a_ticket_that_drops_nothing_repeats_its_first_round(make, to):
    """Weights, statistics, optimizer and schedule went back, or the losses would differ."""
    log = Run(make, drop_fraction=0.0, rewind_to=to).train().log
    first = log[to:6]
    assert len(log) == 6 + 2 * (6 - to)
    assert [row[1:] for row in log[6 : 12 - to]] == [row[1:] for row in first]
    assert [row[1:] for row in log[12 - to :]] == [row[1:] for row in first]
    assert {row[0] for row in log} == {0, 1, 2}


def test_what_does_not_go_back_would_be_seen():
    """The law above can fail."""
    for settings in ({"rewind": "learning rate"}, {"optimizer_state": "reset", "rewind_to": 2}, {"scheduler": None}):
        log = Run("adam", drop_fraction=0.0, **settings).train().log
        to = settings.get("rewind_to", 0)
        assert [row[1:] for row in log[6 : 12 - to]] != [row[1:] for row in log[to:6]]


@pytest.mark.parametrize("to", [0, 2])
def test_survivors_have_their_early_weights(to):
    run = Run(rewind_to=to).train(to)
    early, biases = run.weights(), run.model[0].bias.detach().clone()
    run.train(6 - to - 1)
    before = run.weights()
    run.train(1)
    assert (run.ticket.round, run.ticket.position, run.schedule.last_epoch) == (1, to, to)
    assert torch.equal(run.model[0].bias, biases)
    for k, weight in enumerate(run.weights()):
        had = np.abs(before[k]).ravel()
        kept = places_of((run.model[0], run.model[3])[k])
        assert len(kept) == round(0.8 * weight.size)
        assert had[kept].min() >= np.delete(had, kept).max() * 0.8  # one step lies in between
        np.testing.assert_array_equal(weight.ravel()[kept], early[k].ravel()[kept])


def test_the_smallest_weights_go():
    run = Run(round_steps=1).train(0)
    grown = []
    run.ticket._go_back = lambda: grown.append(run.weights())
    generator = torch.Generator().manual_seed(0)
    run.model(torch.randn(8, 12, generator=generator, dtype=torch.float64)).square().sum(1).mean().backward()
    run.optimizer.step()
    before = run.weights()
    run.ticket.step()
    for was, now in zip(before, grown[0], strict=True):
        kept = np.sort(np.argsort(-np.abs(was).ravel(), kind="stable")[: round(0.8 * was.size)])
        np.testing.assert_array_equal(np.flatnonzero(now), kept)
        np.testing.assert_array_equal(now.ravel()[kept], was.ravel()[kept])


def test_a_random_ticket_is_drawn_by_its_seed():
    one, same, other = (Run(score="random", rng=rng).train().model[0].pattern_hash for rng in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("state", ["rewind", "reset", "keep"])
@pytest.mark.parametrize("mode", ["weights", "learning rate"])
def test_weights_and_optimizer_state_go_back_or_stay(mode, state):
    run = Run(rewind=mode, optimizer_state=state, rewind_to=2).train(2)
    first = run.model[0]
    early = {"values": first.values.detach().clone()}
    early |= {k: t.clone() for k, t in run.optimizer.state[first.values].items()}
    run.train(3)
    carry = run.ticket._go_back
    late = {}

    def watched():
        late["values"] = first.values.detach().clone()
        late.update({k: t.clone() for k, t in run.optimizer.state[first.values].items()})
        carry()

    run.ticket._go_back = watched
    run.train(1)
    kept = torch.from_numpy(places_of(first))
    expected = early["values"][kept] if mode == "weights" else late["values"]
    assert torch.equal(first.values, expected)
    found = run.optimizer.state[first.values]
    if state == "reset":
        assert not found
    for name in ("exp_avg", "exp_avg_sq", "step") if state != "reset" else ():
        source = early[name] if state == "rewind" else late[name]
        assert torch.equal(found[name], source[kept] if state == "rewind" and source.ndim else source)
    assert run.schedule.get_last_lr() == [run.optimizer.param_groups[0]["lr"]] == [0.005]


def test_counts_follow_the_fractions_exactly():
    """Of 108 and 45 connections, 0.8^r and 0.9^r of them, rounded: published 80, 64, 51.2, 41, 32.8 percent."""
    run = Run("plain", rounds=5, round_steps=1, groups=[{"layers": "3", "drop_fraction": 0.1}])
    counts = []
    for _ in range(5):
        run.train(1)
        counts.append((run.model[0].nnz, run.model[3].nnz))
    assert counts == [(round(108 * Fraction(4, 5) ** r), round(45 * Fraction(9, 10) ** r)) for r in range(1, 6)]
    schedule = Run(
        "plain", rounds=2, round_steps=1, drop_fraction=lambda number: [0.5, 0.25][number - 1], scope="global"
    )
    schedule.train()
    assert schedule.model[0].nnz + schedule.model[3].nnz == round(108 * 3 / 8) + round(45 * 3 / 8)


@pytest.mark.parametrize("stopped", [1, 2, 6, 9, 13])
@pytest.mark.parametrize("mode", ["weights", "learning rate"])
def test_a_resumed_run_is_the_uninterrupted_one(mode, stopped):
    settings = {"rewind_to": 2, "rewind": mode}
    whole = Run(**settings).train()
    first = Run(**settings).train(stopped)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first.parts], file)
    file.seek(0)
    again = Run(seed=1, **settings).train(4)
    for part, state in zip(again.parts, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    again.log.clear()
    again.train()
    assert first.log + again.log == whole.log
    for mine, true in zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, true)


def test_what_is_remembered_is_a_copy():
    run = Run(rewind_to=1).train(1)
    before = copy.deepcopy(run.ticket.state_dict()["earlier"])
    run.train(8)
    after = run.ticket.state_dict()["earlier"]
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())
    assert after["scheduler"] == before["scheduler"]


def test_rewinding_alone():
    run = Run().train(0)
    start = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    run.train(3)
    tt.OneShot(run.model, run.optimizer, density=0.5).step()
    statistics = run.model[1].running_mean.clone()
    tt.rewind(run.model, start[0], optimizer=run.optimizer, buffers=False)
    assert not any(run.optimizer.state.values())
    assert torch.equal(run.model[1].running_mean, statistics)
    assert torch.equal(run.model[0].values, start[0]["0.values"][torch.from_numpy(places_of(run.model[0]))])
    run.optimizer.param_groups[0]["lr"] = 9.0
    tt.rewind(run.model, start[0], optimizer=run.optimizer, optimizer_state=start[1])
    assert run.optimizer.param_groups[0]["lr"] == 0.01
    assert not run.model[1].running_mean.any()


def other_model():
    model = Run().model
    state = copy.deepcopy(model.state_dict())
    tt.OneShot(model, density=0.5).step()
    return model, state


def refused(change=lambda state: state, **options):
    model, state = other_model()
    before = copy.deepcopy(model.state_dict())
    try:
        tt.rewind(model, change(state), **options)
    finally:
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def ticket(**settings):
    model = Run().model
    return tt.LotteryTicket(
        model, torch.optim.SGD(model.parameters(), lr=0.1), **{"rounds": 1, "round_steps": 4, **settings}
    )


REFUSED = {
    "no layer": (
        lambda: refused(lambda state: {k: v for k, v in state.items() if k != "3.values"}),
        "The 'state' parameter of rewind must be of the same model. Got nothing for '3'.",
    ),
    "pruned": (
        lambda: refused(lambda state: tt.OneShot(pruned := Run().model, density=0.1).step() and pruned.state_dict()),
        "The 'state' parameter of rewind must have every connection that the model has. It lacks 43 of the 54 of '0'.",
    ),
    "shape": (
        lambda: refused(lambda state: {**state, "3.bias": torch.zeros(2)}),
        "The 'state' parameter of rewind must be of the same model, with shape (5,) for '3.bias'. Got shape (2,).",
    ),
    "optimizer": (
        lambda: tt.rewind(
            (run := Run()).model, run.model.state_dict(), optimizer=run.optimizer,
            optimizer_state=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).state_dict(),
        ),
        "The 'optimizer_state' parameter of rewind must be of the same optimizer. Got one of other parameters.",
    ),
    "rng": (
        lambda: ticket(score="random"),
        "The 'rng' parameter of LotteryTicket must be an int, a SeedSequence or a Generator where score='random'. Got ",
    ),
    "rewind_to": (lambda: ticket(rewind_to=4), "The 'rewind_to' parameter of LotteryTicket must be an int in [0, 3]"),
    "rounds": (lambda: ticket(rounds=0), "The 'rounds' parameter of LotteryTicket must be an int >= 1. Got 0."),
    "fraction": (lambda: ticket(drop_fraction=1.0), "The 'drop_fraction' parameter of LotteryTicket must be in [0, 1)"),
    "mode": (
        lambda: ticket(rewind="all"),
        "The 'rewind' parameter of LotteryTicket must be 'weights' or 'learning rate'. Got 'all'.",
    ),
    "state": (
        lambda: ticket(optimizer_state="drop"),
        "The 'optimizer_state' parameter of LotteryTicket must be 'rewind' or 'reset' or 'keep'. Got 'drop'.",
    ),
    "scheduler": (
        lambda: ticket(scheduler=0.1),
        "The 'scheduler' parameter of LotteryTicket must be None or an object with state_dict and load_state_dict. ",
    ),
    "no optimizer": (
        lambda: tt.LotteryTicket(Run().model, None, rounds=1, round_steps=1),
        "The 'optimizer' parameter of LotteryTicket must be an Optimizer. Got ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()
