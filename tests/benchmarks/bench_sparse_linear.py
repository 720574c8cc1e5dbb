"""SparseLinear beside nn.Linear, masked dense, torch.sparse, SparseLab and scipy: forward and backward, in one run.

    python tests/benchmarks/bench_sparse_linear.py --size 1024 4096 --batch 1 64 256 --repeats 5 --json linear.json
    python tests/benchmarks/bench_sparse_linear.py --size 4096 --batch 256 --density 0.5 0.3 --peers dense masked

Every figure covers the forward pass, both gradients and the allocation of results, from and to torch's (batch,
features) layout, for a given gradient of the output. The contestants take turns, so that what else the machine does
hits all of them, and each takes one step outside the clock before the one that counts; medians. SparseLab takes part
if it can be imported. scipy computes on one thread, and has no product for the gradient of the values: numpy gathers
both factors of each connection in chunks, and where that would take minutes scipy's row says so.

Ratios are times the speed of nn.Linear. The share of the peak counts the multiply-adds that the connections need
against those that the processor can do in registers, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy
import torch
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen import kernels

CHUNK = 1 << 16  # connections whose gradients numpy gathers at a time
SCIPY_LIMIT = 5e8  # connections times samples
ALIVE: list[nn.Module] = []  # SparseLab keeps transposes by id(): one that is freed would lend its own to the next


class MaskedLinear(nn.Linear):
    """Dense weights times a mask of zeros and ones, as most sparse training is written."""

    def __init__(self, layer: tt.SparseLinear, **options: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, **options)
        mask = torch.from_numpy(layer.pattern.toarray().T.copy())
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


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


class ScipyLinear(nn.Module):
    """The same weights through scipy's csr products."""

    def __init__(self, layer: tt.SparseLinear) -> None:
        super().__init__()
        self.weights = layer.to_scipy()
        self.turned = self.weights.T.tocsr()
        self.rows = np.repeat(np.arange(layer.in_features), np.diff(self.weights.indptr))
        self.values = nn.Parameter(torch.from_numpy(self.weights.data))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _ScipyProduct.apply(x, self.values, self)


class _ScipyProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, layer: ScipyLinear) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return torch.from_numpy((layer.turned @ x.numpy().T).T)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        x_IB, dy_OB = np.ascontiguousarray(x.numpy().T), np.ascontiguousarray(dy.numpy().T)
        found = np.empty(layer.weights.nnz, dy_OB.dtype)
        for start in range(0, found.size, CHUNK):
            part = slice(start, start + CHUNK)
            np.einsum("kb,kb->k", x_IB[layer.rows[part]], dy_OB[layer.weights.indices[part]], out=found[part])
        return torch.from_numpy((layer.weights @ dy_OB).T), torch.from_numpy(found), None


def sparselab_linear(layer: tt.SparseLinear) -> nn.Module | None:
    try:
        import sparselab
    except ImportError:
        return None
    sizes = layer.in_features, layer.out_features
    rival = sparselab.SparseLinear(*sizes, sparsity=1 - layer.density, bias=layer.bias is not None)
    ALIVE.append(rival)
    return rival


def contestants(layer: tt.SparseLinear, batch: int, names: list[str]) -> dict[str, nn.Module]:
    """Return the modules that take part; dense and topogen always do."""
    sizes, bias, dtype = (layer.in_features, layer.out_features), layer.bias is not None, layer.values.dtype
    small, plain = layer.nnz * batch <= SCIPY_LIMIT, not bias
    float32 = dtype == torch.float32
    makers: dict[str, Callable[[], nn.Module | None]] = {
        "masked": lambda: MaskedLinear(layer, bias=bias, dtype=dtype),
        "torch.sparse": lambda: CsrLinear(layer) if plain else None,
        "sparselab": lambda: sparselab_linear(layer) if float32 else None,
        "scipy": lambda: ScipyLinear(layer) if small and plain else None,
    }
    modules: dict[str, nn.Module] = {"dense": nn.Linear(*sizes, bias=bias, dtype=dtype), "topogen": layer}
    for name in names:
        module = makers[name]() if name in makers else None
        if module is not None:
            modules[name] = module
    return modules


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
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in modules}
    for turn in range(-1, repeats):  # turn -1 is warm-up
        for name, module in modules.items():
            step(module, x, dy)
            seconds = step(module, x, dy)
            if turn >= 0:
                times[name].append(seconds)
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}


def versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "scipy": scipy.__version__,
    }
    try:
        import sparselab
    except ImportError:
        return found
    return found | {"sparselab": getattr(sparselab, "__version__", "unknown")}


def problem(args: argparse.Namespace, size: int, batch: int, peak: float) -> list[dict[str, Any]]:
    """Measure one shape and batch at every density."""
    torch.manual_seed(args.seed)
    dtype = getattr(torch, args.dtype)
    x = torch.randn(batch, size, dtype=dtype, requires_grad=True)
    dy = torch.randn(batch, size, dtype=dtype)
    rows: list[dict[str, Any]] = []
    for density in args.density:
        net = tg.generate(tg.ErdosRenyi(sizes=[size, size], density=density), rng=args.seed)
        modules = contestants(tt.SparseLinear(net[0], bias=args.bias, dtype=dtype), batch, args.peers)
        medians = measure(modules, x, dy, args.repeats)
        for name, (forward, both) in medians.items():
            work = 2 * size * size * batch * (1.0 if name == "dense" else density)
            row = {"size": size, "batch": batch, "density": density, "name": name}
            row |= {"ratio_forward": medians["dense"][0] / forward, "ratio_both": medians["dense"][1] / both}
            row |= {"ms_forward": forward * 1e3, "ms_both": both * 1e3}
            row |= {"peak_forward": work / forward / peak, "peak_both": 3 * work / both / peak}
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """One Markdown table of a shape and batch: times dense speed, forward + backward (forward)."""
    found = {(row["name"], row["density"]): row for row in rows}
    size, batch = rows[0]["size"], rows[0]["batch"]
    names = list(dict.fromkeys(["topogen", *args.peers]))
    lines = [
        "",
        f"| {size} x {size}, batch {batch} | " + " | ".join(f"{100 * (1 - d):g} %" for d in args.density) + " |",
        "|---" + "|---:" * len(args.density) + "|",
    ]

    def line(title: str, name: str, show: Callable[[dict[str, Any]], str]) -> str:
        cells = (found.get((name, density)) for density in args.density)
        return f"| {title} | " + " | ".join("not measured" if row is None else show(row) for row in cells) + " |"

    for name in names:
        title = f"**{name}**" if name == "topogen" else name
        lines.append(line(title, name, lambda row: f"{row['ratio_both']:.2f}x ({row['ratio_forward']:.2f}x)"))
    for name in ("topogen", "dense"):
        lines.append(line(f"{name}, ms", name, lambda row: f"{row['ms_both']:.2f} ({row['ms_forward']:.2f})"))
        percent = lambda row: f"{100 * row['peak_both']:.0f} % ({100 * row['peak_forward']:.0f} %)"  # noqa: E731
        lines.append(line(f"{name}, share of the peak", name, percent))
    return lines


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    peak = kernels.fma_peak(args.dtype, threads=args.threads, repeats=30)
    facts = {"cpu": processor(), "threads": args.threads, "peak": peak, **versions()}
    show(", ".join(f"{name} {value}" for name, value in facts.items() if name != "peak"))
    show(f"{args.dtype}, {args.repeats} repeats, bias {args.bias}; peak {peak / 1e9:.0f} GFLOP/s in registers")
    show("times dense speed, forward + backward (forward), by sparsity")
    rows: list[dict[str, Any]] = []
    for size in args.size:
        for batch in args.batch:
            found = problem(args, size, batch, peak)
            rows += found
            show("\n".join(table(found, args)))
    return facts | {"arguments": vars(args), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[4096])
    parser.add_argument("--batch", type=int, nargs="+", default=[256])
    parser.add_argument("--density", type=float, nargs="+", default=[0.5, 0.3, 0.1, 0.05, 0.01])
    parser.add_argument("--peers", nargs="*", default=["masked", "torch.sparse", "sparselab", "scipy"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--bias", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
