"""The Graph Challenge at its full width, each question with seconds and the process's peak memory.

    python tests/benchmarks/bench_graph_challenge.py --layers 12 --files 1 --json graph_challenge.json
    python tests/benchmarks/bench_graph_challenge.py --layers 1920 --lazy

The network is GraphChallenge(neurons=65536, layers=...): 2,097,152 connections a layer. Asked of it are its connections
and degrees, whether the first block of layers joins every pair, whether all layers do, and the exact number of paths;
with ``--files``, how long a layer takes to be written and read in the challenge's format. Kernels are compiled before
the clock starts. The answers are checked against the claims, or there are no figures. Peak memory only grows, so that
each figure counts what came before it too.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy

import topogen as tg
from topogen.io import graph_challenge


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def timed(ask: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = ask()
    return answer, time.perf_counter() - start


def run(args: argparse.Namespace, show: Callable[[str], None] = print) -> dict[str, Any]:
    facts = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "numba": numba.__version__,
        "neurons": args.neurons,
        "layers": args.layers,
        "lazy": args.lazy,
        "seed": args.seed,
    }
    show(", ".join(f"{name} {value}" for name, value in facts.items()))
    tg.verify(tg.generate(tg.GraphChallenge(neurons=64, layers=4), rng=0))  # compiles

    spec = tg.GraphChallenge(neurons=args.neurons, layers=args.layers)
    promised = {claim.name: claim.bound for claim in spec.claims()}
    rows: list[dict[str, Any]] = []

    def ask(question: str, expected: Any, measure: Callable[[], Any]) -> Any:
        answer, seconds = timed(measure)
        if expected is not None and answer != expected:
            raise SystemExit(f"{question}: {answer} was measured, and {expected} promised")
        rows.append({"question": question, "seconds": seconds, "peak_mb": peak_mb()})
        show(f"{question:<44} {seconds:9.3f} s   peak {rows[-1]['peak_mb']:7.0f} MB")
        return answer

    net = ask(
        "generate" + (" lazily" if args.lazy else ""), None, lambda: tg.generate(spec, rng=args.seed, lazy=args.lazy)
    )
    ask("connections", promised["connections"], lambda: tg.measures.connections(net))
    ask("fan-in", promised["fan-in"], lambda: tg.measures.fan_in(net))
    ask("fan-out", promised["fan-out"], lambda: tg.measures.fan_out(net))
    block = tg.Topology(net.layers[: spec.block_depth])
    ask("path-connected, the first block", True, lambda: tg.measures.is_path_connected(block))
    ask("path-connected", True, lambda: tg.measures.is_path_connected(net))
    ask("path counts", promised["paths per pair"], lambda: tg.measures.path_counts(net))

    if args.files:
        layer = net[len(net) - 1]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.tsv"
            actions: dict[str, Callable[[], Any]] = {
                "write_layer": lambda: graph_challenge.write_layer(path, layer, 1 / 16),
                "read_layer": lambda: graph_challenge.read_layer(path, layer.shape),
                "read_weights": lambda: graph_challenge.read_weights(path, layer.shape),
            }
            for name, action in actions.items():
                seconds = statistics.median(timed(action)[1] for _ in range(args.files))
                rows.append({"question": name, "seconds": seconds, "peak_mb": peak_mb()})
                rate = path.stat().st_size / seconds / 1e6
                show(f"{name:<44} {seconds:9.3f} s   peak {rows[-1]['peak_mb']:7.0f} MB   {rate:.0f} MB/s")
            if (graph_challenge.read_layer(path, layer.shape) != layer).nnz:
                raise SystemExit("the layer that was read is not the one that was written")
    return facts | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=65536)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--lazy", action="store_true", help="build each layer when it is asked for")
    parser.add_argument("--files", type=int, default=0, help="time writing and reading a layer this many times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
