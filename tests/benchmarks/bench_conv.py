"""SparseConv2d beside nn.Conv2d: forward and backward of one layer, and how high a training step's memory rises.

    python tests/benchmarks/bench_conv.py --batch 1 32 128 --density 0.1 0.05 0.01 --repeats 5 --json conv.json
    python tests/benchmarks/bench_conv.py --batch 128 --density 0.1 --memory

Layers are those of LeNet-5 on 28 x 28 images and of ResNet-18 on CIFAR-10. The dense layer takes part twice, with
contiguous tensors and with ``channels_last`` ones (input, weight and gradient), and ratios are to the faster of the
two. `channels` has whole kernels at random pairs of channels, `weights` single weights at random.

Contestants take turns, each takes one step outside the clock before the one that counts, and the fastest is shown.
``--threads 1 --clock processor`` counts the time of the one thread at work, for a machine that does other things too.
Every figure covers the forward pass, the gradients of input, weights and bias, and the allocation of results. With
``--memory`` every contestant has a process of its own, and what counts is by how much its resident memory rises at
most, from after a step of a tiny layer to the end of two steps: layer, input, results, gradients, scratch memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from machine import processor
from torch import Tensor, nn

import topogen_torch as tt


class Shape(NamedTuple):
    """A convolution, and the side of the square image that it takes."""

    inputs: int
    outputs: int
    side: int
    kernel: int
    stride: int
    padding: int

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.inputs} to {self.outputs}, {self.kernel} x {self.kernel}{stride}, on {self.side} x {self.side}"


SHAPES = {
    "lenet-1": Shape(1, 6, 28, 5, 1, 2),
    "lenet-2": Shape(6, 16, 14, 5, 1, 0),
    "resnet-1": Shape(64, 64, 32, 3, 1, 1),
    "resnet-2-down": Shape(64, 128, 32, 3, 2, 1),
    "resnet-2": Shape(128, 128, 16, 3, 1, 1),
    "resnet-3-down": Shape(128, 256, 16, 3, 2, 1),
    "resnet-3-shortcut": Shape(128, 256, 16, 1, 2, 0),
    "resnet-3": Shape(256, 256, 8, 3, 1, 1),
    "resnet-4": Shape(512, 512, 4, 3, 1, 1),
}
KINDS = ("channels", "weights")
DENSE = ("contiguous", "channels_last")
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


def build(shape: Shape, name: str, density: float, seed: int) -> nn.Module:
    """Return a contestant; a name is one of `DENSE` or `KINDS`."""
    torch.manual_seed(seed)
    options = {"stride": shape.stride, "padding": shape.padding}
    if name in DENSE:
        conv = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, **options)
        return conv.to(memory_format=getattr(torch, f"{name}_format" if name == "contiguous" else name))
    rng = np.random.default_rng(seed)
    masks = [rng.random((shape.inputs, shape.outputs)) < density for _ in range(shape.kernel**2)]
    return tt.SparseConv2d(masks[0] if name == "channels" else masks, shape.kernel, **options)


def problem(shape: Shape, name: str, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the input and the gradient of the output, in the memory format of the contestant."""
    generator = torch.Generator().manual_seed(seed)
    side = (shape.side + 2 * shape.padding - shape.kernel) // shape.stride + 1
    x = torch.randn(batch, shape.inputs, shape.side, shape.side, generator=generator)
    dy = torch.randn(batch, shape.outputs, side, side, generator=generator)
    if name == "channels_last":
        x, dy = (part.contiguous(memory_format=torch.channels_last) for part in (x, dy))
    return x.requires_grad_(), dy


