"""Path-connectedness and exact path counts beside networkx and scipy's integer products, in one run.

    python tests/benchmarks/bench_connectivity.py --repeats 5 --json connectivity.json

The network is RadixNet([[32, 32], [32, 32]]): 1024 wide, four layers, 32 paths a neuron; 1024 paths a pair. Two more
rows show what a network without structure costs: the same sizes and degrees with predecessors drawn at random.
Contestants take turns, so that what else the machine does hits all of them; building matrices and graphs, compiling
kernels and a warm-up are outside the clock; medians. All contestants must agree, or there are no figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import networkx as nx
import numba
import numpy as np
import scipy
import scipy.sparse as sp
from machine import processor

import topogen as tg


def random_layers(width: int, fan_in: int, layers: int, seed: int) -> list[sp.csr_array]:
    """Layers in which every neuron has `fan_in` distinct predecessors drawn at random."""
    rng = np.random.default_rng(seed)
    columns = np.repeat(np.arange(width), fan_in)
    chain = []
    for _ in range(layers):
        rows = rng.permuted(np.tile(np.arange(width), (width, 1)), axis=1)[:, :fan_in].ravel()
        chain.append(sp.csr_array((np.ones(width * fan_in, bool), (rows, columns)), shape=(width, width)))
    return chain


class Rivals:
    """The same questions, asked of networkx and of scipy."""

    def __init__(self, net: tg.Topology) -> None:
        self.graph = nx.DiGraph()
        offset = np.concatenate([[0], np.cumsum(net.sizes)]).tolist()
        self.graph.add_nodes_from(range(offset[-1]))
        for k, layer in enumerate(net):
            rows, columns = layer.nonzero()
            self.graph.add_edges_from(zip((rows + offset[k]).tolist(), (columns + offset[k + 1]).tolist(), strict=True))
        self.inputs = range(net.sizes[0])
        self.outputs = set(range(offset[-2], offset[-1]))
        self.integers = [layer.astype(np.int64) for layer in net]

    def networkx_connected(self) -> bool:
        return all(self.outputs <= nx.descendants(self.graph, i) for i in self.inputs)

    def scipy_product(self) -> tuple[int, int]:
        """Exact as long as no count reaches 2^63, which nothing here checks."""
        product = reduce(lambda left, right: left @ right, self.integers)
        return int(product.min()), int(product.max())

    def scipy_connected(self) -> bool:
        return self.scipy_product()[0] > 0


def medians(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, and must return the same."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    answers = {}
    for repeat in range(repeats + 1):
        for name, ask in contestants.items():
            start = time.perf_counter()
            answers[name] = ask()
            if repeat:
                times[name].append(time.perf_counter() - start)
    if len(set(answers.values())) != 1:
        raise SystemExit(f"the contestants do not agree: {answers}")
    return {name: statistics.median(row) for name, row in times.items()}


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict[str, Any]:
    facts = {
        "cpu": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "networkx": nx.__version__,
        "numba": numba.__version__,
        "repeats": args.repeats,
        "seed": args.seed,
    }
    show(", ".join(f"{name} {value}" for name, value in facts.items()))
    nets = {
        "radix": tg.Topology(tg.generate(tg.RadixNet(systems=[[32, 32], [32, 32]])).layers),
        "random": tg.Topology(random_layers(1024, 32, 4, args.seed)),
    }
    rows = []
    for name, net in nets.items():
        rivals = Rivals(net)

        def counts(net: tg.Topology = net) -> tuple[int, int]:
            found = tg.measures.path_counts(net)
            return found.min, found.max

        questions: dict[str, dict[str, Callable[[], Any]]] = {
            "path-connected": {
                "topogen": lambda net=net: tg.measures.is_path_connected(net),
                "scipy": rivals.scipy_connected,
                "networkx": rivals.networkx_connected,
            },
            "path counts": {"topogen": counts, "scipy": rivals.scipy_product},
        }
        for question, contestants in questions.items():
            seconds = medians(contestants, args.repeats)
            for contestant, median in seconds.items():
                ratio = median / seconds["topogen"]
                rows.append(
                    {
                        "net": name,
                        "question": question,
                        "name": contestant,
                        "seconds": median,
                        "ratio": ratio,
                        "ms_per_layer": median / len(net) * 1e3,
                    }
                )
                show(
                    f"{name:<7} {question:<15} {contestant:<9} {ratio:8.1f}x the time of topogen"
                    f"   {median:9.5f} s {median / len(net) * 1e3:9.3f} ms a layer"
                )
    return facts | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the network without structure")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
