"""The training loop: equal to plain PyTorch, and a run that stops anywhere ends as one that never did."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from small_run import BATCH, DATA, KW, N_TRAIN, STEPS, Stopper, assert_same, network, plain_network, timeless
from torch import nn

import topogen as tg
from topogen.errors import FormatError, SpecError, TopogenError
from topogen_torch._layers import SparseLinear
from topogen_torch._stack import sparse_mlp
from topogen_torch._training import _checkpoint
from topogen_torch._training._train import Epoch, evaluate, train

# ---- what it computes


def test_equals_a_plain_loop_with_torch_s_own_schedule() -> None:
    spec = tg.ErdosRenyi(sizes=[8, 12, 4], density=0.5)
    torch.manual_seed(0)
    model = sparse_mlp(tg.generate(spec, rng=0), dtype=torch.float64)
    plain = nn.Sequential(*(m.to_linear() if isinstance(m, SparseLinear) else m for m in model))
    masks = [torch.from_numpy(m.pattern.toarray().T) for m in model if isinstance(m, SparseLinear)]
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    history = train(model, DATA, weight_decay=0.01, momentum=0.8, fabric=fabric, **KW)

    x, y = torch.from_numpy(DATA.train_x).double(), torch.from_numpy(DATA.train_y)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.8, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * STEPS)
    linears = [m for m in plain if isinstance(m, nn.Linear)]
    rates, losses = [], []
    for epoch in range(3):
        order = torch.from_numpy(tg.stream(np.random.SeedSequence(5), 100, epoch).permutation(N_TRAIN))
        total = 0.0
        for batch in order.split(BATCH):
            rates.append(schedule.get_last_lr()[0])
            loss = nn.functional.cross_entropy(plain(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            for linear, mask in zip(linears, masks, strict=True):
                linear.weight.grad *= mask
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / N_TRAIN)
    # Fabric hands outputs on in float32, so the losses, and the gradients at the outputs, are rounded to it
    for sparse, linear in zip([m for m in model if isinstance(m, SparseLinear)], linears, strict=True):
        torch.testing.assert_close(sparse.to_linear().weight, linear.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sparse.bias, linear.bias, rtol=1e-6, atol=1e-6)
    assert [row.train_loss for row in history] == pytest.approx(losses, rel=1e-6)
    assert [row.lr for row in history] == pytest.approx(rates[STEPS - 1 :: STEPS], rel=1e-12)
    with torch.no_grad():
        logits = plain(torch.from_numpy(DATA.test_x).double())
    tested = nn.functional.cross_entropy(logits, torch.from_numpy(DATA.test_y)).item()
    assert history[-1].test_loss == pytest.approx(tested, rel=1e-6)
    assert history[-1].test_accuracy == (logits.argmax(1).numpy() == DATA.test_y).mean()


def test_learns_and_reports() -> None:
    steps: list[tuple[int, int, float, float]] = []
    rows: list[Epoch] = []
    model = sparse_mlp(tg.generate(tg.Dense(sizes=[8, 16, 4])))
    history = train(
        model, DATA, epochs=8, batch_size=BATCH, on_step=lambda *args: steps.append(args), on_epoch=rows.append
    )
    assert rows == history
    assert [row.epoch for row in history] == list(range(1, 9))
    assert [step for step, *_ in steps] == list(range(1, 8 * STEPS + 1))
    assert {total for _, total, *_ in steps} == {8 * STEPS}
    assert history[-1].train_accuracy > 0.9 > history[0].train_accuracy
    for row, (_, _, loss, accuracy) in zip(history, steps[STEPS - 1 :: STEPS], strict=True):
        assert (loss, accuracy) == (pytest.approx(row.train_loss), row.train_accuracy)
    assert all(row.seconds > 0 for row in history)
    assert model.training


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    class Seen(nn.Linear):
        batches: list[torch.Tensor] = []  # noqa: RUF012

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.batches.append(x.detach().clone())
            return super().forward(x)

    train(Seen(8, 4), DATA, **KW)
    epochs = [torch.cat(Seen.batches[e * STEPS : (e + 1) * STEPS]).numpy() for e in range(3)]
    for seen in epochs:
        np.testing.assert_array_equal(np.sort(seen[:, 0]), np.sort(DATA.train_x[:, 0]))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_the_seed_decides_and_the_callers_randomness_is_left_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    models = [network(), network(), network()]
    torch.set_rng_state(before)
    for model, seed in zip(models, (5, 5, 6), strict=True):
        train(model, DATA, **KW | {"seed": seed})
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(models[0], models[1])
    assert not torch.equal(models[0][0].values, models[2][0].values)


def test_evaluate_equals_numpy_and_keeps_the_mode() -> None:
    model = network().train()
    x, y = torch.from_numpy(DATA.test_x), torch.from_numpy(DATA.test_y)
    loss, accuracy = evaluate(model, x, y, batch_size=7)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(x).double().numpy()
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss == pytest.approx(-log_softmax[np.arange(len(y)), DATA.test_y].mean(), rel=1e-6)
    assert accuracy == (logits.argmax(1) == DATA.test_y).mean()


# ---- stopping and resuming


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[nn.Module, list[Epoch]]:
    model = network()
    return model, train(model, DATA, **KW)


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, 2 * STEPS + 5, 3 * STEPS])
def test_a_run_that_ctrl_c_stops_ends_as_one_that_never_stopped(
    tmp_path: Path, step: int, uninterrupted: tuple[nn.Module, list[Epoch]]
) -> None:
    path, handler, stopper = tmp_path / "new" / "run.pt", signal.getsignal(signal.SIGINT), Stopper(step)
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, checkpoint=path, on_step=stopper, **KW)
    assert stopper.last == step
    assert signal.getsignal(signal.SIGINT) is handler
    rows: list[Epoch] = []
    model, after = network(), Stopper(-1)
    history = train(model, DATA, checkpoint=path, on_step=after, on_epoch=rows.append, **KW)
    assert_same(model, uninterrupted[0])
    assert timeless(history) == timeless(uninterrupted[1])
    assert rows == history
    assert after.last == (3 * STEPS if step < 3 * STEPS else 0)
    assert [entry.name for entry in path.parent.iterdir()] == ["run.pt"]


def test_a_run_can_be_stopped_after_every_step(tmp_path: Path, uninterrupted: tuple[nn.Module, list[Epoch]]) -> None:
    for step in range(1, 3 * STEPS + 1):
        with pytest.raises(KeyboardInterrupt):
            train(network(), DATA, checkpoint=tmp_path / "run.pt", on_step=Stopper(step), **KW)
    model = network()
    history = train(model, DATA, checkpoint=tmp_path / "run.pt", **KW)
    assert_same(model, uninterrupted[0])
    assert timeless(history) == timeless(uninterrupted[1])


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, checkpoint=path, on_step=Stopper(3, times=2), **KW)
    assert not path.exists()


def test_without_a_checkpoint_ctrl_c_is_python_s_own() -> None:
    stopper = Stopper(3)
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, on_step=stopper, **KW)
    assert stopper.last == 3


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, {folder!r})
    from small_run import DATA, KW, network
    from topogen_torch._training._train import train

    def kill(step, *_):
        if step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

    train(network(), DATA, checkpoint=Path({path!r}), on_step=kill, **KW)
"""


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(
    tmp_path: Path, uninterrupted: tuple[nn.Module, list[Epoch]]
) -> None:
    path = tmp_path / "run.pt"
    script = textwrap.dedent(KILLED).format(folder=str(Path(__file__).parent), step=STEPS + 4, path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps: list[int] = []
    model = network()
    history = train(model, DATA, checkpoint=path, on_step=lambda step, *_: steps.append(step), **KW)
    assert steps[0] == STEPS + 1
    assert_same(model, uninterrupted[0])
    assert timeless(history) == timeless(uninterrupted[1])


# ---- checkpoints that are refused


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A checkpoint in the middle of the second epoch."""
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, checkpoint=path, on_step=Stopper(STEPS + 3), **KW)
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 4, "was made with epochs 3; it cannot be resumed with 4"),
        ("batch_size", 9, "was made with batch_size 8; it cannot be resumed with 9"),
        ("lr", 0.2, "was made with lr 0.1; it cannot be resumed with 0.2"),
        ("momentum", 0.5, "was made with momentum 0.9; it cannot be resumed with 0.5"),
        ("weight_decay", 0.0, "was made with weight_decay 0.0001; it cannot be resumed with 0.0"),
        ("seed", 6, "was made with seed 5; it cannot be resumed with 6"),
    ],
)
def test_other_settings_are_refused(stopped: Path, name: str, value: float, message: str) -> None:
    model, before = network(), stopped.read_bytes()
    with pytest.raises(SpecError, match=rf"The checkpoint .*run.pt {message}\."):
        train(model, DATA, checkpoint=stopped, **KW | {name: value})
    assert_same(model, network())
    assert stopped.read_bytes() == before


def test_other_data_is_refused(stopped: Path) -> None:
    changed = replace(DATA, test_y=np.roll(DATA.test_y, 1))
    with pytest.raises(
        SpecError, match=r"was made with data noise [0-9a-f]{16}; it cannot be resumed with noise [0-9a-f]{16}"
    ):
        train(network(), changed, checkpoint=stopped, **KW)


def test_other_models_are_refused(stopped: Path) -> None:
    moved = tg.Chain(tg.ErdosRenyi(sizes=[8, 16, 8, 16], density=(0.25,) * 3), tg.Dense(sizes=[16, 4]))
    wider = tg.Chain(tg.RadixNet(systems=[[2, 2, 2]], widths=[1, 3, 1, 2]), tg.Dense(sizes=[16, 4]))
    deeper = tg.Chain(tg.RadixNet(systems=[[2, 2, 2]], widths=[1, 2, 1, 2]), tg.Dense(sizes=[16, 4, 4]))
    for spec, message in (
        (moved, r"was made with 0.pattern_hash [0-9a-f]+; it cannot be resumed with [0-9a-f]+\."),
        (wider, r"was made with 0.values float32 of shape \(32,\); it cannot be resumed with float32 of shape \(48,\)"),
        (deeper, r"was made with 10.values \(none\); it cannot be resumed with float32 of shape \(16,\)"),
    ):
        model = network(spec=spec)
        with pytest.raises(SpecError, match=message):
            train(model, DATA, checkpoint=stopped, **KW)
        assert_same(model, network(spec=spec))


@pytest.mark.parametrize("kind", ["empty", "text", "cut off", "another torch file", "pickle"])
def test_foreign_and_damaged_checkpoints_are_refused(stopped: Path, kind: str) -> None:
    content = stopped.read_bytes()
    if kind == "another torch file":
        torch.save({"model": {}}, stopped)
    elif kind == "pickle":
        torch.save(Path("evil"), stopped)
    else:
        stopped.write_bytes({"empty": b"", "text": b"no checkpoint", "cut off": content[: len(content) // 2]}[kind])
    model = network()
    message = (
        "must be a 'topogen training checkpoint 2', written by"
        if kind.startswith("another")
        else "is damaged or foreign"
    )
    with pytest.raises(FormatError, match=f"The checkpoint .*run.pt {message}"):
        train(model, DATA, checkpoint=stopped, **KW)
    assert_same(model, network())


def test_flipped_bits_are_found(stopped: Path) -> None:
    content, whole = stopped.read_bytes(), torch.load(stopped, weights_only=True)
    identity, refused = whole["identity"], 0
    for position in range(0, len(content), max(1, len(content) // 150)):
        stopped.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            state = _checkpoint.load_checkpoint(stopped, identity)
        except FormatError:
            refused += 1
            continue
        for name, tensor in whole["state"]["model"].items():  # a bit that carries nothing: padding, a time stamp
            assert torch.equal(state["model"][name], tensor), position
        assert state["progress"] == whole["state"]["progress"]
    assert refused > 40


@pytest.mark.parametrize("fails", ["torch.save", "fsync", "replace", "writing"])
def test_a_full_disk_leaves_the_last_checkpoint_usable(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, fails: str, uninterrupted: tuple[nn.Module, list[Epoch]]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def writer_fails(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nand a trace")

    before = stopped.read_bytes()
    with monkeypatch.context() as patch:
        if fails == "torch.save":
            patch.setattr(torch, "save", full)
        elif fails == "fsync":
            patch.setattr(os, "fsync", full)
        elif fails == "replace":
            patch.setattr(Path, "replace", full)
        else:
            patch.setattr(torch, "save", writer_fails)
        expected = (
            r"run.pt cannot be written \(is the disk full\?\): .enforce fail"
            if fails == "writing"
            else "No space left on device"
        )
        with pytest.raises(OSError, match=expected):
            train(network(), DATA, checkpoint=stopped, **KW)
    assert stopped.read_bytes() == before
    assert [entry.name for entry in stopped.parent.iterdir()] == ["run.pt"]
    model = network()
    train(model, DATA, checkpoint=stopped, **KW)
    assert_same(model, uninterrupted[0])


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "The 'epochs' parameter of train must be an int >= 1. Got 0"),
        ({"epochs": 1.5}, "The 'epochs' parameter of train must be an int >= 1. Got 1.5"),
        ({"batch_size": 54}, r"The 'batch_size' parameter of train must be an int in \[1, 53\]. Got 54"),
        ({"lr": 0.0}, r"The 'lr' parameter of train must be a finite number in \(0, inf\). Got 0.0"),
        ({"lr": float("nan")}, r"The 'lr' parameter of train must be a finite number in \(0, inf\). Got nan"),
        ({"momentum": 1.1}, r"The 'momentum' parameter of train must be a finite number in \[0, 1\]. Got 1.1"),
        ({"weight_decay": -1}, r"The 'weight_decay' parameter of train must be a finite number in \[0, inf\). Got -1"),
        ({"seed": -1}, "The 'seed' parameter of train must be an int >= 0. Got -1"),
        ({"data": None}, "The 'data' parameter of train must be a DataSet. Got None"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        train(nn.Linear(8, 4), **{"data": DATA, **KW, **change})


def test_a_model_without_one_output_a_class_is_refused() -> None:
    message = (
        "The 'model' parameter of train must map (B, 8) to (B, 4), one logit a class. Got outputs of shape (B, 3)."
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        train(nn.Linear(8, 3), DATA, **KW)


def test_a_loss_that_is_not_finite_is_an_error_with_remedies(tmp_path: Path) -> None:
    with pytest.raises(
        TopogenError, match=r"The training loss is (nan|inf) in epoch \d. The learning rate, .*e\+(29|30) now, may be"
    ):
        train(network(), DATA, checkpoint=tmp_path / "run.pt", **KW | {"lr": 1e30})
    assert not list(tmp_path.iterdir())


# ---- several processes

RANKS = """
    import sys
    from pathlib import Path
    import torch
    from lightning_fabric import Fabric
    sys.path.insert(0, {folder!r})
    from small_run import DATA, KW, plain_network
    from topogen_torch._training._train import train

    def main(fabric):
        model = plain_network()
        history = train(model, DATA, fabric=fabric, checkpoint=Path({path!r}), **KW)
        if fabric.is_global_zero:
            torch.save([model.state_dict(), [vars_of(row) for row in history]], {out!r})

    def vars_of(row):
        return [row.train_loss, row.train_accuracy, row.test_loss, row.test_accuracy]

    if __name__ == "__main__":
        Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(main)
"""


@pytest.mark.slow
def test_two_processes_share_each_batch_and_learn_the_same(tmp_path: Path) -> None:
    script, out = tmp_path / "ranks.py", tmp_path / "out.pt"
    names = {"folder": str(Path(__file__).parent), "path": str(tmp_path / "run.pt"), "out": str(out)}
    script.write_text(textwrap.dedent(RANKS).format(**names))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    state, rows = torch.load(out, weights_only=True)
    model = plain_network()
    history = train(model, DATA, **KW)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)
    for row, (train_loss, train_accuracy, test_loss, test_accuracy) in zip(history, rows, strict=True):
        assert (row.train_loss, row.test_loss) == (
            pytest.approx(train_loss, rel=1e-4),
            pytest.approx(test_loss, rel=1e-4),
        )
        assert (row.train_accuracy, row.test_accuracy) == (train_accuracy, test_accuracy)
