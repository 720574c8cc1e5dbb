"""`topogen train` as its users meet it: the folder it writes, stopping and resuming, bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import rows, topogen, without_timing
from safetensors.torch import load_file
from torch import nn

import topogen as tg
from topogen.errors import FormatError, SpecError
from topogen_torch._layers import SparseLinear
from topogen_torch._training import _run
from topogen_torch._training._members import Member, members, model_of, topology_of
from topogen_torch._training._run import execute
from topogen_torch._training._settings import DEFAULTS, Settings, read_settings
from topogen_torch._training._show import Show, accuracy_text
from topogen_torch._training._train import evaluate
from topogen_torch.data import load_data

SMALL = "Chain(RadixNet(systems=[[8, 8]]), Dense(sizes=[64, 10]))"
QUICK = ("train", "--epochs", "2", "--batch-size", "200", "--spec", SMALL, "--out", "run")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPOGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOPOGEN_MIRROR", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("TOPOGEN_DATA", raising=False)
    without_timing(monkeypatch)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---- a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two epochs and two repeats, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_timing(patch)
        captured = _Captured()
        with captured:
            assert topogen(*QUICK, "--repeats", "2", "--seed", "7") == 0
    return folder / "run", captured.text


class _Captured:
    """What is printed inside the block; capsys belongs to one test, and this run is shared."""

    def __enter__(self) -> None:
        import io

        self._buffer, self._stdout = io.StringIO(), sys.stdout
        sys.stdout = self._buffer

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._stdout
        self.text = self._buffer.getvalue()


def test_the_folder_holds_everything(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    checkpoints = [f"checkpoints/{kind}-seed{seed}.pt" for seed in (7, 8) for kind in ("sparse", "dense", "random")]
    files = [
        "layers.csv", "learning_curve.png", "metrics.csv", "recipe.yaml", "report.json", "report.txt", "settings.json",
        "spec.json",
        "topology.npz", "topology.png", "weights.safetensors", *checkpoints,
    ]  # fmt: skip
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(files)
    for picture in ("learning_curve.png", "topology.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    spec = tg.spec_from_text(SMALL)
    assert tg.spec_from_json((folder / "spec.json").read_text()) == spec
    assert tg.load(folder / "topology.npz") == tg.generate(spec)
    report = json.loads((folder / "report.json").read_text())
    assert [row["connections"] for row in report["rows"]] == [512, 512, 640]
    assert "SparseLinear" in (folder / "report.txt").read_text()


def test_it_prints_certificate_layers_and_results(finished: tuple[Path, str]) -> None:
    folder, text = finished
    assert str(tg.verify(tg.load(folder / "topology.npz"))) in text
    assert "8 of 8 claims held" in text
    assert (folder / "report.txt").read_text().strip() in text
    epochs = rows(folder)
    for kind, name, connections in (
        ("sparse", "sparse", 1664),
        ("dense", "dense twin", 8832),
        ("random", "random twin", 1664),
    ):
        last = [float(row["test_accuracy"]) for row in epochs if (row["model"], row["epoch"]) == (kind, "2")]
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{connections:,}" in line
        assert f"{100 * connections / 8832:.4g} %" in line
        assert f"{50 * sum(last):.2f} % ± " in line
        assert f"({100 * min(last):.2f}..{100 * max(last):.2f})" in line
    assert text.endswith("wrote run/\n")


def test_metrics_have_one_row_an_epoch(finished: tuple[Path, str]) -> None:
    epochs = rows(finished[0])
    expected = [(k, str(s), str(e)) for s in (7, 8) for k in ("sparse", "dense", "random") for e in (1, 2)]
    assert [(row["model"], row["seed"], row["epoch"]) for row in epochs] == expected
    assert all(0 <= float(row["test_accuracy"]) <= 1 < float(row["train_loss"]) for row in epochs)


def test_the_weights_give_the_accuracy_that_is_reported(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    settings = read_settings(folder)
    model = model_of(settings, Member("sparse", 8), load_data())  # of another seed: the file must bring everything
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    digits = load_data()
    loss, accuracy = evaluate(model, torch.from_numpy(digits.test_x), torch.from_numpy(digits.test_y))
    row = rows(folder)[1]
    assert loss == pytest.approx(float(row["test_loss"]), rel=1e-5)
    assert accuracy == float(row["test_accuracy"])


def test_settings_come_back(finished: tuple[Path, str]) -> None:
    settings = read_settings(finished[0])
    spec = tg.spec_from_text(SMALL)
    defaults = {name: value for name, value in DEFAULTS["digits"].items() if name in ("lr", "weight_decay", "threads")}
    assert settings == Settings(data="digits", spec=spec, epochs=2, batch_size=200, seed=7, repeats=2, **defaults)


# ---- the models that are compared


def settings(spec: str = SMALL, **changes: Any) -> Settings:
    values = {"data": "digits", "epochs": 1, "batch_size": 100, "lr": 0.1, "threads": 1} | changes
    return Settings(spec=tg.spec_from_text(spec), **values)


def test_the_random_twin_has_as_many_connections_in_each_layer() -> None:
    spec = "Chain(RandomBiregular(sizes=[64, 96, 48], fan_in=[6, 10]), Dense(sizes=[48, 10]))"
    for seed in range(3):
        own, twin = (topology_of(settings(spec), Member(kind, seed)) for kind in ("sparse", "random"))
        assert [layer.nnz for layer in twin] == [layer.nnz for layer in own] == [576, 480, 480]
        assert twin.sizes == own.sizes
        assert twin[0].toarray().tolist() != own[0].toarray().tolist()
    assert own == tg.generate(tg.spec_from_text(spec), rng=2)


def test_initial_weights_are_drawn_for_the_fan_in_and_by_the_seed_alone() -> None:
    wide = settings("Dense(sizes=[64, 400, 10])")
    state = torch.get_rng_state()
    sparse, dense = (model_of(wide, Member(kind, 3), load_data()) for kind in ("sparse", "dense"))
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m) for m in dense] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [type(m) for m in sparse] == [SparseLinear, nn.ReLU, SparseLinear]
    for weights in (sparse[0].values, dense[0].weight):
        assert weights.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    for layer in (sparse[0], dense[0], sparse[2], dense[2]):
        assert not layer.bias.any()
    again, other = (model_of(wide, Member("dense", seed), load_data()) for seed in (3, 4))
    assert torch.equal(again[0].weight, dense[0].weight)
    assert not torch.equal(other[0].weight, dense[0].weight)


def test_members_of_a_run() -> None:
    kinds = ["sparse", "dense", "random"]
    assert list(members(settings(seed=4, repeats=2))) == [(kind, seed) for seed in (4, 5) for kind in kinds]
    assert list(members(settings(twins=False))) == [("sparse", 0)]
    assert str(Member("sparse", 0)) == "sparse, seed 0"


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_holds_its_claims_and_has_no_dead_neuron(name: str) -> None:
    features = {"digits": 64, "mnist": 784, "cifar10": 3072}[name]
    spec = tg.spec_from_text(DEFAULTS[name]["spec"])
    assert (spec.sizes[0], spec.sizes[-1]) == (features, 10)
    report = tg.verify(tg.generate(spec))
    assert report.holds
    assert report["path-connected"].holds
    assert set(report["dead neurons"].measured) == {0}
    sparse = tg.generate(spec).layers[:-1]
    assert tg.measures.density(sparse) <= 0.1


def test_accuracies_in_words() -> None:
    assert accuracy_text([0.97512]) == "97.51 %"
    assert accuracy_text([0.97, 0.98, 0.99]) == "98.00 % ± 1.00 (97.00..99.00)"


# ---- stopping and resuming


def test_ctrl_c_prints_the_command_that_resumes_exactly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert topogen(*QUICK) == 0
    whole, weights = rows(Path("run")), Path("run/weights.safetensors").read_bytes()
    arguments = [*QUICK[:-1], "a run"]
    original = _run.train

    def interrupted(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def on_step(step: int, *_: object) -> None:
            if step == 11:  # in the second epoch of the first model
                os.kill(os.getpid(), signal.SIGINT)

        return original(model, *args, **kwargs | {"on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(_run, "train", interrupted)
        assert topogen(*arguments) == 130
    assert "stopped; to go on: topogen train --resume 'a run'" in capfd.readouterr().err
    assert len(rows(Path("a run"))) == 1
    assert not Path("a run/weights.safetensors").exists()
    Path("a run/.topogen-0123.tmp").touch()
    assert topogen("train", "--resume", "a run", "--epochs", "2") == 0
    assert rows(Path("a run")) == whole
    assert Path("a run/weights.safetensors").read_bytes() == weights
    assert not Path("a run/.topogen-0123.tmp").exists()
    assert topogen("train", "--resume", "a run") == 0  # a finished run shows its results again
    assert rows(Path("a run")) == whole


@pytest.mark.slow
def test_a_killed_command_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from topogen._cli import main; main()"]
    options = ["train", "--epochs", "100", "--no-twins", "--spec", SMALL]
    process = subprocess.Popen([*command, *options, "--out", "killed"], stdout=subprocess.DEVNULL)
    while process.poll() is None and (not Path("killed/metrics.csv").exists() or len(rows(Path("killed"))) < 5):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "train", "--resume", "killed"], check=True, capture_output=True)
    subprocess.run([*command, *options, "--out", "whole"], check=True, capture_output=True)
    assert rows(Path("killed")) == rows(Path("whole"))
    assert Path("killed/weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()


# ---- bad input: one sentence, exit code 2, nothing written

BAD = {  # what is typed, and the sentence; "*" stands for "parameter of topogen train must be"
    "data": (["--data", "minst"], "'--data' * 'digits', 'mnist' or 'cifar10'. Got 'minst'. Did you mean 'mnist'?"),
    "data_dir": (["--data-dir", "no"], "'--data-dir' * a folder that exists. Got 'no'."),
    "missing": (["--data", "mnist", "--data-dir", "."], "data set 'mnist' is not in mnist and cannot be downloaded"),
    "epochs": (["--epochs", "-1"], "The '--epochs' * an int >= 1. Got -1."),
    "epochs word": (["--epochs", "few"], "'--epochs'"),
    "batch": (["--batch-size", "1443"], "The '--batch-size' * an int in [1, 1442]. Got 1443."),
    "batch 0": (["--batch-size", "0"], "The '--batch-size' * an int >= 1. Got 0."),
    "lr": (["--lr", "nan"], "The '--lr' * a finite number in (0, inf). Got nan."),
    "momentum": (["--momentum", "2"], "The '--momentum' * a finite number in [0, 1]. Got 2.0."),
    "decay": (["--weight-decay", "-1"], "The '--weight-decay' * a finite number in [0, inf). Got -1.0."),
    "seed": (["--seed", "-1"], "The '--seed' * an int >= 0. Got -1."),
    "repeats": (["--repeats", "0"], "The '--repeats' * an int >= 1. Got 0."),
    "threads": (["--threads", "0"], "The '--threads' * an int >= 1. Got 0."),
    "inputs": (
        ["--spec", "Dense(sizes=[63, 10])"],
        "must have 64 inputs and 10 outputs for digits. Got sizes (63, 10).",
    ),
    "outputs": (
        ["--spec", "Dense(sizes=[64, 9])"],
        "must have 64 inputs and 10 outputs for digits. Got sizes (64, 9).",
    ),
    "spec": (["--spec", "Dens(sizes=[64, 10])"], "nearest is Dense"),
    "spec file": (["--spec", "no.json"], "No such file or directory: 'no.json'"),
    "device": (["--device", "quantum"], "* what Fabric finds on this machine. Got 'quantum' and '32-true': "),
    "precision": (["--precision", "17"], "* what Fabric finds on this machine. Got 'cpu' and '17': "),
    "out": (["--out", "full"], "'--out' * a new or an empty folder. Got 'full'. To go on with a run, use --resume."),
    "out file": (["--out", "full/file"], "'--out' * a new or an empty folder. Got 'full/file'."),
    "no run": (["--resume", "full"], "'--resume' * the folder of a run, which holds a settings.json. Got 'full'."),
    "resume nothing": (["--resume", "no"], "which holds a settings.json. Got 'no'."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    arguments, message = BAD[case]
    assert topogen("train", *arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("Downloading")]
    assert len(lines) == 1
    assert lines[0].startswith("topogen: ")
    assert message.replace("*", "parameter of topogen train must be") in lines[0].replace("parameters", "parameter")
    assert captured.out == ""
    assert not Path("runs").exists()
    assert [path.name for path in Path("full").iterdir()] == ["file"]


def test_the_last_of_the_bad_input_is_found_before_anything_is_written() -> None:
    with pytest.raises(SpecError, match="must have 64 inputs"):
        execute(settings("Dense(sizes=[2, 10])"), Path("run"), load_data(), Show())
    assert not Path("run").exists()


def test_a_resumed_run_keeps_its_settings(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(finished[0])
    for arguments, message in (
        (["--lr", "0.2"], "The '--lr' option of a run cannot change when it is resumed: it is 0.05. Got 0.2."),
        (["--no-twins"], "The '--twins' option of a run cannot change when it is resumed: it is True. Got False."),
        (
            ["--spec", "Dense(sizes=[64, 10])"],
            "The '--spec' option of a run cannot change when it is resumed: it is Chain(",
        ),
        (["--out", "x"], "The '--out' option does not go with --resume: a run stays in its folder."),
    ):
        assert topogen("train", "--resume", folder, *arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "settings.json is damaged or foreign: Expecting property name"),
        ("[]", "settings.json is damaged or foreign: it must be a JSON object of the format 'topogen run 2'"),
        ('{"format": "topogen run 2"}', "settings.json is damaged or foreign: 'spec'"),
        ('{"format": "topogen run 2", "spec": {"family": "Dense", "sizes": [2, 2]}}', "missing 5 required keyword"),
        ('{"format": "topogen run 2", "spec": {"family": "Dense", "sizes": [2, 2]}, "data": "digits", "epochs": 0, '
         '"batch_size": 1, "lr": 1, "threads": 1}', "'--epochs' parameter of topogen train must be an int >= 1. Got 0"),
    ],
)  # fmt: skip
def test_damaged_settings_are_refused(text: str, message: str) -> None:
    Path("run").mkdir()
    Path("run/settings.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_settings(Path("run"))


def test_without_torch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert topogen("train") == 2
    assert capsys.readouterr().err == "topogen: topogen train needs torch: pip install 'topogen-nn[torch]'.\n"


def test_the_command_s_module_imports_no_torch() -> None:
    heavy = ("torch", "sklearn", "pooch", "rich.progress")
    code = f"import sys, topogen_torch.commands; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
