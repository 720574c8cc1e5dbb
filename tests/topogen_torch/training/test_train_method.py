"""Training while a method changes the connections: stopped anywhere, killed anywhere, the run ends as it would have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import BATCH, DATA, KW, N_TRAIN, STEPS, Stopper, assert_same, network, timeless
from torch import nn
from torch.optim import Optimizer

import topogen as tg
import topogen_torch as tt
from topogen.errors import FormatError, SpecError, TopogenError
from topogen_torch import _rewire
from topogen_torch._patterned import Patterned
from topogen_torch._training import _checkpoint, _train
from topogen_torch._training._epoch import Epoch
from topogen_torch._training._train import Method, train
from topogen_torch.controllers import Controller

TOTAL = 3 * STEPS


def set_(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.SET(model, optimizer, rng=3, update_every=4, drop_fraction=tg.cosine(initial=0.5, end_step=steps))


def rigl(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.RigL(model, optimizer, end_step=steps, update_every=3)


def gradual(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.GradualMagnitude(model, optimizer, density=0.1, begin_step=2, end_step=steps - 4, update_every=3)


def one_shot(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.OneShot(model, optimizer, density=0.1, layers="0")


def threshold(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.Threshold(model, optimizer, quality=0.8, steps=[5, steps // 2])


def ticket(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.LotteryTicket(model, optimizer, rounds=1, round_steps=steps, drop_fraction=0.5, rewind_to=BACK)


BACK = STEPS + 3  # to the middle of an epoch
METHODS: dict[str, Method] = {
    "set": set_, "rigl": rigl, "gradual": gradual, "one_shot": one_shot, "threshold": threshold, "ticket": ticket,
}  # fmt: skip
OPTIMIZERS = {
    "set": "sgd", "rigl": "adam", "gradual": "adamw", "one_shot": "nesterov", "threshold": "sgd", "ticket": "adam",
}  # fmt: skip
STEPS_OF = dict.fromkeys(METHODS, TOTAL) | {"ticket": 2 * TOTAL - BACK}
SETTINGS: dict[str, dict[str, Any]] = {
    name: {**KW, "lr": 0.01, "optimizer": OPTIMIZERS[name], "method": method} for name, method in METHODS.items()
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, list[Epoch], Path]]:
    """Model, epochs and last checkpoint of a run with each method that never stopped."""
    folder, runs = tmp_path_factory.mktemp("uninterrupted"), {}
    for name, settings in SETTINGS.items():
        model, path = network(), folder / f"{name}.pt"
        runs[name] = (model, train(model, DATA, checkpoint=path, **settings), path)
    return runs


def assert_same_checkpoint(path: Path, other: Path) -> None:
    """Compare values, patterns, optimizer, controller and history bit for bit; only times may differ."""
    contents = [torch.load(one, weights_only=True) for one in (path, other)]
    for content in contents:
        for row in content["state"]["progress"]["history"]:
            row["seconds"] = 0.0
    assert plain(contents[0]) == plain(contents[1])


def plain(value: Any) -> Any:
    """Return a state whose tensors are lists, so that == compares all of it."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def counts(model: nn.Module) -> list[int]:
    return [layer.nnz for layer in model.modules() if isinstance(layer, tt.SparseLinear)]


def patterns(model: nn.Module) -> list[list[int]]:
    return [layer.pattern_hash.tolist() for layer in model.modules() if isinstance(layer, tt.SparseLinear)]


# ---- what a method does in the loop


