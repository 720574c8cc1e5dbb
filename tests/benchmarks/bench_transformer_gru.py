"""A transformer and a GRU, dense beside sparse: a training step's time, peak memory, and the size of the state.

    python tests/benchmarks/bench_transformer_gru.py --model transformer gru --density 0.1 0.05 --rounds 3

A step is forward, backward and Adam on random numbers of a fixed seed. Every contestant is a process of its own, so
that one's memory is not counted as another's; processes take turns, and medians over all rounds are shown. Processor
time is what all threads used, which a busy machine changes less than the clock. Memory is the peak of the resident set,
and what of it came after the imports and two steps of a small model with the same layers, which load or compile the
kernels. A state's size is that of all tensors in ``model.state_dict()``.

transformer: 6 encoder layers of width 512, 8 heads, feedforward 2048; 8 sequences of 128. gru: 2 layers of 512;
32 sequences of 64. In the sparse models every weight matrix has a random pattern of the given density; norms and
attention itself stay as they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import processor
from torch import nn

SIZES = {
    "transformer": {"width": 512, "heads": 8, "feedforward": 2048, "layers": 6, "length": 128, "batch": 8},
    "gru": {"width": 512, "layers": 2, "length": 64, "batch": 32},
}
SMALL = {
    "transformer": {"width": 64, "heads": 2, "feedforward": 128, "layers": 1, "length": 128, "batch": 8},
    "gru": {"width": 64, "layers": 1, "length": 8, "batch": 32},
}


def transformer(density: float | None, seed: int, width: int, heads: int, feedforward: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    if density is None:
        return model
    import topogen as tg
    import topogen_torch as tt

    for k, layer in enumerate(model.layers):
        chain = tg.ErdosRenyi(sizes=[*[width] * 5, feedforward, width], density=density)
        q, key, v, out, up, down = tg.generate(chain, rng=seed + k)
        layer.self_attn = tt.SparseMultiheadAttention({"q": q, "k": key, "v": v, "out": out}, heads, batch_first=True)
        layer.linear1, layer.linear2 = tt.SparseLinear(up), tt.SparseLinear(down)
    return model


def gru(density: float | None, seed: int, width: int, layers: int) -> nn.Module:
    if density is None:
        return nn.GRU(width, width, layers)
    import topogen as tg
    import topogen_torch as tt

    spec = tg.ErdosRenyi(sizes=[width, 3 * width], density=density)
    cells = [tuple(tg.generate(spec, rng=seed + 2 * k + part)[0] for part in (0, 1)) for k in range(layers)]
    return tt.SparseGRU(cells)


MODELS = {"transformer": transformer, "gru": gru}


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def train(
    name: str, density: float | None, seed: int, steps: int, sizes: dict[str, int]
) -> tuple[list[tuple[float, float]], int]:
    """Return the seconds of each training step, by the clock and of processor time, and the bytes of the state."""
    shape = (sizes["length"], sizes["batch"]) if name == "gru" else (sizes["batch"], sizes["length"])
    options = {key: value for key, value in sizes.items() if key not in ("length", "batch")}
    torch.manual_seed(seed)
    model = MODELS[name](density, seed, **options)
    x, target = torch.randn(2, *shape, sizes["width"])
    optimizer = torch.optim.Adam(model.parameters())
    seconds = []
    for _ in range(steps):
        start, start_cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        output = model(x)
        output = output[0] if isinstance(output, tuple) else output
        (output - target).square().mean().backward()
        optimizer.step()
        seconds.append((time.perf_counter() - start, time.process_time() - start_cpu))
    return seconds, sum(tensor.nbytes for tensor in model.state_dict().values())


def contestant(args: argparse.Namespace) -> None:
    """Train one model in this process and print what it took."""
    torch.set_num_threads(args.threads)
    density = args.density[0] or None
    name = args.model[0]
    train(name, density, args.seed, 2, SMALL[name])
    before = resident()
    seconds, state = train(name, density, args.seed, args.warm_up + args.steps, SIZES[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    clock, cpu = zip(*seconds[args.warm_up :], strict=True)
    print(json.dumps({"seconds": clock, "cpu": cpu, "peak": peak, "training": peak - before, "state": state}))


def run(args: argparse.Namespace) -> dict:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    facts = {"cpu": processor(), "threads": args.threads, **versions, "arguments": vars(args) | {"json": None}}
    print(", ".join(f"{name} {value}" for name, value in facts.items() if name != "arguments"))
    rows = []
    for model in args.model:
        found: dict[float, list[dict]] = {}
        for _ in range(args.rounds):
            for density in (0.0, *args.density):  # 0 stands for the dense model
                command = [
                    sys.executable, __file__, "--contestant", "--model", model, "--density", str(density),
                    "--threads", str(args.threads), "--seed", str(args.seed), "--steps", str(args.steps),
                    "--warm-up", str(args.warm_up),
                ]  # fmt: skip
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.setdefault(density, []).append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{model}: {SIZES[model]}")
        for density, turns in found.items():
            row = {
                "model": model,
                "density": density or None,
                **{key: statistics.median(s for turn in turns for s in turn[key]) for key in ("seconds", "cpu")},
                **{key: statistics.median(turn[key] for turn in turns) for key in ("peak", "training", "state")},
            }
            rows.append(row)
            dense = next(row for row in rows if row["model"] == model and row["density"] is None)
            ratios = {key: dense[key] / row[key] for key in ("seconds", "cpu", "peak", "training", "state")}
            row["ratios"] = ratios
            name = f"density {density:g}" if density else "dense"
            print(
                f"  {name:<13} step {row['seconds'] * 1e3:8.1f} ms ({ratios['seconds']:5.2f}x), "
                f"processor {row['cpu'] * 1e3:8.1f} ms ({ratios['cpu']:5.2f}x), "
                f"peak {row['peak'] / 1e6:5.0f} MB ({ratios['peak']:5.2f}x), "
                f"of training {row['training'] / 1e6:5.0f} MB ({ratios['training']:5.2f}x), "
                f"state {row['state'] / 1e6:6.1f} MB ({ratios['state']:5.2f}x)"
            )
    return facts | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), nargs="+", default=sorted(MODELS))
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--warm-up", type=int, default=2, help="steps outside the clock in each process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--contestant", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        contestant(args)
        return
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
