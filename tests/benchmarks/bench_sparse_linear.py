"""SparseLinear beside nn.Linear, torch.sparse and SparseLab: forward and backward, in one run.

    python tests/benchmarks/bench_sparse_linear.py --size 4096 --batch 256 --density 0.1 0.05 0.01 --repeats 5

Every figure covers the forward pass, both gradients and the allocation of results, from and to torch's (batch,
features) layout, for a given gradient of the output. The contestants take turns, so that what else the machine does
hits all of them, and each takes one step outside the clock before the one that counts; medians. SparseLab takes part
if it can be imported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt


class CsrLinear(nn.Module):
    """The same weights through torch.sparse: ``(W^T x^T)^T`` with a CSR weight matrix, autograd by torch."""

    def __init__(self, layer: tt.SparseLinear) -> None:
        super().__init__()
        weights = layer.to_scipy().T.tocsr()
        weights.sort_indices()
        parts = (torch.from_numpy(part.astype(np.int32)) for part in (weights.indptr, weights.indices))
        self.values = nn.Parameter(torch.sparse_csr_tensor(*parts, torch.from_numpy(weights.data), weights.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(self.values, x.t()).t()


def sparselab_linear(layer: tt.SparseLinear) -> nn.Module | None:
    try:
        import sparselab
    except ImportError:
        return None
    sizes = layer.in_features, layer.out_features
    return sparselab.SparseLinear(*sizes, sparsity=1 - layer.density, bias=layer.bias is not None)


def step(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[float, float]:
    """Seconds of the forward pass and of both; gradients start as None, as after ``optimizer.zero_grad()``."""
    module.zero_grad()
    x.grad = None
    start = time.perf_counter()
    y = module(x)
    middle = time.perf_counter()
    y.backward(dy)
    return middle - start, time.perf_counter() - start


def measure(modules: dict[str, nn.Module], x: torch.Tensor, dy: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Median seconds of each module, forward and forward + backward; one step outside the clock before each turn."""
    times = {name: [] for name in modules}
    for turn in range(-1, repeats):  # turn -1 is warm-up
        for name, module in modules.items():
            step(module, x, dy)
            seconds = step(module, x, dy)
            if turn >= 0:
                times[name].append(seconds)
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__}
    try:
        import sparselab
    except ImportError:
        return found
    return found | {"sparselab": getattr(sparselab, "__version__", "unknown")}


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    n, dtype = args.size, getattr(torch, args.dtype)
    x = torch.randn(args.batch, n, dtype=dtype, requires_grad=True)
    dy = torch.randn(args.batch, n, dtype=dtype)
    facts = {"cpu": processor(), "threads": args.threads, **versions(), "arguments": vars(args) | {"json": None}}
    show(", ".join(f"{name} {value}" for name, value in facts.items() if name != "arguments"))
    show(f"{n} x {n}, batch {args.batch}, {args.dtype}, {args.repeats} repeats, bias {args.bias}")
    rows = []
    for density in args.density:
        net = tg.generate(tg.ErdosRenyi(sizes=[n, n], density=density), rng=args.seed)
        layer = tt.SparseLinear(net[0], bias=args.bias, dtype=dtype)
        modules: dict[str, nn.Module] = {"dense": nn.Linear(n, n, bias=args.bias, dtype=dtype), "topogen": layer}
        if args.peers:
            if not args.bias:
                modules["torch.sparse"] = CsrLinear(layer)
            rival = sparselab_linear(layer)
            if rival is not None:
                modules["sparselab"] = rival
        medians = measure(modules, x, dy, args.repeats)
        flops = 2 * n * n * args.batch
        for name, (forward, both) in medians.items():
            work = flops * (1.0 if name == "dense" else density)
            row = {
                "density": density,
                "name": name,
                "ratio_both": medians["dense"][1] / both,
                "ratio_forward": medians["dense"][0] / forward,
                "ms_both": both * 1e3,
                "ms_forward": forward * 1e3,
                "gflops_both": 3 * work / both / 1e9,
            }
            rows.append(row)
            show(
                f"density {density:<5g} {name:<13} {row['ratio_both']:6.2f}x forward+backward "
                f"{row['ratio_forward']:6.2f}x forward   {row['ms_both']:8.2f} ms {row['ms_forward']:8.2f} ms "
                f"{row['gflops_both']:6.0f} GFLOP/s"
            )
    return facts | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--bias", action="store_true")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="dense and topogen only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
