"""A sparse layer in bfloat16 beside the same layer in float32, and beside bfloat16 that is copied to float32 first.

    python tests/benchmarks/bench_bfloat16.py --size 1024 4096 --batch 32 64 256 --density 0.1 0.05 0.01

Square layers with random patterns, in torch's (batch, features) layout. The contestants take turns,
each after one call outside the clock; the least time of each, since other programs can only add to it.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial

import torch
from machine import processor

import topogen as tg
import topogen_torch as tt


def least(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Return the least seconds of each call, in turns, for about so long and at least 7 rounds."""
    found, end, rounds = [float("inf")] * len(calls), time.perf_counter() + seconds, 0
    for call in calls:
        call()
    while rounds < 7 or time.perf_counter() < end:
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            found[k] = min(found[k], time.perf_counter() - start)
        rounds += 1
    return found


class Copying(torch.nn.Module):
    """What a layer without kernels for bfloat16 does: float32 copies of everything, and the result rounded."""

    def __init__(self, layer: tt.SparseLinear) -> None:
        super().__init__()
        self.layer, self.long = layer, tt.SparseLinear(layer.pattern).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        copies = {"values": self.layer.values.float(), "bias": self.layer.bias.float()}
        return torch.func.functional_call(self.long, copies, (x.float(),)).to(x.dtype)


def forward(layer: torch.nn.Module, x: torch.Tensor) -> None:
    """Compute the product alone."""
    with torch.no_grad():
        layer(x)


def both(layer: torch.nn.Module, x: torch.Tensor) -> None:
    """Compute the product and all gradients."""
    torch.autograd.grad(layer(x).sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{processor()}, {args.threads} threads, python {platform.python_version()}, torch {torch.__version__}\n")
    head = "bfloat16, ms | float32 / bfloat16 | copies / bfloat16"
    print(f"| size | sparsity | batch | forward: {head} | forward + backward: {head} |\n{'|---:' * 9}|")
    for size in args.size:
        for density in args.density:
            long = tt.SparseLinear(tg.generate(tg.ErdosRenyi(sizes=[size, size], density=density), rng=0)[0])
            short = tt.SparseLinear(long.pattern, dtype=torch.bfloat16)
            short.load_state_dict(long.state_dict())
            copying = Copying(short)
            for batch in args.batch:
                x = torch.randn(batch, size).bfloat16().requires_grad_()
                wide = x.detach().float().requires_grad_()
                cells = [str(size), f"{100 * (1 - density):g} %", str(batch)]
                for run in (forward, both):
                    calls = [partial(run, short, x), partial(run, long, wide), partial(run, copying, x)]
                    own, full, copies = least(calls, args.seconds)
                    cells += [f"{1e3 * own:.2f}", f"{full / own:.2f}x", f"{copies / own:.2f}x"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
