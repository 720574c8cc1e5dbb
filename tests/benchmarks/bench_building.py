"""Building beside networkx, scipy, igraph and GraphBLAS: connections a second, and peak memory.

    python tests/benchmarks/bench_building.py --sizes 1e5 1e7 --repeats 5 --json building.json

One square layer of `size` connections at density 1/100, of each of three kinds:

- uniform: exactly that many connections, each set of them equally likely (`ErdosRenyi`);
- biregular: every neuron with the same fan-in and fan-out, connections distinct (`RandomBiregular`);
- radix: RadixNet([[r, r, r]]), all three of its layers, about `size` connections in all.

Each contestant ends with what its users work with: topogen with a checked Topology (`generate`), the others with their
own graph or matrix of the library. What a rival does not do is said beside its name: GraphBLAS has no generator, so it
is handed pairs that numpy has drawn; it, and the configuration models of networkx and igraph, leave double connections
or merge them, which is less than what is asked.

Every contestant builds in a process of its own, so that none pays for what another has left behind: after a small layer
of the kind, which imports what is needed, and one turn that does not count, as many turns as --repeats says. Processes
take turns, --rounds times; medians over all. Peak memory is the most that was resident, less what was before the first
full-sized turn; what is built is among it. A process that would need more than --memory gigabytes fails, and its row
says so. igraph and python-graphblas are not dependencies of topogen: rows without them are missing where they are not
installed. networkx stops at --networkx-to connections.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
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


def status(field: str) -> int:
    """Return a field of this process's memory status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def alone(kind: str, size: int, name: str, repeats: int, memory: float) -> dict[str, Any]:
    """Build in this process, and return the seconds of each turn that counts and the peak of the memory."""
    limit = int(memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    KINDS[kind](1000)[name](0)
    build = KINDS[kind](size)[name]
    before, seconds = status("VmRSS"), []
    try:
        # networkx has one turn, and it counts: tens of seconds, where a few per cent do not matter
        for repeat in range(1 if "networkx" in name else repeats + 1):
            start = time.perf_counter()
            built = build(repeat)
            seconds.append(time.perf_counter() - start)
            del built
    except MemoryError:
        return {"seconds": [], "peak": 0}
    return {"seconds": seconds[1:] or seconds, "peak": status("VmHWM") - before}


def measured(kind: str, size: int, names: list[str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return median seconds and peak bytes of each contestant, from processes that take turns."""
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "peak": []} for name in names}
    for _ in range(args.rounds):
        for name in names:
            own = [sys.executable, __file__, "--alone", kind, str(size), name, "--repeats", str(args.repeats)]
            told = subprocess.run([*own, "--memory", str(args.memory)], capture_output=True, text=True, check=False)
            # a library that does not look whether it was given memory ends the process
            turn = json.loads(told.stdout) if told.returncode == 0 else {"seconds": [], "peak": 0}
            found[name]["seconds"] += turn["seconds"]
            found[name]["peak"].append(turn["peak"])
    return {
        name: {"seconds": statistics.median(row["seconds"]), "peak": max(row["peak"])} if row["seconds"] else {}
        for name, row in found.items()
    }


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
        "rounds": args.rounds,
    }
    show(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    for size in map(int, args.sizes):
        for kind in args.kinds:
            connections = KINDS[kind](size)["topogen"](0).nnz
            names = list(present(KINDS[kind](size), size, args.networkx_to))
            found = measured(kind, size, names, args)
            ours = found["topogen"]
            for name, row in found.items():
                if not row:
                    show(f"{kind:<9} {connections:>11,}  more than {args.memory:g} GB  {name}")
                    rows.append({"kind": kind, "connections": connections, "name": name, "fits": False})
                    continue
                rate, ratio = connections / row["seconds"], row["seconds"] / ours["seconds"]
                rows.append(
                    {
                        "kind": kind,
                        "connections": connections,
                        "name": name,
                        "fits": True,
                        "ratio": ratio,
                        "seconds": row["seconds"],
                        "per_second": rate,
                        "peak": row["peak"],
                        "peak_per_connection": row["peak"] / connections,
                    }
                )
                show(
                    f"{kind:<9} {connections:>11,}  {ratio:8.1f}x the time of topogen  {rate / 1e6:8.1f} million/s"
                    f"  {row['seconds']:9.4f} s  {row['peak'] / 1e6:9.1f} MB  {row['peak'] / connections:6.1f} bytes"
                    f" a connection  {name}"
                )
    return facts | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e7], help="connections, for example 1e5 1e7")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=5, help="turns that count, in each process; networkx has one")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each contestant")
    parser.add_argument("--memory", type=float, default=24.0, help="gigabytes that a process may ask for")
    parser.add_argument("--networkx-to", type=float, default=1e6, help="the most connections that networkx builds")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--alone", nargs=3, metavar=("KIND", "SIZE", "NAME"), help="one contestant, for the processes")
    args = parser.parse_args()
    if args.alone:
        kind, size, name = args.alone
        print(json.dumps(alone(kind, int(size), name, args.repeats, args.memory)))
        return
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


KINDS: dict[str, Callable[[int], Contestants]] = {"uniform": uniform, "biregular": biregular, "radix": radix}

if __name__ == "__main__":
    main()
