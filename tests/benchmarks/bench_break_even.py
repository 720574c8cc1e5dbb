"""From which density on the forward product of a SparseLinear is faster dense: what the built-in rule rests on.

    python tests/benchmarks/bench_break_even.py --size 256 1024 4096 --batch 32 64 256 1024

For each density the same values are multiplied by the sparse kernel and, 128 rows of the matrix at a time, densely; in
turns, on one thread, least processor time of the thread, so that other work on the machine hardly matters. The
break-even lies where a straight line between the two nearest ratios crosses 1. The last column compares the fused
sparse backward pass with that of nn.Linear at the highest density, where dense comes closest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_sparse_linear import versions
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen_torch import _break_even

LAP = 4e-3  # seconds at least


def least(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    repeats = []
    for call in calls:
        call()
        start = time.thread_time()
        call()
        repeats.append(max(1, int(LAP / max(time.thread_time() - start, 1e-6))))
    found = [float("inf")] * len(calls)
    for _ in range(rounds):
        for k, (call, number) in enumerate(zip(calls, repeats, strict=True)):
            start = time.thread_time()
            for _ in range(number):
                call()
            found[k] = min(found[k], (time.thread_time() - start) / number)
    return found


def always_dense(layer: tt.SparseLinear, x: torch.Tensor) -> torch.Tensor:
    index = (layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation)
    rule = _break_even.multiplies_densely
    _break_even.multiplies_densely = lambda *_: True
    try:
        return torch.ops.topogen.crowded_linear.default(x, layer.values.detach(), None, *index)
    finally:
        _break_even.multiplies_densely = rule


def sparsely(layer: tt.SparseLinear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), tt.never_dense():
        return layer(x)


def backward(layer: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    x = x.clone().requires_grad_()
    wanted = (x, *layer.parameters())
    y = layer(x)
    dy = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def crossing(densities: list[float], ratios: list[float]) -> str:
    """The density at which sparse time / dense time reaches 1."""
    for k in range(1, len(densities)):
        if ratios[k - 1] < 1 <= ratios[k]:
            share = (1 - ratios[k - 1]) / (ratios[k] - ratios[k - 1])
            return f"{densities[k - 1] + share * (densities[k] - densities[k - 1]):.2f}"
    return f"< {densities[0]:g}" if ratios[0] >= 1 else f"> {densities[-1]:g}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    facts = {"cpu": processor(), **versions()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    densities = ", ".join(map(str, args.density))
    print(f"the rule: {_break_even.BREAK_EVEN}\n")
    print(f"| dtype | size | batch | break-even | sparse / dense at {densities} | backward at {args.density[-1]} |")
    print("|---|---:|---:|---:|---:|---:|")
    rows: list[dict[str, Any]] = []
    for dtype in args.dtype:
        for size in args.size:
            layers = [layer_of(size, density, dtype) for density in args.density]
            dense = nn.Linear(size, size, bias=False, dtype=getattr(torch, dtype))
            for batch in args.batch:
                x = torch.randn(batch, size, dtype=getattr(torch, dtype))
                ratios = []
                for layer in layers:
                    sparse, crowded = least([partial(sparsely, layer, x), partial(always_dense, layer, x)], args.rounds)
                    ratios.append(sparse / crowded)
                own, other = least([backward(layers[-1], x), backward(dense, x)], args.rounds)
                row = {"dtype": dtype, "size": size, "batch": batch, "ratios": ratios, "backward": own / other}
                rows.append(row)
                print(
                    f"| {dtype} | {size} | {batch} | {crossing(args.density, ratios)} | "
                    f"{', '.join(f'{r:.2f}' for r in ratios)} | {own / other:.2f} |",
                    flush=True,
                )
    return facts | {"arguments": vars(args), "rows": rows}


def layer_of(size: int, density: float, dtype: str) -> tt.SparseLinear:
    net = tg.generate(tg.ErdosRenyi(sizes=[size, size], density=density), rng=0)
    return tt.SparseLinear(net[0], bias=False, dtype=getattr(torch, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64, 256, 1024])
    parser.add_argument("--density", type=float, nargs="+", default=[0.3, 0.45, 0.6, 0.8, 0.95])
    parser.add_argument("--dtype", choices=["float32", "float64"], nargs="+", default=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
