"""Whole models in training, dense against 90 and 95 % sparse: time an epoch, peak memory, size of the state.

    TOPOGEN_DATA=... python tests/benchmarks/bench_models.py --model lenet mlp cnn --steps 100 --json models.json

lenet is LeNet-300-100 and mlp four layers 2048 wide, both on MNIST; cnn is three 3 x 3 convolutions of 64, 128 and 128
channels and two linear layers, on CIFAR-10; others are in bench_transformer_gru.py. SGD with momentum, batch 100. The
sparse models are `sparsify` of the dense one with the same density in every layer but the last, which stays dense;
cnn keeps whole kernels. The contestants take the same steps on the same batches, in turns of ten; a step is median
over the turns, and an epoch is that times the batches of the training set. Memory is that of a process of its own, as
Linux counts it, beyond what it held before the model was built. Where sparse is slower the ratio is below 1.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_sparse_linear import versions
from machine import processor
from torch import nn

import topogen_torch as tt

DATA = {"lenet": "mnist", "mlp": "mnist", "cnn": "cifar10"}
TURN = 10  # steps


def stack(*sizes: int) -> list[nn.Module]:
    layers = [(nn.Linear(n_in, n_out), nn.ReLU()) for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)]
    return [part for pair in layers for part in pair][:-1]


def lenet() -> nn.Sequential:
    return nn.Sequential(*stack(784, 300, 100, 10))


def mlp() -> nn.Sequential:
    return nn.Sequential(*stack(784, 2048, 2048, 2048, 2048, 10))


def cnn() -> nn.Sequential:
    parts: list[nn.Module] = [nn.Unflatten(1, (3, 32, 32))]
    for n_in, n_out in ((3, 64), (64, 128), (128, 128)):
        parts += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), *stack(128 * 16, 512, 10))


MODELS: dict[str, Callable[[], nn.Sequential]] = {"lenet": lenet, "mlp": mlp, "cnn": cnn}


def contestant(name: str, density: float, seed: int) -> nn.Module:
    """Return the dense model, or what `sparsify` makes of the same weights; the last layer stays dense."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    if density == 1:
        return model
    last = str(len(model) - 1)
    return tt.sparsify(model, density=density, distribution="uniform", exclude=last, whole_kernels=name == "cnn")


class Trainer:
    """A model, its optimizer, and the place in the data that it has reached."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> None:
        self.model, self.x, self.y, self.batch, self.done = model, x, y, batch, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def turn(self, steps: int) -> float:
        """Take so many steps; return the seconds of one."""
        start = time.perf_counter()
        for _ in range(steps):
            first = self.done * self.batch % (len(self.x) - self.batch)
            part = slice(first, first + self.batch)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x[part]), self.y[part]).backward()
            self.optimizer.step()
            self.done += 1
        return (time.perf_counter() - start) / steps


def data(name: str, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    found = tt.data.load_data(DATA[name])
    return torch.from_numpy(found.train_x[:count]), torch.from_numpy(found.train_y[:count])


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def child(args: argparse.Namespace) -> None:
    """Print the bytes by which resident memory rises while one model trains."""
    torch.set_num_threads(args.threads)
    x, y = data(args.model[0], 3 * args.batch)
    x, y = x.clone(), y.clone()
    Trainer(contestant(args.model[0], args.child, args.seed), x, y, 8).turn(2)  # loads or compiles the kernels
    model = contestant(args.model[0], args.child, args.seed)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS") - weights  # the model itself counts, what building it took does not
    Trainer(model, x, y, args.batch).turn(3)
    print(status("VmHWM") - before)


def peak(args: argparse.Namespace, name: str, density: float) -> int:
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(density), "--model", name]
    for option in ("batch", "threads", "seed"):
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    x, y = data(name)
    densities = [1.0, *args.density]
    trainers = {d: Trainer(contestant(name, d, args.seed), x, y, args.batch) for d in densities}
    times: dict[float, list[float]] = {d: [] for d in densities}
    for turn in range(-1, -(-args.steps // TURN)):  # turn -1 is warm-up
        for d, trainer in trainers.items():
            seconds = trainer.turn(TURN)
            if turn >= 0:
                times[d].append(seconds)
    rows = []
    for d in densities:
        state = sum(tensor.nbytes for tensor in trainers[d].model.state_dict().values())
        step = statistics.median(times[d])
        row: dict[str, Any] = {
            "model": name,
            "density": d,
            "step": step,
            "epoch": step * (len(x) // args.batch),
            "state": state,
        }
        rows.append(row | {"peak": peak(args, name, d)})
    return rows


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    facts = {"cpu": processor(), "threads": args.threads, **versions()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"float32, batch {args.batch}, SGD with momentum; an epoch from {args.steps} of its steps")
    print("\n| | sparsity | a step | an epoch | peak memory | state |")
    print("|---|---:|---:|---:|---:|---:|")
    rows: list[dict[str, Any]] = []
    for name in args.model:
        found = measure(args, name)
        rows += found
        dense = found[0]
        for row in found:
            ratios = {
                what: f" ({dense[what] / row[what]:.2f}x)" if row is not dense else ""
                for what in ("step", "peak", "state")
            }
            sparsity = "dense" if row is dense else f"{100 * (1 - row['density']):g} %"
            print(
                f"| {name} | {sparsity} | {row['step'] * 1e3:.2f} ms{ratios['step']} | {row['epoch']:.1f} s | "
                f"{row['peak'] / 1e6:.1f} MB{ratios['peak']} | {row['state'] / 1e6:.2f} MB{ratios['state']} |",
                flush=True,
            )
    return facts | {"arguments": vars(args), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=float, help="measure the memory of one density (used by the script)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if args.child is not None:
        child(args)
        return
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
