"""A stack of sparse layers that pass packed activations on, beside the same layers one by one and beside dense.

    python tests/benchmarks/bench_stack.py --size 4096 --batch 64 256 --density 0.1 0.05 0.01 --repeats 7

``layers`` square layers with a rectifier between two of them, forward and backward with the input's gradient, from and
to torch's (batch, features) layout. The contestants take turns, each with one step outside the clock before the one
that counts; medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import numba
import torch
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt


def step(model: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> float:
    """Seconds of a forward and backward pass; gradients start as None."""
    model.zero_grad()
    x.grad = None
    start = time.perf_counter()
    model(x).backward(dy)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"{processor()}, {args.threads} threads, python {platform.python_version()}, torch {torch.__version__}, ",
        end="",
    )
    print(f"numba {numba.__version__}; {args.layers} layers of {args.size}, float32, {args.repeats} repeats")
    print("\n| batch | sparsity | dense, ms | layer by layer | packed between layers |\n|---|---:|---:|---:|---:|")
    for batch in args.batch:
        x = torch.randn(batch, args.size, requires_grad=True)
        dy = torch.randn(batch, args.size)
        for density in args.density:
            net = tg.generate(tg.ErdosRenyi(sizes=[args.size] * (args.layers + 1), density=density), rng=0)
            packed = tt.sparse_mlp(net)
            plain = nn.Sequential(*packed)
            dense = [nn.Linear(args.size, args.size) for _ in range(args.layers)]
            dense = nn.Sequential(*(module for one in dense for module in (one, nn.ReLU())))[:-1]
            models = {"dense": dense, "plain": plain, "packed": packed}
            times: dict[str, list[float]] = {name: [] for name in models}
            for turn in range(-1, args.repeats):
                for name, model in models.items():
                    step(model, x, dy)
                    seconds = step(model, x, dy)
                    if turn >= 0:
                        times[name].append(seconds)
            medians = {name: statistics.median(rows) for name, rows in times.items()}
            ratios = " | ".join(
                f"{medians['dense'] / medians[name]:.1f}x ({1e3 * medians[name]:.1f} ms)"
                for name in ("plain", "packed")
            )
            print(f"| {batch} | {100 * (1 - density):g} % | {1e3 * medians['dense']:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
