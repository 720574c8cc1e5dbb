"""`topogen train` with methods and recipes, and `topogen prune`, as their users meet them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from command_line import rows, topogen, without_timing
from safetensors.torch import load_file, save_file
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import FormatError
from topogen_torch._training import _run
from topogen_torch._training._members import model_from_weights
from topogen_torch._training._settings import read_settings

SMALL = "Chain(RadixNet(systems=[[8, 8]]), Dense(sizes=[64, 10]))"
QUICK = ("--epochs", "2", "--batch-size", "200")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without_timing(monkeypatch)


def connections(folder: Path | str) -> int:
    state = load_file(Path(folder) / "weights.safetensors")
    return sum(tensor.numel() for name, tensor in state.items() if name.endswith("values"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a method and its twins."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_timing(patch)
        assert topogen("train", *QUICK, "--spec", SMALL, "--method", "set(update_every=3)", "--out", "run") == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ---- methods and recipes


def test_a_method_is_compared_with_the_same_topology_left_alone(trained: Path) -> None:
    kinds = [row["model"] for row in rows(trained)]
    assert kinds == ["sparse", "sparse", "dense", "dense", "static", "static"]
    layers = rows(trained, "layers.csv")
    assert [row["model"] for row in layers] == ["sparse"] * 6 + ["static"] * 6
    for row in layers:
        moved = row["model"] == "sparse" and row["name"] != "4"
        assert (float(row["explored"]) > float(row["density"])) == moved
        assert (float(row["survival"]) < 1) == moved
    assert connections(trained) == 1664
    assert read_settings(trained).method == {
        "name": "set", "update_every": 3, "drop_fraction": 0.3, "layers": "*", "groups": []
    }  # fmt: skip


def test_the_recipe_of_a_run_runs_it_again(run: Path) -> None:
    assert topogen("train", "--recipe", "run/recipe.yaml", "--out", "again") == 0
    assert rows("again") == rows(run)
    assert rows("again", "layers.csv") == rows(run, "layers.csv")
    assert (Path("again/weights.safetensors")).read_bytes() == (run / "weights.safetensors").read_bytes()
    assert (Path("again/recipe.yaml")).read_bytes() == (run / "recipe.yaml").read_bytes()


PYTHON = """
import topogen as tg, topogen_torch as tt

