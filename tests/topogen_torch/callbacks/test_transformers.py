"""The callback of Hugging Face's Trainer: one step a step, exact resuming, figures, and what is refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topogen_torch as tt
from topogen.errors import SpecError

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers accelerate")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")

SAMPLES, BATCH, STEPS = 24, 4, 6
CONFIG: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16, "num_labels": 3,
}  # fmt: skip
METHODS = {
    "RigL": lambda model, optimizer, total: tt.RigL(model, optimizer, end_step=total, update_every=2),
    "GradualMagnitude": lambda model, optimizer, total: tt.GradualMagnitude(
        model, optimizer, density=0.2, begin_step=0, end_step=total - 2, update_every=2
    ),
}
DENSITY = {"RigL": 0.3, "GradualMagnitude": 1.0}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    threads, level = torch.get_num_threads(), logging.getLogger("topogen").level
    torch.set_num_threads(1)
    logging.getLogger("topogen").setLevel(logging.ERROR)
    yield
    torch.set_num_threads(threads)
    logging.getLogger("topogen").setLevel(level)


def model_of(density: float = 0.3) -> nn.Module:
    """A transformer with dropout, so that random streams count too."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**CONFIG))
    return tt.sparsify(model, density=density, rng=0)


def sentences() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, 50, (SAMPLES, 8), generator=draw), torch.randint(0, 3, (SAMPLES,), generator=draw)
    return [{"input_ids": row, "labels": int(label)} for row, label in zip(tokens, labels, strict=True)]


def trainer(folder: Path, model: nn.Module, *callbacks: Any, **kw: Any) -> Any:
    settings = {
        "use_cpu": True, "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "learning_rate": 1e-2, "seed": 0,
        "save_strategy": "no", "logging_steps": 4, "report_to": "none", "disable_tqdm": True, **kw,
    }  # fmt: skip
    args = transformers.TrainingArguments(output_dir=str(folder), **settings)
    return transformers.Trainer(model=model, args=args, train_dataset=sentences(), callbacks=list(callbacks))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, Path]]:
    """For each method a run, its callback, and a checkpoint that it left in the middle of the second epoch."""
    runs = {}
    for method, make in METHODS.items():
        folder, callback = tmp_path_factory.mktemp(method), tt.transformers_callback(make)
        training = trainer(folder, model_of(DENSITY[method]), callback, save_strategy="steps", save_steps=STEPS + 2)
        training.train()
        runs[method] = training, callback, folder / f"checkpoint-{STEPS + 2}"
    return runs


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(
    tmp_path: Path, uninterrupted: dict[str, tuple[Any, Any, Path]], method: str, restore: bool
) -> None:
    """Whether or not the Trainer makes its callbacks anew."""
    first, never, checkpoint = uninterrupted[method]
    resumed, given = model_of(DENSITY[method]), tt.transformers_callback(METHODS[method])
    last = trainer(tmp_path, resumed, given, restore_callback_states_from_checkpoint=restore)
    last.train(resume_from_checkpoint=str(checkpoint))
    (again,) = [callback for callback in last.callback_handler.callbacks if hasattr(callback, "controller")]

    assert (again is given) is not restore
    assert_same(resumed, first.model)
    assert again.controller.steps == never.controller.steps == 2 * STEPS
    assert str(again.controller.state_dict()) == str(never.controller.state_dict())
    ours, theirs = (one.optimizer.state_dict()["state"] for one in (last, first))
    for k, state in theirs.items():
        for name, entry in state.items():
            assert torch.equal(ours[k][name], entry), (k, name)
    moments = [tuple(state["exp_avg"].shape) for state in ours.values()]
    assert {tuple(target.layer.values.shape) for target in again.controller.targets} <= set(moments)


