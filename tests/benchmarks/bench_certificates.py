"""What a certificate costs on wide networks: connectivity, path counts, second singular values, beside peers.

    python tests/benchmarks/bench_certificates.py --repeats 3 --json certificates.json

- radix-1024: RadixNet([[32, 32], [32, 32]]), four layers: networkx, scipy, GraphBLAS.
- challenge-16384 and -65536: the base networks of the Graph Challenge, 10 and 12 layers of 32 connections a neuron.
  GraphBLAS multiplies boolean matrices (any_pair) up to 16384; its product has 4.3e9 entries at 65536, and scipy's and
  networkx's would take hours at either: they are left out. It counts paths in INT64 and FP64 (plus_times) at 1024; at
  16384 that was killed at 23 GB of memory. It counts only where the type can hold every count, which the product of
  the largest fan-ins bounds. topogen's counts have no bound.
- second singular values of random biregular layers and of explicit expanders: scipy's `svds`, asked for two values. It
  finds the second one only because the layers are connected, which topogen decides first.

Contestants take turns and must agree; building, compiling and a warm-up are outside the clock; medians.
python-graphblas is no dependency of topogen: without it its rows are missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import resource
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg as spla
from bench_connectivity import Rivals, medians
from machine import processor

import topogen as tg


def graphblas_product(net: tg.Topology, semiring: str, dtype: type) -> Callable[[], Any] | None:
    """Return what multiplies the layers of `net` in GraphBLAS, or None where it is not installed."""
    try:
        gb = importlib.import_module("graphblas")
    except ImportError:
        return None
    layers = [gb.io.from_scipy_sparse(layer.astype(dtype)) for layer in net]
    multiply = getattr(gb.semiring, semiring)
    return lambda: reduce(lambda left, right: multiply(left @ right).new(), layers)


def questions(names: list[str]) -> dict[tuple[str, str], dict[str, Callable[[], Any]]]:
    """Return the contestants of each (network, question)."""
    found: dict[tuple[str, str], dict[str, Callable[[], Any]]] = {}
    for name in names:
        net = network(name)
        pairs = net.sizes[0] * net.sizes[-1]
        connected: dict[str, Callable[[], Any]] = {"topogen": lambda net=net: tg.measures.is_path_connected(net)}
        counts: dict[str, Callable[[], Any]] = {"topogen": lambda net=net: tg.measures.path_counts(net).min}
        if net.sizes[0] <= 1024:
            rivals = Rivals(net)
            connected |= {"networkx": rivals.networkx_connected, "scipy": rivals.scipy_connected}
            counts["scipy"] = lambda rivals=rivals: rivals.scipy_product()[0]
        if net.sizes[0] <= 16384:
            product = graphblas_product(net, "any_pair", np.bool_)
            if product:
                connected["graphblas"] = lambda product=product, pairs=pairs: product().nvals == pairs
        if net.sizes[0] <= 4096:
            most = math.prod(max(fan_in.max, 1) for fan_in in tg.measures.fan_in(net))
            for dtype, limit in ((np.int64, 2**63), (np.float64, 2**53)):
                product = graphblas_product(net, "plus_times", dtype)
                if product and most < limit:
                    title = f"graphblas {np.dtype(dtype)}"
                    counts[title] = lambda product=product: int(product().reduce_scalar("min").new().value)
        found[name, "path-connected"] = connected
        found[name, "path counts"] = counts
    return found


def network(name: str) -> tg.Topology:
    if name == "radix-1024":
        spec: tg.AbstractSpec = tg.RadixNet(systems=[[32, 32], [32, 32]])
    else:
        neurons = int(name.partition("-")[2])
        spec = tg.GraphChallenge(neurons=neurons, layers=(neurons // 16).bit_length() - 1)
    return tg.generate(spec)


def singular(repeats: int, report: Callable[..., None]) -> None:
    layers = {
        "biregular 4096x1024": tg.generate(tg.RandomBiregular(sizes=[4096, 1024], fan_in=32), rng=0)[0],
        "LPS(5, 29), 12180": tg.generate(tg.LPS(p=5, q=29))[0],
        "LPS(13, 17), 2448": tg.generate(tg.LPS(p=13, q=17))[0],
        "biregular 20000x20000": tg.generate(tg.RandomBiregular(sizes=[20000, 20000], fan_in=6), rng=0)[0],
        "PG(2, 31), 993": tg.generate(tg.ProjectivePlane(q=31))[0],
        "array code (31, 8)": tg.generate(tg.ArrayCode(q=31, l=8))[0],
    }
    for name, layer in layers.items():
        start = np.random.default_rng(0).standard_normal(min(layer.shape))

        def svds(layer: Any = layer, start: Any = start) -> float:
            values = spla.svds(layer.astype(np.float64), k=2, v0=start, return_singular_vectors=False)
            return round(float(min(values)), 6)

        contestants = {"topogen": lambda layer=layer: round(tg.measures.second_singular_value(layer), 6), "scipy": svds}
        report(name, "second singular value", medians(contestants, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nets", nargs="*", default=["radix-1024", "challenge-16384", "challenge-65536"])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def report(net: str, question: str, seconds: dict[str, float]) -> None:
        for name, median in seconds.items():
            ratio = median / seconds["topogen"]
            rows.append({"net": net, "question": question, "name": name, "seconds": median, "ratio": ratio})
            print(f"{net:<22} {question:<22} {name:<17} {ratio:8.1f}x the time of topogen {median:10.5f} s", flush=True)

    print(processor(), flush=True)
    for (net, question), contestants in questions(args.nets).items():
        report(net, question, medians(contestants, args.repeats))
    singular(args.repeats, report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of all contestants together {peak:.2f} GB")
    if args.json:
        args.json.write_text(json.dumps({"cpu": processor(), "repeats": args.repeats, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