def step(
    module: nn.Module, x: Tensor, dy: Tensor, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Seconds of the forward pass and of both; gradients start as None, as after ``optimizer.zero_grad()``."""
    module.zero_grad()
    x.grad = None
    start = clock()
    y = module(x)
    middle = clock()
    y.backward(dy)
    return middle - start, clock() - start


def measure(shape: Shape, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Least seconds of all contestants, forward and forward + backward, and their ratios."""
    named = [(name, 1.0) for name in DENSE] + [(kind, d) for kind in KINDS for d in args.density]
    ready = {
        (name, density): (build(shape, name, density, args.seed), *problem(shape, name, batch, args.seed))
        for name, density in named
    }
    times: dict[tuple[str, float], list[tuple[float, float]]] = {key: [] for key in ready}
    for turn in range(-1, args.repeats):  # turn -1 is warm-up
        for key, contestant in ready.items():
            step(*contestant)
            seconds = step(*contestant, CLOCKS[args.clock])
            if turn >= 0:
                times[key].append(seconds)
    least = {key: [min(column) for column in zip(*rows, strict=True)] for key, rows in times.items()}
    best = [min(least[name, 1.0][part] for name in DENSE) for part in range(2)]
    return [
        {
            "shape": str(shape), "batch": batch, "name": name, "density": density,
            "ms_forward": forward * 1e3, "ms_both": both * 1e3,
            "ratio_forward": best[0] / forward, "ratio_both": best[1] / both,
        }
        for (name, density), (forward, both) in least.items()
    ]  # fmt: skip


def table(found: list[list[dict[str, Any]]], args: argparse.Namespace) -> list[str]:
    """One Markdown table of a batch."""
    sparsities = [f"{100 * (1 - d):g} % {kind}" for kind in KINDS for d in args.density]
    lines = [
        "",
        f"| batch {args.shown_batch} | dense, ms | " + " | ".join(sparsities) + " |",
        "|---|---:" + "|---:" * len(sparsities) + "|",
    ]
    for rows in found:
        at = {(row["name"], row["density"]): row for row in rows}
        dense = [at[name, 1.0] for name in DENSE]
        both, forward = (min(row[name] for row in dense) for name in ("ms_both", "ms_forward"))
        cells = [at[kind, d] for kind in KINDS for d in args.density]
        shown = [f"{row['ratio_both']:.2f}x ({row['ratio_forward']:.2f}x)" for row in cells]
        lines.append(f"| {rows[0]['shape']} | {both:.2f} ({forward:.2f}) | " + " | ".join(shown) + " |")
    return lines


def rise(shape: Shape, name: str, density: float, batch: int, args: argparse.Namespace) -> int:
    """Bytes by which the resident memory of a fresh process rises for two steps of this contestant."""
    command = [sys.executable, __file__, "--seed", str(args.seed), "--threads", str(args.threads), "--one"]
    job = json.dumps({"shape": shape, "name": name, "density": density, "batch": batch})
    return int(subprocess.run([*command, job], check=True, capture_output=True, text=True).stdout)


def one(job: dict[str, Any], seed: int) -> int:
    tiny = Shape(2, 3, 4, 3, 1, 1)
    step(build(tiny, job["name"], 0.5, seed), *problem(tiny, job["name"], 2, seed))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    shape = Shape(*job["shape"])
    module, (x, dy) = build(shape, job["name"], job["density"], seed), problem(shape, job["name"], job["batch"], seed)
    for _ in range(2):
        step(module, x, dy)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - resident


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__}
    facts = {"cpu": processor(), "threads": args.threads, **versions}
    facts = {"clock": args.clock, **facts}
    show(", ".join(f"{name} {value}" for name, value in facts.items()))
    shapes = [SHAPES[name] for name in args.layer]
    rows: list[dict[str, Any]] = []
    for batch in args.batch:
        if args.memory:
            show(f"\nMiB that two steps take, batch {batch}: contiguous, channels_last; then by kind and sparsity")
        else:
            show("\ntimes the speed of the faster dense layer, forward + backward (forward)")
        found = []
        for shape in shapes:
            if args.memory:
                named = [(name, 1.0) for name in DENSE] + [(kind, d) for kind in KINDS for d in args.density]
                bytes_of = {key: rise(shape, *key, batch, args) for key in named}
                rows += [{"shape": str(shape), "batch": batch, "name": n, "density": d, "bytes": b}
                         for (n, d), b in bytes_of.items()]  # fmt: skip
                show(f"| {shape} | " + " | ".join(f"{b / 2**20:.1f}" for b in bytes_of.values()) + " |")
            else:
                found.append(measure(shape, batch, args))
                rows += found[-1]
        if found:
            args.shown_batch = batch
            show("\n".join(table(found, args)))
    return facts | {"arguments": vars(args), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process of its own for one contestant's memory
    args = parser.parse_args()
    if args.clock == "processor" and args.threads > 1:
        parser.error("--clock processor sees one thread only: it needs --threads 1")
    if args.one:
        torch.set_num_threads(args.threads)
        print(one(json.loads(args.one), args.seed))
        return
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
