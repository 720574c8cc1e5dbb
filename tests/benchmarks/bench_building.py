"""Building beside networkx, scipy, igraph and GraphBLAS, in one run: connections a second.

    python tests/benchmarks/bench_building.py --sizes 1e5 1e7 --repeats 5 --json building.json

One square layer of `size` connections at density 1/100, of each of three kinds:

- uniform: exactly that many connections, each set of them equally likely (`ErdosRenyi`);
- biregular: every neuron with the same fan-in and fan-out, connections distinct (`RandomBiregular`);
- radix: RadixNet([[r, r, r]]), all three of its layers, about `size` connections in all.

Each contestant ends with what its users work with: topogen with a checked Topology (`generate`), the others with their
own graph or matrix of the library. What a rival does not do is said beside its name: GraphBLAS has no generator, so it
is handed pairs that numpy has drawn; it, and the configuration models of networkx and igraph, leave double connections
or merge them, which is less than what is asked. Contestants take turns; a warm-up is outside the clock; medians.
igraph and python-graphblas are not dependencies of topogen: rows without them are missing where they are not
installed. networkx stops at --networkx-to connections.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import scipy
import scipy.sparse as sp
from machine import processor

import topogen as tg

Contestants = dict[str, Callable[[int], Any]]


def optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


ig, gb = optional("igraph"), optional("graphblas")


def uniform(size: int) -> Contestants:
    n = math.isqrt(size * 100)
    spec = tg.ErdosRenyi(sizes=[n, n], density=size / n**2)

    def graphblas_pairs(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return graphblas_matrix(rng.integers(n, size=size), rng.integers(n, size=size), n)

    return {
        "topogen": lambda seed: tg.generate(spec, rng=seed),
        "networkx gnmk_random_graph": lambda seed: nx.bipartite.gnmk_random_graph(n, n, size, seed=seed),
        "scipy random_array": lambda seed: sp.random_array(
            (n, n), density=size / n**2, format="csr", rng=np.random.default_rng(seed)
        ),
        "igraph Random_Bipartite": lambda seed: ig.Graph.Random_Bipartite(n, n, m=size),
        "graphblas from_coo (pairs merged)": graphblas_pairs,
    }


def biregular(size: int) -> Contestants:
    n = math.isqrt(size * 100)
    degree = size // n
    spec = tg.RandomBiregular(sizes=[n, n], fan_in=degree)
    stubs = np.repeat(np.arange(n), degree)
    zeros, degrees = [0] * n, [degree] * n

    def networkx_model(seed: int) -> Any:
        graph = nx.bipartite.configuration_model(degrees, degrees, seed=seed)
        return nx.bipartite.biadjacency_matrix(graph, range(n), range(n, 2 * n), dtype=bool)

    return {
        "topogen": lambda seed: tg.generate(spec, rng=seed),
        "networkx configuration_model (pairs merged)": networkx_model,
        "scipy from permutation (pairs merged)": lambda seed: sp.csr_array(
            (np.ones(stubs.size, bool), (stubs, np.random.default_rng(seed).permutation(stubs))), shape=(n, n)
        ),
        "igraph Degree_Sequence (doubles left)": lambda seed: ig.Graph.Degree_Sequence(
            degrees + zeros, zeros + degrees, method="configuration"
        ),
        "graphblas from_coo (pairs merged)": lambda seed: graphblas_matrix(
            stubs, np.random.default_rng(seed).permutation(stubs), n
        ),
    }


def radix(size: int) -> Contestants:
    r = round((size / 3) ** 0.25)
    n = r**3
    spec = tg.RadixNet(systems=[[r, r, r]])

    def pairs(place: int) -> tuple[Any, Any]:
        rows = np.repeat(np.arange(n), r)
        return rows, (rows - np.tile(np.arange(r) * place, n)) % n

    def networkx_layers(seed: int) -> list[Any]:
        graphs = []
        for place in (1, r, r * r):
            graph = nx.Graph()
            graph.add_nodes_from(range(2 * n))
            graph.add_edges_from((i, n + (i - j * place) % n) for i in range(n) for j in range(r))
            graphs.append(graph)
        return graphs

    def scipy_layers(seed: int) -> list[Any]:
        layers = []
        for place in (1, r, r * r):
            rows, columns = pairs(place)
            layers.append(sp.csr_array((np.ones(rows.size, bool), (rows, columns)), shape=(n, n)))
        return layers

    def igraph_layers(seed: int) -> list[Any]:
        graphs = []
        for place in (1, r, r * r):
            rows, columns = pairs(place)
            graphs.append(ig.Graph(2 * n, np.stack([rows, columns + n], axis=1)))
        return graphs

    return {
        "topogen": lambda seed: tg.generate(spec),
        "networkx add_edges_from": networkx_layers,
        "scipy from coo": scipy_layers,
        "igraph Graph(edges)": igraph_layers,
        "graphblas from_coo": lambda seed: [graphblas_matrix(*pairs(place), n) for place in (1, r, r * r)],
    }


def graphblas_matrix(rows: Any, columns: Any, n: int) -> Any:
    matrix = gb.Matrix.from_coo(rows, columns, True, nrows=n, ncols=n)
    matrix.wait()  # GraphBLAS may put work off
    return matrix


def present(contestants: Contestants, size: int, networkx_to: float) -> Contestants:
    missing = {"igraph": ig is None, "graphblas": gb is None, "networkx": size > networkx_to}
    return {name: build for name, build in contestants.items() if not missing.get(name.split()[0], False)}


def medians(contestants: Contestants, repeats: int) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, build in contestants.items():
            if "networkx" in name and repeat > 1:
                continue  # one turn that counts: tens of seconds, where a few per cent do not matter
            start = time.perf_counter()
            built = build(repeat)
            seconds = time.perf_counter() - start
            del built
            if repeat:
                times[name].append(seconds)
    return {name: statistics.median(row) for name, row in times.items()}


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict[str, Any]:
    facts = {
        "cpu": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "networkx": nx.__version__,
        "igraph": getattr(ig, "__version__", "missing"),
        "graphblas": getattr(gb, "__version__", "missing"),
        "repeats": args.repeats,
    }
    show(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    for size in map(int, args.sizes):
        for kind in (uniform, biregular, radix):
            contestants = kind(size)
            connections = contestants["topogen"](0).nnz
            seconds = medians(present(contestants, size, args.networkx_to), args.repeats)
            for name, median in seconds.items():
                rate, ratio = connections / median, median / seconds["topogen"]
                rows.append(
                    {
                        "kind": kind.__name__,
                        "connections": connections,
                        "name": name,
                        "ratio": ratio,
                        "seconds": median,
                        "per_second": rate,
                    }
                )
                show(
                    f"{kind.__name__:<9} {connections:>11,}  {ratio:8.1f}x the time of topogen"
                    f"  {rate / 1e6:8.1f} million/s  {median:9.4f} s  {name}"
                )
    return facts | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e7], help="connections, for example 1e5 1e7")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count; networkx has one")
    parser.add_argument("--networkx-to", type=float, default=1e6, help="the most connections that networkx builds")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
