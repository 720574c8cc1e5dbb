"""Resident memory of training steps with Adam, each contestant in a process of its own.

    python tests/benchmarks/bench_memory.py --size 4096 --layers 3 --batch 256 --density 0.1 0.01 --json memory.json

A chain of square layers takes a few steps. Each process counts, beyond what it held after importing everything and
taking a step with a tiny model: what stays resident after the steps (weights, indices, gradients, moments, and what
allocators and kernels keep), and the highest point on the way (activations and temporary arrays too), both as Linux
counts them. Ratios are dense / contestant. SparseLab takes part if it can be imported.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from bench_sparse_linear import CsrLinear, MaskedLinear, sparselab_linear, versions
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt

NAMES = ("dense", "masked", "topogen", "torch.sparse", "sparselab")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def settle() -> int:
    """Give back what is free, forget the peak so far, and return what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def layer_of(name: str, size: int, density: float, seed: int) -> nn.Module | None:
    if name == "dense":
        return nn.Linear(size, size, bias=False)
    layer = tt.SparseLinear(tg.generate(tg.ErdosRenyi(sizes=[size, size], density=density), rng=seed)[0], bias=False)
    if name == "topogen":
        return layer
    if name == "masked":
        return MaskedLinear(layer, bias=False)
    return CsrLinear(layer) if name == "torch.sparse" else sparselab_linear(layer)


def model_of(name: str, size: int, layers: int, density: float, seed: int) -> nn.Module | None:
    made = [layer_of(name, size, density, seed + k) for k in range(layers)]
    if any(layer is None for layer in made):
        return None
    parts: list[nn.Module] = []
    for layer in made:
        assert layer is not None
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def train(model: nn.Module, size: int, batch: int, steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, target = torch.randn(batch, size), torch.randn(batch, size)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    return optimizer


def child(args: argparse.Namespace) -> None:
    """Print what one contestant takes, as JSON; null where it cannot take part."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    density = args.density[0]
    tiny = model_of(args.child, 64, 2, 0.1, args.seed)
    if tiny is None:
        print("null")
        return
    try:
        train(tiny, 64, 8, 2)
    except (RuntimeError, NotImplementedError) as error:
        print(json.dumps({"failed": str(error).splitlines()[0]}))
        return
    before = settle()
    model = model_of(args.child, args.size, args.layers, density, args.seed)
    assert model is not None
    settle()  # what building needed is not training
    optimizer = train(model, args.size, args.batch, args.steps)
    found = {"peak": status("VmHWM") - before}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found["after"] = status("VmRSS") - before
    del optimizer  # alive until here
    print(json.dumps(found))


def ask(args: argparse.Namespace, name: str, density: float) -> dict[str, Any] | None:
    command = [sys.executable, "-W", "ignore", __file__, "--child", name, "--density", str(density)]
    for option in ("size", "layers", "batch", "steps", "threads", "seed"):
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def shown(found: dict[str, Any] | None, dense: dict[str, Any], what: str) -> str:
    if found is None:
        return "not measured"
    if "failed" in found:
        return f"fails: {found['failed'][:60]}"
    return f"{found[what] / 1e6:.0f} MB, {dense[what] / max(found[what], 1):.2f}x"


def run(args: argparse.Namespace) -> dict[str, Any]:
    facts = {"cpu": processor(), "threads": args.threads, **versions()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{args.layers} layers of {args.size} x {args.size}, float32, batch {args.batch}, Adam, {args.steps} steps")
    rows: list[dict[str, Any]] = []
    dense = ask(args, "dense", 1.0)
    assert dense is not None
    print("\n| | sparsity | after the steps | at the highest |")
    print("|---|---:|---:|---:|")
    print(f"| dense | - | {shown(dense, dense, 'after')} | {shown(dense, dense, 'peak')} |")
    rows.append({"name": "dense", "density": 1.0} | dense)
    for density in args.density:
        for name in NAMES[1:]:
            found = ask(args, name, density)
            rows.append({"name": name, "density": density} | (found or {}))
            title = f"**{name}**" if name == "topogen" else name
            cells = (shown(found, dense, what) for what in ("after", "peak"))
            print(f"| {title} | {100 * (1 - density):g} % | {' | '.join(cells)} |", flush=True)
    return facts | {"arguments": vars(args), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.01])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", choices=NAMES, help="measure one contestant in this process (used by the script)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
