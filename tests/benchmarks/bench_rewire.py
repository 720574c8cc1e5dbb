"""What a rewire costs beside training, at an update every so many steps.

    python tests/benchmarks/bench_rewire.py --size 4096 --batch 128 --density 0.1 0.05 0.01 --repeats 9

A stack of square layers with a rectifier between two of them, trained with SGD and momentum. A *step* is a forward and
backward pass and the optimizer's step; ``SET`` and ``RigL`` are what their `step()` takes when it rewires, recording
included for RigL; ``dense`` is the product of all layers' dense weight gradients, x^T dy, which RigL cannot do without.
The share is (rewire - dense) / (every * step), with dense = 0 for SET; the goal is 2 %. Contestants take turns, each
with one turn outside the clock before those that count; medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numba
import torch
from machine import processor
from torch import Tensor

import topogen as tg
import topogen_torch as tt
from topogen_torch.controllers import Controller


class Contestant:
    """A model with its optimizer and, perhaps, a controller that rewires at every call."""

    def __init__(self, net: tg.Topology, make: Callable[..., Controller] | None) -> None:
        self.model = tt.sparse_mlp(net)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.controller = None if make is None else make(self.model, self.optimizer)

    def turn(self, x: Tensor) -> tuple[float, float]:
        """Return the seconds of a training step, and of the rewire after it."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()
        middle = time.perf_counter()
        if self.controller is not None:
            self.controller.step()
        return middle - begin, time.perf_counter() - middle


def product(x: Tensor, dy: Tensor, layers: int) -> float:
    """Return the seconds of the dense weight gradients."""
    begin = time.perf_counter()
    for _ in range(layers):
        torch.mm(x.t(), dy)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"{processor()}, {args.threads} threads, python {platform.python_version()}, torch {torch.__version__}, ",
        end="",
    )
    print(f"numba {numba.__version__}; {args.layers} layers of {args.size}, float32, {args.repeats} repeats, ", end="")
    print(f"an update every {args.every} steps")
    print("\n| batch | sparsity | step, ms | SET, ms | SET, share | dense, ms | RigL, ms | RigL - dense, share |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    makes = {
        "step": None,
        "SET": lambda model, optimizer: tt.SET(model, optimizer, rng=0, update_every=1),
        "RigL": lambda model, optimizer: tt.RigL(model, optimizer, end_step=10**9, update_every=1),
    }
    for batch in args.batch:
        x, dy = torch.randn(batch, args.size), torch.randn(batch, args.size)
        for density in args.density:
            net = tg.generate(tg.ErdosRenyi(sizes=[args.size] * (args.layers + 1), density=density), rng=0)
            contestants = {name: Contestant(net, make) for name, make in makes.items()}
            times: dict[str, list[float]] = {name: [] for name in (*makes, "dense")}
            for turn in range(-1, args.repeats):
                seconds = {name: one.turn(x) for name, one in contestants.items()}
                seconds["dense"] = (product(x, dy, args.layers), 0.0)
                if turn >= 0:
                    for name, (step, rewire) in seconds.items():
                        times[name].append(rewire if name in ("SET", "RigL") else step)
            ms = {name: 1e3 * statistics.median(own) for name, own in times.items()}
            whole = args.every * ms["step"]
            print(
                f"| {batch} | {100 * (1 - density):g} % | {ms['step']:.2f} | {ms['SET']:.1f} | "
                f"{100 * ms['SET'] / whole:.2f} % | {ms['dense']:.1f} | {ms['RigL']:.1f} | "
                f"{100 * (ms['RigL'] - ms['dense']) / whole:.2f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