def test_gradients_accumulate_over_one_step(tmp_path: Path) -> None:
    callback = tt.transformers_callback(METHODS["RigL"])
    training = trainer(tmp_path, model_of(), callback, gradient_accumulation_steps=4)
    training.train()
    assert callback.controller.steps == training.state.global_step == 2 * -(-STEPS // 4)
    assert callback.controller.optimizer is training.optimizer.optimizer


def test_equals_the_plain_loop(tmp_path: Path) -> None:
    """Without dropout and shuffling, the Trainer does nothing else than the loop that one would write."""

    class Ordered(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    callback, trained, model = tt.transformers_callback(METHODS["RigL"]), model_of(), model_of()
    for dropout in (m for m in (*trained.modules(), *model.modules()) if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    settings = trainer(tmp_path, nn.Linear(1, 1), lr_scheduler_type="constant", max_grad_norm=0.0).args
    Ordered(model=trained, args=settings, train_dataset=sentences(), callbacks=[callback]).train()

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    ctl = METHODS["RigL"](model, optimizer, 2 * STEPS)
    data = torch.utils.data.DataLoader(sentences(), batch_size=BATCH)
    for _ in range(2):
        for batch in data:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
            ctl.step()
    assert ctl.steps == callback.controller.steps == 2 * STEPS
    assert_same(trained, model)


def test_a_skipped_step_is_no_step(tmp_path: Path) -> None:
    """What a loss scale does that has found an infinity, in the step whose gradients RigL waits for."""

    class Skips(transformers.Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            step = self.optimizer.step
            if self.state.global_step == 3:
                self.optimizer.step = lambda: setattr(self.optimizer, "step", step)
            return loss

    callback = tt.transformers_callback(METHODS["RigL"])
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            pairs = [len(tape.pairs) for tape in callback.controller._tapes.values()]
            seen.append((callback.controller.steps, max(pairs)))

    model, settings = model_of(), trainer(tmp_path, nn.Linear(1, 1)).args
    Skips(model=model, args=settings, train_dataset=sentences(), callbacks=[callback, Watch()]).train()
    assert callback.controller.steps == 2 * STEPS - 1
    assert seen == [(steps, 0) for steps in (0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10)]


def test_the_figures_reach_history_and_loggers(tmp_path: Path) -> None:
    from transformers.integrations import TensorBoardCallback

    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[str, list[tuple[int, float]]] = {}

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars.setdefault(name, []).append((step, value))

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    writer, callback, model = Writer(), tt.transformers_callback(METHODS["RigL"], by_layer=True), model_of()
    training = trainer(tmp_path, model, callback, TensorBoardCallback(writer))
    training.train()
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "pattern_hash")}
    history = [row for row in training.state.log_history if "loss" in row]
    assert [row["step"] for row in history] == [4, 8, 12]
    last, rates, alive = history[-1], callback.controller.explored(), callback.controller.survival()
    for name, layer in layers.items():
        assert last[f"density/{name}"] == layer.density
        assert last[f"explored/{name}"] == rates[name]
        assert last[f"survival/{name}"] == alive[name]
        assert writer.scalars[f"train/survival/{name}"][-1] == (12, alive[name])
    stored, possible = (sum(getattr(t, what) for t in callback.controller.targets) for what in ("stored", "possible"))
    assert last["density"] == stored / possible
    assert "density" not in training.state.log_history[-1]  # the summary of the run


def test_figures_of_the_model_alone(tmp_path: Path) -> None:
    callback = tt.transformers_callback(METHODS["RigL"])
    training = trainer(tmp_path, model_of(), callback, max_steps=4)
    training.train()
    assert sorted(set(training.state.log_history[0]) - {"loss", "grad_norm", "learning_rate", "epoch", "step"}) == [
        "dead_neurons", "density", "explored",
    ]  # fmt: skip


def test_two_controllers_in_one_run(tmp_path: Path) -> None:
    def pair() -> tuple[Any, Any]:
        return (
            tt.transformers_callback(
                lambda m, o: tt.SET(m, o, rng=1, update_every=2, layers="*attention*"), name="attention"
            ),
            tt.transformers_callback(lambda m, o: tt.RigL(m, o, end_step=99, update_every=3, layers="classifier")),
        )

    whole, resumed, never, again = model_of(), model_of(), pair(), pair()
    first = trainer(tmp_path, whole, *never, save_strategy="steps", save_steps=5)
    first.train()
    trainer(tmp_path, resumed, *again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same(resumed, whole)
    for a, b in zip(never, again, strict=True):
        assert str(a.controller.state_dict()) == str(b.controller.state_dict())
    last = first.state.log_history[-2]
    assert last["attention/explored"] > last["attention/density"]
    assert last["density"] == last["explored"] == 1.0  # of the classifier, which is dense


def test_the_optimizer_is_let_go_of_and_training_again_begins_anew(tmp_path: Path) -> None:
    callback = tt.transformers_callback(METHODS["RigL"])
    training = trainer(tmp_path, model_of(), callback, max_steps=3)
    training.train()
    callback.controller.optimizer.step()
    assert callback.controller.steps == 3
    training.train()
    assert callback.controller.steps == 3


# ---- what is refused


@pytest.mark.parametrize("kind", ["no callback", "no controller"])
def test_a_checkpoint_without_the_controller_is_refused(
    tmp_path: Path, uninterrupted: dict[str, tuple[Any, Any, Path]], kind: str
) -> None:
    checkpoint = tmp_path / "checkpoint-8"
    shutil.copytree(uninterrupted["RigL"][2], checkpoint)
    path = checkpoint / "trainer_state.json"
    content = json.loads(path.read_text())
    if kind == "no callback":
        del content["stateful_callbacks"]["controller"]
    else:
        content["stateful_callbacks"]["controller"]["controller"] = None
    path.write_text(json.dumps(content))
    message = (
        "The checkpoint of step 8 must hold the state of the controller 'controller', without which the run cannot be "
        "resumed. Got none: to begin a new controller with its weights, load them and train without "
        "resume_from_checkpoint."
    )
    training = trainer(tmp_path, model_of(), tt.transformers_callback(METHODS["RigL"]))
    with pytest.raises(SpecError, match=re.escape(message)):
        training.train(resume_from_checkpoint=str(checkpoint))


def test_the_state_of_other_settings_is_refused(
    tmp_path: Path, uninterrupted: dict[str, tuple[Any, Any, Path]]
) -> None:
    checkpoint = uninterrupted["RigL"][2]
    other = tt.transformers_callback(lambda m, o: tt.RigL(m, o, end_step=5, update_every=2))
    with pytest.raises(SpecError, match=r"The state of RigL must be of the same settings, .*'end_step': 5.* Got "):
        trainer(tmp_path, model_of(), other).train(resume_from_checkpoint=str(checkpoint))


def test_two_callbacks_of_one_name_are_refused(tmp_path: Path) -> None:
    pair = [tt.transformers_callback(METHODS["RigL"], name="same") for _ in range(2)]
    message = (
        "The 'name' parameter of transformers_callback must differ between the callbacks of a Trainer. "
        "Got 2 named 'same'."
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        trainer(tmp_path, model_of(), *pair).train()


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        (
            {"make": tt.RigL.__init__},
            "The 'make' parameter of transformers_callback must be a callable (model, optimizer) or (model, optimizer, "
            "total_steps). Got <function",
        ),
        ({"make": METHODS["RigL"], "name": None}, "The 'name' parameter of transformers_callback must be a str."),
    ],
)
def test_bad_parameters(kw: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        tt.transformers_callback(**kw)


def test_without_transformers_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "topogen_torch._callbacks._transformers", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"^topogen_torch\.transformers_callback needs transformers: pip install transformers accelerate\.$",
    ):
        tt.transformers_callback(METHODS["RigL"])
