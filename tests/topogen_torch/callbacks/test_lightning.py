"""The callback of Lightning's Trainer: one step a step, exact resuming, figures, and what is refused."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError

lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install lightning")
pytestmark = pytest.mark.filterwarnings(  # of Lightning's own
    "ignore:.*does not have many workers", "ignore:.*LeafSpec.*is deprecated:FutureWarning"
)

BATCHES, BATCH = 12, 32
METHODS = {
    "SET": lambda model, optimizer: tt.SET(model, optimizer, rng=1, update_every=5),
    "GradualMagnitude": lambda model, optimizer, total: tt.GradualMagnitude(
        model, optimizer, density=0.1, begin_step=0, end_step=int(0.8 * total), update_every=5
    ),
    "RigL": lambda model, optimizer, total: tt.RigL(model, optimizer, end_step=total, update_every=5),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits() -> TensorDataset:
    data = tt.data.load_data("digits")
    n = BATCHES * BATCH
    return TensorDataset(torch.from_numpy(data.train_x[:n]), torch.from_numpy(data.train_y[:n]))


class Module(lightning.LightningModule):
    """Digits, sparse from the start or dense in a sparse layer."""

    def __init__(
        self, *, density: float = 0.3, optimizer: type = torch.optim.Adam, skips: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = tt.sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=[64, 32, 10], density=density), rng=0))
        self.kind, self.skips = optimizer, skips

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(digits(), batch_size=BATCH)

    def configure_optimizers(self) -> Any:
        optimizer = self.kind(
            self.parameters(), lr=0.01, **({} if self.kind is torch.optim.Adam else {"momentum": 0.9})
        )
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx in self.skips:
            optimizer_closure()  # gradients, and no step: what a loss scale does that has found an infinity
        else:
            optimizer.step(closure=optimizer_closure)


def trainer(folder: Path, *callbacks: Any, epochs: int = 2, **kw: Any) -> Any:
    kw = {"logger": False, "enable_checkpointing": False, **kw}
    return lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), default_root_dir=folder, accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False, **kw,
    )  # fmt: skip


class Stop(lightning.Callback):
    """Saves after an epoch and stops there."""

    def __init__(self, path: Path, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def plain_loop(make: Any, *, accumulate: int = 1, epochs: int = 2, density: float = 0.3, skips: Any = ()) -> Any:
    """What the README's loop does, and what the callback has to do."""
    module = Module(density=density)
    (optimizer,), (schedule,) = module.configure_optimizers()
    total = epochs * -(-BATCHES // accumulate)
    ctl = make(module, optimizer, total) if make.__code__.co_argcount == 3 else make(module, optimizer)
    for _ in range(epochs):
        for i, batch in enumerate(module.train_dataloader()):
            if i % accumulate == 0:
                optimizer.zero_grad()
            (module.training_step(batch, i) / accumulate).backward()
            if ((i + 1) % accumulate and i + 1 < BATCHES) or i in skips:
                ctl.forget() if i in skips else None
                continue
            optimizer.step()
            ctl.step()
        schedule.step()
    return module, ctl


def assert_same(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("accumulate", [1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_plain_loop(tmp_path: Path, method: str, accumulate: int) -> None:
    density = 1.0 if method == "GradualMagnitude" else 0.3
    module, callback = Module(density=density), tt.lightning_callback(METHODS[method])
    assert callback.controller is None
    trainer(tmp_path, callback, epochs=5, accumulate_grad_batches=accumulate).fit(module)
    plain, ctl = plain_loop(METHODS[method], accumulate=accumulate, epochs=5, density=density)
    assert callback.controller.steps == ctl.steps == 5 * -(-BATCHES // accumulate)
    assert_same(module, plain)
    assert callback.controller.explored() == {f"net.{k}": rate for k, rate in _unprefixed(ctl.explored())}
    if method != "GradualMagnitude":
        assert max(callback.controller.explored().values()) > 0.3  # something has happened
    else:
        assert [layer.density for layer in module.net if hasattr(layer, "density")] == pytest.approx(
            [0.1] * 2, abs=1e-3
        )


def _unprefixed(figures: dict[str, float]) -> list[tuple[str, float]]:
    return [(name.removeprefix("net."), rate) for name, rate in figures.items()]


@pytest.mark.parametrize(("optimizer", "stopped_after"), [(torch.optim.Adam, 0), (torch.optim.SGD, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, method: str, optimizer: type, stopped_after: int
) -> None:
    """Patterns, and with pruning the shapes of values and optimizer state, are not those of a new model."""
    make, path = METHODS[method], tmp_path / "stopped.ckpt"
    kw: dict[str, Any] = {"density": 1.0 if method == "GradualMagnitude" else 0.3, "optimizer": optimizer}
    whole, never = Module(**kw), tt.lightning_callback(make)
    trainer(tmp_path, never, epochs=4).fit(whole)

    begun = Module(**kw)
    trainer(tmp_path, tt.lightning_callback(make), Stop(path, stopped_after), epochs=4).fit(begun)
    resumed, callback = Module(**kw), tt.lightning_callback(make)
    last = trainer(tmp_path, callback, epochs=4)
    last.fit(resumed, ckpt_path=path, weights_only=True)

    assert begun.net[0].pattern_hash.tolist() != whole.net[0].pattern_hash.tolist()
    assert_same(resumed, whole)
    assert callback.controller.steps == never.controller.steps == 4 * BATCHES
    assert str(callback.controller.state_dict()) == str(never.controller.state_dict())
    ours, theirs = last.optimizers[0].state_dict()["state"], never.controller.optimizer.state_dict()["state"]
    for k, state in theirs.items():
        for name, entry in state.items():
            assert entry is None or torch.equal(torch.as_tensor(ours[k][name]), torch.as_tensor(entry)), (k, name)


def test_a_skipped_step_is_no_step(tmp_path: Path) -> None:
    """RigL is due at its fifth step; the gradients of the skipped one before it are infinite."""
    skips = (4,)

    class Overflows(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx in self.skips else 1.0)

    module, callback = Overflows(skips=skips), tt.lightning_callback(METHODS["RigL"])
    trainer(tmp_path, callback).fit(module)
    plain, ctl = plain_loop(METHODS["RigL"], skips=skips)
    assert callback.controller.steps == ctl.steps == 2 * (BATCHES - 1)
    assert_same(module, plain)


def test_the_figures_reach_the_logger(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    module, callback = Module(), tt.lightning_callback(METHODS["SET"])
    trainer(tmp_path, callback, logger=logger, log_every_n_steps=1).fit(module)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 15, 20]
    layers = [module.net[0], module.net[2]]
    stored, possible = sum(layer.nnz for layer in layers), 64 * 32 + 32 * 10
    last = {name: float(value) for name, value in rows[-1].items()}
    assert {float(row["density"]) for row in rows} == {stored / possible}
    rates, alive = callback.controller.explored(), callback.controller.survival()
    for name, layer in zip(("net.0", "net.2"), layers, strict=True):
        assert last[f"density/{name}"] == layer.density
        assert last[f"explored/{name}"] == rates[name] > layer.density
        assert last[f"survival/{name}"] == alive[name] < 1
        assert last[f"dead_neurons/{name}"] == (layer.pattern.sum(0) == 0).sum()
    assert last["explored"] == pytest.approx((rates["net.0"] * 64 * 32 + rates["net.2"] * 320) / possible)
    assert last["dead_neurons"] == last["dead_neurons/net.0"] + last["dead_neurons/net.2"]
    assert float(rows[0]["survival/net.0"]) == 1.0


def test_figures_of_the_model_alone(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    trainer(
        tmp_path, tt.lightning_callback(METHODS["SET"], by_layer=False), logger=logger, epochs=1, log_every_n_steps=1
    ).fit(Module())
    header = Path(logger.log_dir, "metrics.csv").read_text().partition("\n")[0]
    assert sorted(header.split(",")) == ["dead_neurons", "density", "explored", "step"]


def test_two_controllers_in_one_run(tmp_path: Path) -> None:
    path = tmp_path / "stopped.ckpt"

    def pair() -> tuple[Any, Any]:
        return (
            tt.lightning_callback(lambda m, o: tt.SET(m, o, rng=1, update_every=5, layers="net.0"), name="first"),
            tt.lightning_callback(lambda m, o: tt.RigL(m, o, end_step=99, update_every=4, layers="net.2"), name="last"),
        )

    whole, resumed, never, again = Module(), Module(), pair(), pair()
    trainer(tmp_path, *never, epochs=2).fit(whole)
    trainer(tmp_path, *pair(), Stop(path, 0), epochs=2).fit(Module())
    trainer(tmp_path, *again, epochs=2).fit(resumed, ckpt_path=path, weights_only=True)
    assert_same(resumed, whole)
    for a, b in zip(never, again, strict=True):
        assert str(a.controller.state_dict()) == str(b.controller.state_dict())


def test_the_optimizer_is_let_go_of(tmp_path: Path) -> None:
    class Boom(lightning.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("boom")

    for others in ((), (Boom(),)):
        callback = tt.lightning_callback(METHODS["SET"])
        module = Module()
        try:
            trainer(tmp_path, callback, *others, epochs=1).fit(module)
        except RuntimeError:
            assert others
        steps = callback.controller.steps
        callback.controller.optimizer.step()
        assert callback.controller.steps == steps > 0


def test_a_trainer_that_fits_again_goes_on(tmp_path: Path) -> None:
    callback, module = tt.lightning_callback(METHODS["SET"]), Module()
    fitting = trainer(tmp_path, callback, epochs=1)
    fitting.fit(module)
    first = callback.controller
    fitting.fit_loop.max_epochs = 2
    fitting.fit(module)
    assert callback.controller is not first
    assert callback.controller.steps == 2 * BATCHES
    trainer(tmp_path, callback, epochs=1).fit(Module())
    assert callback.controller.steps == BATCHES  # another trainer begins anew


def test_evaluation_leaves_the_callback_alone(tmp_path: Path) -> None:
    path, callback = tmp_path / "stopped.ckpt", tt.lightning_callback(METHODS["SET"])
    trainer(tmp_path, callback, Stop(path, 0)).fit(Module())

    class Tested(Module):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

        test_dataloader = Module.train_dataloader

    module, fresh = Tested(), tt.lightning_callback(METHODS["SET"])
    testing = trainer(tmp_path, fresh, epochs=1)
    testing.test(module, ckpt_path=path, weights_only=True, verbose=False)
    assert fresh.controller is None
    testing.fit(Module())
    assert fresh.controller.steps == BATCHES


# ---- what is refused


def test_a_checkpoint_without_the_controller_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    trainer(tmp_path, Stop(path, 0)).fit(Module())
    message = (
        f"The checkpoint {path} must hold the state of the controller 'controller', without which the run cannot be "
        "resumed. Got none: to begin a new controller with its weights, load them and fit without ckpt_path."
    )
    callback = tt.lightning_callback(METHODS["SET"])
    with pytest.raises(SpecError, match=re.escape(message)):
        trainer(tmp_path, callback).fit(Module(), ckpt_path=path, weights_only=True)


def test_the_state_of_another_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.ckpt"
    trainer(tmp_path, tt.lightning_callback(METHODS["SET"]), Stop(path, 0)).fit(Module())
    callback = tt.lightning_callback(METHODS["RigL"])
    with pytest.raises(SpecError, match=r"The state of RigL must be of the same method, RigL\. Got SET\."):
        trainer(tmp_path, callback).fit(Module(), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        (
            {"make": lambda model: None},
            "The 'make' parameter of lightning_callback must be a callable (model, optimizer) or (model, optimizer, "
            "total_steps). Got <function",
        ),
        ({"make": 3}, "The 'make' parameter of lightning_callback must be a callable"),
        ({"make": METHODS["SET"], "name": 3}, "The 'name' parameter of lightning_callback must be a str. Got 3."),
    ],
)
def test_bad_parameters(kw: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        tt.lightning_callback(**kw)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        (
            {"make": lambda model, optimizer: tt.SET(model, None, rng=0, update_every=5)},
            "The 'make' parameter of lightning_callback must be a callable that returns a controller of the optimizer "
            "that it gets. Got <topogen_torch.controllers._dynamic.SET object",
        ),
        ({"make": lambda model, optimizer: None}, "that returns a controller of the optimizer that it gets. Got None."),
        (
            {"make": METHODS["SET"], "optimizer": 1},
            "The 'optimizer' parameter of lightning_callback must be an int in [0, 0]. Got 1.",
        ),
    ],
)
def test_bad_controllers(tmp_path: Path, kw: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        trainer(tmp_path, tt.lightning_callback(**kw)).fit(Module())


def test_steps_without_end_have_no_total(tmp_path: Path) -> None:
    message = (
        "The 'make' parameter of lightning_callback takes the total number of steps, so the trainer must know it: "
        "limit the steps or epochs, and train on data that has a length. Got inf."
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        trainer(tmp_path, tt.lightning_callback(METHODS["RigL"]), epochs=-1).fit(Module())


def test_without_lightning_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "topogen_torch._callbacks._lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^topogen_torch\.lightning_callback needs lightning: pip install lightning\.$"
    ):
        tt.lightning_callback(METHODS["SET"])
