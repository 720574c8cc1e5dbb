"""Patterns whose neurons share their connections, beside random ones of the same density: forward and backward.

    python tests/benchmarks/bench_structured.py --batch 64 256 --repeats 7 --json structured.json
    python tests/benchmarks/bench_structured.py --batch 256 --only radix

The layer that recognises its pattern, the same pattern computed row by row, a random pattern of the same density and
nn.Linear take turns, from and to torch's (batch, features) layout, bias and all gradients included. Best of the
repeats; ratios are times in units of the recognised layer's, and GFLOP/s count the connections alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt

SIZE = 4096


def patterns() -> Iterator[tuple[str, Any]]:
    """Yield names and patterns of about 4096 inputs and outputs."""
    for systems in ([[64, 64]], [[16, 16, 16]]):
        for k, layer in enumerate(tg.generate(tg.RadixNet(systems=systems))):
            yield f"radix {systems[0]} layer {k}", layer
    for radices in ([10, 10], [5, 20]):
        for order in ("reference", "blocks"):
            net = tg.generate(tg.RadixNet(systems=[radices], widths=[41, 41, 41], order=order))
            for k, layer in enumerate(net):
                yield f"radix {radices} x 41 {order} layer {k}", layer
    for fan in (410, 205, 41):
        starts = np.repeat(np.arange(SIZE), fan)
        ends = (starts + np.tile(np.arange(fan), SIZE)) % SIZE
        yield f"circulant {fan}", sp.csr_array((np.ones(len(starts)), (starts, ends)), (SIZE, SIZE))
        offsets = range(-(fan // 2), fan - fan // 2)
        yield f"band {fan}", sp.diags_array([np.ones(SIZE)] * fan, offsets=offsets, shape=(SIZE, SIZE))
        element = sp.random_array((SIZE // 8, SIZE // 8), density=fan / SIZE, rng=np.random.default_rng(0))
        yield f"random (x) ones {fan}", sp.kron(element, np.ones((8, 8)), format="csr")
        yield f"ones (x) random {fan}", sp.kron(np.ones((8, 8)), element, format="csr")


def step(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Callable[[], None]:
    """Return one forward and backward pass."""
    wanted = (x, *module.parameters())

    def run() -> None:
        torch.autograd.grad(module(x), wanted, dy)

    return run


def measure(pattern: Any, batch: int, repeats: int) -> dict[str, Any]:
    """Return seconds, GFLOP/s and ratios of one pattern."""
    layer = tt.SparseLinear(pattern)
    rows = tt.SparseLinear(pattern)
    rows._give_up_panels()
    rng = np.random.default_rng(0)
    random = tt.SparseLinear(sp.random_array((layer.in_features, layer.out_features), density=layer.density, rng=rng))
    x = torch.randn(batch, layer.in_features, requires_grad=True)
    dy = torch.randn(batch, layer.out_features)
    modules = {
        "layer": layer, "rows": rows, "random": random, "dense": nn.Linear(layer.in_features, layer.out_features)
    }  # fmt: skip
    steps = {name: step(module, x, dy) for name, module in modules.items()}
    seconds = dict.fromkeys(steps, float("inf"))
    for turn in range(repeats):
        names = [*steps][turn % len(steps) :] + [*steps][: turn % len(steps)]  # nobody always comes after dense
        for name in names:
            run = steps[name]
            run()  # outside the clock: the one before has driven out what this one keeps in the caches
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    work = 6 * batch * layer.nnz / 1e9
    return {
        "by_panels": layer._by_panels,
        "density": layer.density,
        "index_bytes": sum(b.nbytes for b in layer.buffers()) / layer.nnz,
        "seconds": seconds,
        "gflops": {name: work / seconds[name] for name in ("layer", "rows", "random")},
        "ratios": {name: seconds[name] / seconds["layer"] for name in ("rows", "random", "dense")},
    }


def main() -> None:
    """Print a table, and write what was measured where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="patterns whose name contains this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = []
    print(f"{'pattern':34} batch density panels  B/conn GFLOP/s  x rows x random x dense")
    for batch in options.batch:
        for name, pattern in patterns():
            if options.only not in name:
                continue
            found = measure(pattern, batch, options.repeats)
            results.append({"pattern": name, "batch": batch} | found)
            ratios = found["ratios"]
            print(
                f"{name:34} {batch:5} {found['density']:7.4f} {found['by_panels']!s:6} {found['index_bytes']:7.1f} "
                f"{found['gflops']['layer']:7.1f} {ratios['rows']:7.2f} {ratios['random']:8.2f} {ratios['dense']:7.1f}",
                flush=True,
            )
    if options.json:
        machine = {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}
        report = {"machine": machine | {"threads": options.threads}, "repeats": options.repeats, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