def method(model, optimizer, steps):
    return tt.GradualMagnitude(model, optimizer, density=0.2, begin_step=0, end_step=steps // 2, update_every=1)

recipe = dict(spec=tg.Dense(sizes=[64, 32, 10]), epochs=2, batch_size=200, twins=False, method=method)
"""


def test_a_recipe_in_python_is_stored_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(PYTHON)
    original = _run.train

    def interrupted(*arguments: object, **settings: object) -> object:
        def on_step(step: int, *_: object) -> None:
            if step == 6:
                raise KeyboardInterrupt

        return original(*arguments, **{**settings, "on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(_run, "train", interrupted)
        assert topogen("train", "--recipe", "mine.py", "--out", "run") != 0
    assert Path("run/recipe.py").read_text() == PYTHON
    assert json.loads(Path("run/settings.json").read_text())["method"] == {"function": "method"}
    Path("mine.py").unlink()
    assert topogen("train", "--resume", "run") == 0
    assert connections("run") == round(0.2 * 64 * 32) + 64
    assert not Path("run/recipe.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "run/recipe.yaml", "--lr", "1", "--logger", "wandb"],
         "'--logger', '--lr' must be in the recipe: beside --recipe go --out and --data-dir only."),
        (["--resume", "run", "--recipe", "run/recipe.yaml"], "The '--recipe' option does not go with --resume"),
        (["--resume", "run", "--method", "rigl"], "The '--method' option of a run cannot change when it is resumed"),
        (["--method", "set(drop_fraction=2)"], "The 'drop_fraction' parameter of SET must be a number in [0, 1)"),
        (["--method", "cubic"], "The settings of the method 'cubic' must have 'density'."),
        (["--method", "set", "--spec", "Dense(sizes=[3, 10])"], "must have 64 inputs and 10 outputs for digits."),
    ],
)  # fmt: skip
def test_bad_input_of_train(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert topogen("train", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_resuming_with_the_same_method_is_no_change(run: Path) -> None:
    assert topogen("train", "--resume", "run", "--method", "set(update_every=3)") == 0


# ---- prune


def test_a_run_is_pruned_and_retrained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert topogen("prune", "run", "--density", "0.1", "--epochs", "3", "--out", "pruned") == 0
    assert "no spec: the pattern of trained weights" in capsys.readouterr().out
    assert connections("pruned") == round(0.1 * 8832)
    assert [row["model"] for row in rows("pruned")] == ["sparse"] * 3
    assert (Path("pruned/start.safetensors")).read_bytes() == (run / "weights.safetensors").read_bytes()
    settings = read_settings(Path("pruned"))
    assert (settings.spec, settings.batch_size, settings.epochs, settings.twins) == (None, 200, 3, False)
    assert settings.method == {
        "name": "oneshot", "density": 0.1, "score": "magnitude", "scope": "global", "baseline": None, "layers": "*",
        "groups": [],
    }  # fmt: skip
    # what stays is what was largest in all layers together
    before, net = load_file(run / "weights.safetensors"), tg.load("pruned/topology.npz")
    values = torch.cat([before[f"{k}.values"] for k in (0, 2, 4)]).abs()
    threshold = values.sort(descending=True).values[round(0.1 * 8832) - 1]
    for k, pattern in zip((0, 2, 4), net, strict=True):
        model = model_from_weights(run / "weights.safetensors")
        weights = abs(model[k].to_scipy()).toarray()
        assert ((weights >= threshold.item()) == pattern.toarray()).all()


def test_pruning_can_be_gradual_again_and_resumed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("prune", "run", "--density", "0.05", "--method", "cubic", "--epochs", "2", "--optimizer", "adam")
    assert topogen(*command, "--out", "whole") == 0
    original = _run.train

    def interrupted(*arguments: object, **settings: object) -> object:
        def on_step(step: int, *_: object) -> None:
            if step == 10:  # in the second epoch
                raise KeyboardInterrupt

        return original(*arguments, **{**settings, "on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(_run, "train", interrupted)
        topogen(*command, "--out", "stopped")
    shutil.rmtree(run)  # the new run has all that it needs
    assert topogen("train", "--resume", "stopped") == 0
    assert rows("stopped") == rows("whole")
    assert connections("stopped") == connections("whole") == round(0.05 * 8832)


def test_weights_of_plain_torch_are_pruned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10, bias=False))
    save_file(
        {name.replace("0.", "fc1.").replace("2.", "fc10."): t for name, t in plain.state_dict().items()},
        "w.safetensors",
    )
    model = model_from_weights(Path("w.safetensors"))
    x = torch.randn(5, 64)
    torch.testing.assert_close(model(x), plain(x))
    assert [type(module) for module in model] == [tt.SparseLinear, nn.ReLU, tt.SparseLinear]
    assert topogen("prune", "w.safetensors", "--data", "digits", "--density", "0.3", *QUICK, "--out", "pruned") == 0
    assert connections("pruned") == round(0.3 * (64 * 32 + 320))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--density", "0.1"], "No such file or directory: 'nothing'"),
        (["run"], "The settings of the method 'oneshot' must have 'density'."),
        (["run", "--density", "1.5"], "The 'density' parameter of OneShot must be a finite number in (0, 1]. Got 1.5."),
        (["run", "--method", "rigl"], "The '--method' parameter of topogen prune must be one that prunes. Got 'rigl'."),
        (["run", "--density", "0.1", "--data", "mnist"], "topogen prune must be the run's, 'digits'."),
        (["run", "--density", "0.1", "--out", "run"], "'--out' parameter of topogen prune must be a new or"),
        (["run/weights.safetensors", "--density", "0.1"], "topogen prune must be given where run/w"),
        (["foreign.safetensors", "--density", "0.1"], "foreign.safetensors holds no layers that can be read: "),
        (["unmatched.safetensors", "--density", "0.1"], "layers that follow each other. 3 outputs meet 4 inputs"),
        (["empty.safetensors", "--density", "0.1"], "must hold the weights of at least one layer. Got none."),
        (["small.safetensors", "--density", "0.1", "--data", "digits"], "must have 64 inputs and 10 outputs for digi"),
    ],
)  # fmt: skip
def test_bad_input_of_prune(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    save_file({"conv.weight": torch.zeros(3, 3, 3)}, "foreign.safetensors")
    save_file({"0.weight": torch.zeros(3, 64), "1.weight": torch.zeros(10, 4)}, "unmatched.safetensors")
    save_file({"0.weight": torch.zeros(10, 3)}, "small.safetensors")
    save_file({}, "empty.safetensors")
    assert topogen("prune", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_start_that_was_changed_is_refused(run: Path) -> None:
    with pytest.raises(FormatError, match=r"must be the weights that the run began with: its SHA-256 must be 00000000"):
        model_from_weights(run / "weights.safetensors", "0" * 64)


# ---- several processes


def test_where_another_program_starts_the_processes_the_folder_has_to_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert topogen("train", "--devices", "2") == 2
    message = "The '--out' parameter of topogen train must be given where another program starts the processes"
    assert message in capsys.readouterr().err


def test_processes_that_nobody_starts_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert topogen("train", "--nodes", "2", "--devices", "4", "--out", "run") == 2
    assert capsys.readouterr().err.endswith(
        "The '--nodes' parameter of topogen train must be 1 where no launcher has started the processes. Got 2. "
        "torchrun --nnodes 2 --nproc-per-node 4 --no-python topogen train ... starts them, on each machine; for more "
        "processes on this one there is --devices.\n"
    )
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert topogen("train", "--out", "run") == 2
    assert capsys.readouterr().err.endswith(
        "The '--devices' and '--nodes' parameters of topogen train must make the 2 processes that the launcher has "
        "started. Got 1 times 1.\n"
    )
    assert not Path("run").exists()


def test_sixteen_bits_on_a_cpu_are_those_of_bfloat16_and_said_to_be(capfd: pytest.CaptureFixture[str]) -> None:
    found = {}
    for precision in ("32-true", "16-mixed"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            arguments = ("--no-twins", "--spec", SMALL, "--precision", precision, "--out", precision)
            assert topogen("train", *QUICK, *arguments) == 0
        found[precision] = [float(row["test_loss"]) for row in rows(precision)]
        said = [str(one.message) for one in caught if "not supported on CPU" in str(one.message)]
        assert len(said) == (precision == "16-mixed")
        assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(f"{precision}/weights.safetensors").values())
    assert found["16-mixed"] == pytest.approx(found["32-true"], rel=0.02)
    assert found["16-mixed"] != found["32-true"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]])
def test_two_processes_carry_out_a_run(run: Path, launcher: list[str]) -> None:
    recipe = (run / "recipe.yaml").read_text()
    Path("two.yaml").write_text(recipe.replace("devices: 1", "devices: 2").replace("twins: true", "twins: false"))
    command = [sys.executable, "-c", "from topogen._cli import main; main()"]
    if launcher:
        command = [sys.executable, *launcher, "--no-python", *command]
    arguments = ["train", "--recipe", "two.yaml", "--out", "two"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy after the last epoch") == 1
    assert done.stderr.count("epoch 2/2") == 1
    assert connections("two") == 1664
    one = [float(row["test_loss"]) for row in rows(run) if row["model"] == "sparse"]
    assert [float(row["test_loss"]) for row in rows("two")] == pytest.approx(one, rel=0.05)


@pytest.mark.slow
def test_two_machines_carry_out_a_run(run: Path) -> None:
    recipe = (run / "recipe.yaml").read_text()
    Path("two.yaml").write_text(recipe.replace("nodes: 1", "nodes: 2").replace("twins: true", "twins: false"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = [sys.executable, "-c", "from topogen._cli import main; main()", "train", "--recipe", "two.yaml"]
    ours += ["--out", "two"]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    machines = [
        subprocess.Popen(
            [sys.executable, *launcher, "--master-port", port, "--node-rank", str(rank), "--no-python", *ours],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        texts = [machine.communicate(timeout=400) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert [out.count("test accuracy after the last epoch") for out, _ in texts] == [1, 0]
    assert [err.count("epoch 2/2") for _, err in texts] == [1, 0]
    assert connections("two") == 1664
    one = [float(row["test_loss"]) for row in rows(run) if row["model"] == "sparse"]
    assert [float(row["test_loss"]) for row in rows("two")] == pytest.approx(one, rel=0.05)