def test_the_controller_sees_every_step_and_the_model_s_own_optimizer() -> None:
    made: list[tuple[nn.Module, Optimizer, int, Controller]] = []

    def method(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        made.append((model, optimizer, steps, set_(model, optimizer, steps)))
        return made[-1][-1]

    model = network()
    train(model, DATA, method=method, **KW)
    ((seen, optimizer, steps, controller),) = made
    assert seen is model
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert controller.steps == steps == TOTAL


@pytest.mark.parametrize("name", METHODS)
def test_connections_are_as_many_as_the_method_says(
    name: str, uninterrupted: dict[str, tuple[nn.Module, list[Epoch], Path]]
) -> None:
    model, history, _ = uninterrupted[name]
    before, after = counts(network()), counts(model)
    possible = [8 * 16, 16 * 8, 8 * 16, 16 * 4]
    expected = {
        "gradual": [round(0.1 * n) for n in possible],
        "one_shot": [round(0.1 * possible[0]), *before[1:]],
        "threshold": [row.stored for row in history[-1].layers],
        "ticket": [count // 2 for count in before],
    }.get(name, before)
    assert after == expected
    assert patterns(model) != patterns(network())
    rows = history[-1].layers
    assert [row.stored for row in rows] == after
    assert [row.possible for row in rows] == possible
    assert history[-1].density == sum(after) / sum(possible)
    for row, layer in zip(rows, (m for m in model.modules() if isinstance(m, tt.SparseLinear)), strict=True):
        dense = layer.pattern.toarray()
        assert (row.fan_in_min, row.fan_in_max) == (dense.sum(0).min(), dense.sum(0).max())
        assert row.fan_in_mean == pytest.approx(dense.sum(0).mean())
        assert row.dead == (~dense.any(0)).sum()
        assert row.unread == (~dense.any(1)).sum()
        assert row.density <= row.explored <= 1
        assert 0 <= row.survival <= 1
    if name == "gradual":  # after step 7 the last update was that of step 6, and the schedule has moved on
        schedule = tg.cubic(initial=1.0, final=0.0, begin_step=2, end_step=TOTAL - 4)
        ends = list(zip(before, expected, strict=True))
        counts_at = [[round(last + schedule(step) * (first - last)) for first, last in ends] for step in (6, STEPS)]
        assert [[row.stored for row in history[0].layers], [row.wanted for row in history[0].layers]] == counts_at
    else:
        assert [row.wanted for row in rows] == after
    if name in ("set", "rigl"):
        assert all(row.explored > row.density and row.survival < 1 for row in rows[:3])


def test_a_ticket_that_drops_nothing_repeats_its_steps_bit_for_bit() -> None:
    def idle(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        return tt.LotteryTicket(model, optimizer, rounds=2, round_steps=steps, drop_fraction=0, rewind_to=BACK)

    once, twice = network(), network()
    means: list[float] = []
    plain = train(once, DATA, on_step=lambda step, steps, loss, accuracy: means.append(loss), **KW)
    shown: list[tuple[int, int, float]] = []
    history = train(
        twice, DATA, method=idle, on_step=lambda step, steps, loss, accuracy: shown.append((step, steps, loss)), **KW
    )
    assert_same(twice, once)
    assert [(step, steps) for step, steps, _ in shown] == [(k, 3 * TOTAL - 2 * BACK) for k in range(1, len(shown) + 1)]
    assert [row.epoch for row in history] == [1, 2, 3, 4, 5, 6, 7]
    rates = [row.lr for row in plain]
    assert [row.lr for row in history] == [*rates, *rates[1:], *rates[1:]]
    for row, other in ((3, 1), (4, 2), (5, 1), (6, 2)):  # which of the plain run's epochs it ends as
        assert (history[row].test_loss, history[row].test_accuracy) == (
            plain[other].test_loss,
            plain[other].test_accuracy,
        )
    for row in (4, 6):
        assert history[row].train_loss == plain[2].train_loss
    # of the epoch that a round begins within, the images that it sees
    before, through = BATCH * (BACK - STEPS), means[2 * STEPS - 1] * N_TRAIN
    expected = (through - means[BACK - 1] * before) / (N_TRAIN - before)
    assert [history[row].train_loss for row in (3, 5)] == pytest.approx([expected] * 2, rel=1e-12)
    assert shown[TOTAL + 2 * STEPS - BACK - 1][2] == history[3].train_loss


def test_a_ticket_is_judged_before_it_goes_back(uninterrupted: dict[str, tuple[nn.Module, list[Epoch], Path]]) -> None:
    _, history, _ = uninterrupted["ticket"]
    plain = train(network(), DATA, **{**SETTINGS["ticket"], "method": None})
    assert timeless(history[:3]) == timeless(plain)
    assert [row.density for row in history] == [history[0].density] * 3 + [history[3].density] * 2
    assert 2 * sum(row.stored for row in history[3].layers) == sum(row.stored for row in history[2].layers)


def test_a_ticket_of_another_length_is_refused() -> None:
    def longer(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        return tt.LotteryTicket(model, optimizer, rounds=1, round_steps=steps + 1)

    message = (
        f"'round_steps' parameter of LotteryTicket must be the steps that train gives to a method, {TOTAL}. Got 22"
    )
    with pytest.raises(SpecError, match=message):
        train(network(), DATA, method=longer, **KW)


def test_without_a_method_the_layers_are_those_that_there_were() -> None:
    rows = train(network(), DATA, **KW)[-1].layers
    assert [(row.name, row.stored) for row in rows] == list(zip(("0", "4", "6", "8"), counts(network()), strict=True))
    assert all(row.explored == row.density and row.survival == 1 for row in rows)


# ---- stopping and resuming


@pytest.mark.parametrize("name", METHODS)
def test_a_run_can_be_stopped_after_every_step(
    tmp_path: Path, name: str, uninterrupted: dict[str, tuple[nn.Module, list[Epoch], Path]]
) -> None:
    settings = {**SETTINGS[name], "checkpoint": tmp_path / "run.pt"}
    for step in range(1, STEPS_OF[name] + 1):
        with pytest.raises(KeyboardInterrupt):
            train(network(), DATA, on_step=Stopper(step), **settings)
    model = network()
    history = train(model, DATA, **settings)
    assert_same(model, uninterrupted[name][0])
    assert timeless(history) == timeless(uninterrupted[name][1])
    assert_same_checkpoint(tmp_path / "run.pt", uninterrupted[name][2])


def test_the_model_that_was_stopped_may_go_on_itself(
    tmp_path: Path, uninterrupted: dict[str, tuple[nn.Module, list[Epoch], Path]]
) -> None:
    settings, model = {**SETTINGS["gradual"], "checkpoint": tmp_path / "run.pt"}, network()
    with pytest.raises(KeyboardInterrupt):
        train(model, DATA, on_step=Stopper(STEPS + 3), **settings)
    assert counts(model) != counts(network())
    train(model, DATA, **settings)
    assert_same(model, uninterrupted["gradual"][0])


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A checkpoint of SET in the middle of the second epoch."""
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, checkpoint=path, on_step=Stopper(STEPS + 3), **SETTINGS["set"])
    return path


def other_seed(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.SET(model, optimizer, rng=4, update_every=4, drop_fraction=tg.cosine(initial=0.5, end_step=steps))


def other_fraction(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    return tt.SET(model, optimizer, rng=3, update_every=4, drop_fraction=0.5)


def fewer_layers(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
    fraction = tg.cosine(initial=0.5, end_step=steps)
    return tt.SET(model, optimizer, rng=3, update_every=4, drop_fraction=fraction, layers=["0", "4"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (None, r"was made with method SET; it cannot be resumed with none\."),
        (rigl, r"was made with method SET; it cannot be resumed with RigL\."),
        (other_seed, r"was made with method's seed .*'3'.*; it cannot be resumed with .*'4'.*\."),
        (other_fraction, r"was made with method's settings .*schedule.*; it cannot be resumed with .*0\.5.*\."),
        (fewer_layers, r"was made with method's layers \['0', '4', '6', '8'\]; it cannot be resumed with \['0', '4'\]"),
    ],
)
def test_another_method_is_refused(stopped: Path, method: Method | None, message: str) -> None:
    model, before = network(), stopped.read_bytes()
    with pytest.raises(SpecError, match=message):
        train(model, DATA, checkpoint=stopped, **{**SETTINGS["set"], "method": method})
    assert_same(model, network())
    assert stopped.read_bytes() == before


def test_a_checkpoint_without_a_method_is_refused_by_a_run_with_one(tmp_path: Path) -> None:
    path, model = tmp_path / "run.pt", network()
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, checkpoint=path, on_step=Stopper(3), **{**SETTINGS["set"], "method": None})
    with pytest.raises(SpecError, match=r"was made with method none; it cannot be resumed with SET\."):
        train(model, DATA, checkpoint=path, **SETTINGS["set"])
    assert_same(model, network())


def test_a_checkpoint_that_lost_the_state_of_its_method_is_refused(stopped: Path) -> None:
    content, model = torch.load(stopped, weights_only=True), network()
    del content["state"]["controller"]
    _checkpoint.save_checkpoint(stopped, content["identity"], content["state"])
    with pytest.raises(FormatError, match="The checkpoint lacks the state of its method, without which the run would"):
        train(model, DATA, checkpoint=stopped, **SETTINGS["set"])
    assert_same(model, network())


def test_a_state_of_other_patterns_is_refused(stopped: Path) -> None:
    content = torch.load(stopped, weights_only=True)
    content["state"]["controller"]["layers"]["4"]["pattern_hash"] = "00" * 32
    _checkpoint.save_checkpoint(stopped, content["identity"], content["state"])
    with pytest.raises(SpecError, match="The state of SET must belong to the model's pattern in layer '4', "):
        train(network(), DATA, checkpoint=stopped, **SETTINGS["set"])


def test_a_score_that_is_nan_stops_the_run_and_leaves_the_pattern(tmp_path: Path) -> None:
    model = network()

    def poisoned(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        return tt.GradualMagnitude(
            model, optimizer, density=0.1, begin_step=0, end_step=steps, update_every=STEPS + 2,
            score=lambda layer: layer.values.detach() * float("nan"),
        )  # fmt: skip

    path = tmp_path / "run.pt"
    with pytest.raises(TopogenError, match=f"GradualMagnitude changes nothing at step {STEPS + 2}: .* are NaN"):
        train(model, DATA, checkpoint=path, **{**KW, "method": poisoned})
    assert patterns(model) == patterns(network())
    assert path.exists()  # of the first epoch


# ---- killed

CASES = {  # method, where it is killed, at which call, and how many epochs its checkpoint holds then
    "first rewire": ("set", "inside a rewire", 2, 0),
    "later rewire": ("set", "inside a rewire", 4 * 2 + 2, 1),
    "pruning": ("gradual", "inside a rewire", 4 * 4 + 1, 2),
    "proposal": ("rigl", "before a rewire", 4 * 3 + 3, 1),
    "between": ("rigl", "between rewires", 13, 1),
    "first checkpoint": ("set", "writing a checkpoint", 1, 0),
    "later checkpoint": ("gradual", "writing a checkpoint", 2, 1),
    "flush": ("gradual", "flushing a checkpoint", 2, 1),
    "rename": ("set", "renaming a checkpoint", 3, 2),
    "going back": ("ticket", "inside a rewire", 2, 2),
    "second round": ("ticket", "between rewires", 3 * (STEPS + 1) + 7, 4),
}

# one process imports torch, which takes long, and computes nothing; each of its children begins as it is
KILLED = """
    import os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, {folder!r})
    from small_run import DATA, network
    from test_train_method import CASES, SETTINGS, plant, train

    for case, (name, where, count, _) in CASES.items():
        child = os.fork()
        if child == 0:
            model = network()
            plant(where, count)
            train(model, DATA, checkpoint=Path({path!r}) / case / "run.pt", **SETTINGS[name])
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A folder with a run for each case, and how its process ended."""
    folder = tmp_path_factory.mktemp("killed")
    script = textwrap.dedent(KILLED).format(folder=str(Path(__file__).parent), path=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(CASES, map(int, done.stdout.split()), strict=True))


def plant(where: str, count: int) -> None:
    """Have this process killed at the count-th call of something that a run does."""
    owner, name = {
        "before a rewire": (_rewire, "_installed"),
        "inside a rewire": (Patterned, "_install"),
        "writing a checkpoint": (torch, "save"),
        "flushing a checkpoint": (os, "fsync"),
        "renaming a checkpoint": (Path, "replace"),
        "between rewires": (_train, "cross_entropy"),
    }[where]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def fatal(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < count:
            return original(*arguments, **settings)
        if where == "inside a rewire":  # a layer has its new pattern, and not yet its values
            original(*arguments, **settings)
        if where == "writing a checkpoint":
            arguments[1].write(b"half a checkpoint")
            arguments[1].flush()
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(
    case: str, killed: tuple[Path, dict[str, int]], uninterrupted: dict[str, tuple[nn.Module, list[Epoch], Path]]
) -> None:
    (folder, codes), (name, _, _, epochs) = killed, CASES[case]
    assert codes[case] == -signal.SIGKILL
    path = folder / case / "run.pt"
    assert path.exists() == (epochs > 0)
    steps: list[int] = []
    model = network()
    settings = {**SETTINGS[name], "checkpoint": path}
    history = train(model, DATA, on_step=lambda step, *_: steps.append(step), **settings)
    assert steps[0] == 1 + epochs * STEPS - (BACK % STEPS if epochs > KW["epochs"] else 0)
    assert_same(model, uninterrupted[name][0])
    assert timeless(history) == timeless(uninterrupted[name][1])
    assert_same_checkpoint(path, uninterrupted[name][2])
