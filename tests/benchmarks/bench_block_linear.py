"""BlockSparseLinear beside nn.Linear, SparseLinear on the same connections, and RadiX (x) blocks: in one run.

    python tests/benchmarks/bench_block_linear.py --size 4096 --batch 64 256 --block 16 32 64 --density 0.1 0.05

Every figure covers the forward pass, both gradients and the allocation of results, from and to torch's (batch,
features) layout, for a given gradient of the output. The contestants take turns, and each takes one step outside the
clock before the one that counts; best of the repeats, since whatever else the machine does can only add. *ratio* is
how many times faster than nn.Linear; *x density* is that times the density, 1 where a block multiplies at the dense
layer's pace; *peak* is the part of the fused multiply-adds that the processor can do at all, measured in the same run.

RadiX (x) blocks: the layers of a RadiX-Net on n / b nodes whose degree is nearest to the density, neighbouring blocks
(place value 1) and spread ones, each against random blocks, as many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from bench_sparse_linear import step, versions
from machine import processor
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.kernels import fma_peak


def random_blocks(side: int, count: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a pattern of so many blocks drawn without replacement."""
    mask = np.zeros(side * side, np.bool_)
    mask[rng.choice(side * side, count, replace=False)] = True
    return tg.as_pattern(mask.reshape(side, side))


def radix_blocks(side: int, density: float) -> dict[str, sp.csr_array]:
    """Return the two layers of a RadiX-Net whose degree divides `side` and is nearest to the density."""
    degree = min((d for d in range(2, side) if side % d == 0), key=lambda d: abs(d - density * side), default=None)
    if degree is None:
        return {}
    near = tg.generate(tg.RadixNet(systems=[[degree, side // degree]]))[0]
    far = tg.generate(tg.RadixNet(systems=[[side // degree, degree]]))[1]
    return {"radix, neighbours": near, "radix, spread": far}


def best(modules: dict[str, nn.Module], x: torch.Tensor, dy: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Return the least seconds of each module, forward and forward + backward; they take turns."""
    times = {name: [] for name in modules}
    for _ in range(repeats):
        for name, module in modules.items():
            step(module, x, dy)
            times[name].append(step(module, x, dy))
    return {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    peak = fma_peak(threads=args.threads)
    facts = {"cpu": processor(), "threads": args.threads, "peak_gflops": peak / 1e9, **versions()}
    show(
        ", ".join(
            f"{name} {value:.0f}" if name == "peak_gflops" else f"{name} {value}" for name, value in facts.items()
        )
    )
    rows = []

    def report(name: str, n: int, batch: int, block: int, density: float, seconds: list[float], dense: list[float]):
        forward, both = seconds
        row = {
            "name": name, "size": n, "batch": batch, "block": block, "density": density,
            "ratio_both": dense[1] / both, "ratio_forward": dense[0] / forward, "ms_both": both * 1e3,
            "gflops_both": 6 * n * n * batch * density / both / 1e9,
        }  # fmt: skip
        rows.append(row)
        show(
            f"{n} batch {batch:<4} block {block:<4} density {density:<7.4g} {name:<17} {row['ratio_both']:7.2f}x "
            f"{row['ratio_both'] * density:5.2f} x density   forward {row['ratio_forward']:7.2f}x "
            f"{row['ratio_forward'] * density:5.2f}   {row['ms_both']:8.3f} ms {row['gflops_both']:5.0f} GFLOP/s "
            f"{row['gflops_both'] * 1e9 / peak:4.0%} of peak"
        )

    for n in args.size:
        for batch in args.batch:
            x, dy = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
            for density in args.density:
                for block in args.block:
                    pattern = random_blocks(n // block, max(1, round(density * (n // block) ** 2)), rng)
                    layer = tt.BlockSparseLinear(pattern, block, bias=args.bias)
                    modules: dict[str, nn.Module] = {"dense": nn.Linear(n, n, bias=args.bias), "blocks": layer}
                    if args.single:
                        modules["single"] = tt.SparseLinear(layer.pattern, bias=args.bias)
                    densities = {"dense": 1.0, "blocks": layer.density, "single": layer.density}
                    for name, radix in radix_blocks(n // block, density).items() if args.radix else ():
                        modules[name] = tt.BlockSparseLinear(radix, block, bias=args.bias)
                        densities[name] = modules[name].density
                        modules["as many, random"] = tt.BlockSparseLinear(
                            random_blocks(n // block, radix.nnz, rng), block, bias=args.bias
                        )
                        densities["as many, random"] = densities[name]
                    with tt.never_dense():
                        found = best(modules, x, dy, args.repeats)
                    for name, seconds in found.items():
                        report(name, n, batch, block, densities[name], seconds, found["dense"])
    return facts | {"arguments": vars(args) | {"json": None}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--block", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bias", action="store_true")
    parser.add_argument("--no-single", dest="single", action="store_false", help="no SparseLinear")
    parser.add_argument("--no-radix", dest="radix", action="store_false", help="no RadiX-Net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
