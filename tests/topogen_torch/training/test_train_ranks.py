"""Several processes train one model while a method changes its connections."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import DATA, STEPS, plain_network
from test_train_method import SETTINGS

from topogen_torch._training._train import train

# A job is one run of two processes: method, folder, and at which change of a layer rank 1 is to be killed, 0 for never.
# Their parent imports torch, which takes long, and computes nothing.
RANKS = """
    import sys
    from pathlib import Path
    import torch
    from lightning_fabric import Fabric
    torch.set_num_threads(1)
    sys.path.insert(0, {here!r})
    from small_run import DATA, plain_network
    from test_train_method import SETTINGS, plant
    from topogen_torch._training._train import train

    def main(fabric, name, folder, killed_at):
        model = plain_network()
        if killed_at and fabric.global_rank == 1:
            plant("inside a rewire", killed_at)
        settings = SETTINGS[name] | {{"accumulate": 2 if name == "rigl" else 1}}
        history = train(model, DATA, fabric=fabric, checkpoint=folder / f"{{name}}.ckpt", **settings)
        rows = [row.to_dict() for row in history]
        torch.save([model.state_dict(), rows], folder / f"{{name}}-{{fabric.global_rank}}.pt")

    for name, folder, killed_at in {jobs!r}:
        try:
            fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
            fabric.launch(main, name, Path({out!r}) / folder, killed_at)
            print("done")
        except Exception as error:
            print(repr(error))
"""


def run_ranks(out: Path, jobs: list[tuple[str, str, int]]) -> list[str]:
    """Carry out the jobs, and return what became of each."""
    for _, folder, _ in jobs:
        (out / folder).mkdir(exist_ok=True)
    script = textwrap.dedent(RANKS).format(here=str(Path(__file__).parent), out=str(out), jobs=jobs)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def one_process(name: str) -> tuple[dict[str, Any], list[Any]]:
    model = plain_network()
    history = train(model, DATA, **SETTINGS[name])
    return model.state_dict(), history


@pytest.mark.slow
def test_two_processes_train_one_topology(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, [(name, "", 0) for name in SETTINGS]) == ["done"] * len(SETTINGS)
    for name in SETTINGS:
        (first, rows), (second, other_rows) = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert {key: tensor.tolist() for key, tensor in first.items()} == {k: t.tolist() for k, t in second.items()}
        alone, history = one_process(name)
        assert [row["layers"] for row in rows] == [row["layers"] for row in other_rows]
        assert [first[key].shape for key in alone] == [tensor.shape for tensor in alone.values()]
        if name in ("gradual", "one_shot"):  # rounding apart, the same weights are the smallest
            for key, tensor in alone.items():
                torch.testing.assert_close(first[key], tensor, rtol=1e-3, atol=1e-4)
        assert rows[-1]["train_loss"] == pytest.approx(history[-1].train_loss, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "killed_at"), [("set", 4 * 2 + 2), ("gradual", 4 * 3 + 2)])
def test_a_worker_that_is_killed_during_a_rewire_leaves_a_checkpoint_that_resumes(
    tmp_path: Path, name: str, killed_at: int
) -> None:
    after = tmp_path / "stopped" / f"{name}.ckpt"
    whole, stopped = run_ranks(tmp_path, [(name, "whole", 0), (name, "stopped", killed_at)])
    assert whole == "done"
    assert "SIGKILL" in stopped
    assert torch.load(after, weights_only=True)["state"]["progress"]["step"] == STEPS
    assert run_ranks(tmp_path, [(name, "stopped", 0)]) == ["done"]
    (expected, _), (found, _) = (torch.load(tmp_path / folder / f"{name}-0.pt") for folder in ("whole", "stopped"))
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
