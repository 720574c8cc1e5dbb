"""Whole SET runs on MNIST, truly sparse beside masked dense training of the same net; each in a process of its own.

    python tests/benchmarks/bench_set_run.py --data-dir DIR --hidden 4096 4096 --density 0.05 0.01 --json set_run.json

Both begin with the same random pattern and the same weights, see the same images in the same order, and drop and grow
as many connections at the same steps. The masked contestant is `torch.nn.Linear` layers, all weights of which are
multiplied by their masks after every step; what has grown begins with momentum 0, in both. The clock runs over all
training steps, the rewiring in them included; building, compiling and judging are outside. "Rewiring" is the time of
all calls of the method: of RigL, the dense weight gradient included. Memory is the highest point while training, beyond
what the process held before the model was built (images and libraries), as Linux counts it. Ratios are masked / sparse.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_sparse_linear import versions
from machine import processor
from torch import Tensor, nn

import topogen as tg
import topogen_torch as tt
from topogen_torch.data import load_data

DROP, MOMENTUM, DECAY, RATE = 0.3, 0.9, 1e-4, 0.1
OPTIONS = ("data-dir", "batch", "epochs", "update-every", "threads", "seed")


class MaskedSET:
    """SET on dense layers with masks, as simulators of sparsity have it."""

    def __init__(self, layers: list[nn.Linear], optimizer: torch.optim.Optimizer, update_every: int, seed: int) -> None:
        self.layers, self.optimizer, self.every = layers, optimizer, update_every
        self.masks = [layer.weight != 0 for layer in layers]
        self.generator = torch.Generator().manual_seed(seed)
        self.count, self.seconds = 0, 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Mask the weights; drop and grow if it is time. The clock of `seconds` counts the latter."""
        self.count += 1
        for layer, mask in zip(self.layers, self.masks, strict=True):
            layer.weight *= mask
        if self.count % self.every == 0:
            start = time.perf_counter()
            for layer, mask in zip(self.layers, self.masks, strict=True):
                self._rewire(layer.weight, mask.view(-1))
            self.seconds += time.perf_counter() - start

    def _rewire(self, weight: nn.Parameter, mask: Tensor) -> None:
        flat, stored = weight.view(-1), mask.nonzero().view(-1)
        values = flat[stored]
        dropped = []
        for side in ((values >= 0).nonzero().view(-1), (values < 0).nonzero().view(-1)):
            worst = values[side].abs().topk(int(DROP * len(side)), largest=False).indices
            dropped.append(stored[side[worst]])
        gone = torch.cat(dropped)
        mask[gone] = False
        empty = (~mask).nonzero().view(-1)
        grown = empty[torch.randperm(len(empty), generator=self.generator)[: len(gone)]]
        mask[grown] = True
        flat[gone] = 0.0
        self.optimizer.state[weight]["momentum_buffer"].view(-1)[grown] = 0.0


class Timed:
    """A controller, and the seconds spent in it."""

    def __init__(self, controller: Any) -> None:
        self.controller, self.seconds = controller, 0.0

    def step(self) -> None:
        start = time.perf_counter()
        self.controller.step()
        self.seconds += time.perf_counter() - start


def contestant(args: argparse.Namespace, steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Return the model of ``--child``, its optimizer and its method."""
    torch.manual_seed(args.seed)
    sizes, density = (784, *args.hidden, 10), args.density[0]
    densities = (*[density] * len(args.hidden), 1.0)
    model: nn.Module = tt.sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=sizes, density=densities), rng=args.seed))
    hidden = [str(2 * k) for k in range(len(args.hidden))]  # the read-out stays dense
    if args.child == "masked":
        model = tt.densify(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    if args.child == "masked":
        layers = [model.get_submodule(name) for name in hidden]
        return model, optimizer, MaskedSET(layers, optimizer, args.update_every, args.seed)  # pyright: ignore[reportArgumentType]
    if args.child == "set":
        method = tt.SET(
            model, optimizer, rng=args.seed, update_every=args.update_every, drop_fraction=DROP, layers=hidden
        )
    else:
        method = tt.RigL(model, optimizer, end_step=steps + 1, update_every=args.update_every, layers=hidden)
    return model, optimizer, Timed(method)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, method: Any, x: Tensor, y: Tensor, batch: int) -> None:
    """Take one epoch."""
    order = torch.randperm(len(y))
    for chosen in order.split(batch):
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()


def child(args: argparse.Namespace) -> None:
    """Train one contestant and print what it took, as JSON."""
    torch.set_num_threads(args.threads)
    data = load_data("mnist", args.data_dir)
    x, y, test_x, test_y = map(torch.from_numpy, (data.train_x, data.train_y, data.test_x, data.test_y))
    few = args.batch * (args.update_every + 1)
    warm = argparse.Namespace(**vars(args) | {"hidden": [64] * len(args.hidden), "density": [0.1]})
    train(*contestant(warm, few // args.batch), x[:few], y[:few], args.batch)  # compiles every kernel there is
    before = settle()
    model, optimizer, method = contestant(args, args.epochs * -(-len(y) // args.batch))
    settle()  # what building needed is not training
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    for _ in range(args.epochs):
        train(model, optimizer, method, x, y, args.batch)
    seconds = time.perf_counter() - start
    peak = status("VmHWM") - before
    with torch.no_grad():
        hits = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(test_x.split(1000), test_y.split(1000), strict=True)
        )
    found = {"seconds": seconds, "rewiring": method.seconds, "peak": peak, "accuracy": hits / len(test_y)}
    print(json.dumps(found | {"updates": args.epochs * -(-len(y) // args.batch) // args.update_every}))


def status(name: str) -> int:
    """Return a line of Linux's account of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def settle() -> int:
    """Give back what is free, forget the peak so far, and return what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def ask(args: argparse.Namespace, name: str, density: float) -> dict[str, Any]:
    """Run one contestant in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", name, "--density", str(density)]
    command += ["--hidden", *map(str, args.hidden)]
    for option in OPTIONS:
        value = getattr(args, option.replace("-", "_"))
        command += [f"--{option}", str(value)] if value is not None else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"name": name, "density": density} | json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> dict[str, Any]:
    facts = {"cpu": processor(), "threads": args.threads, **versions()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    sizes = "-".join(map(str, (784, *args.hidden, 10)))
    setting = f"{args.epochs} epochs, batch {args.batch}, SGD with momentum, update every {args.update_every}"
    print(f"{sizes} on MNIST, {setting}")
    print("\n| density | | training | masked / this | rewiring, share | memory | masked / this | accuracy |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    rows: list[dict[str, Any]] = []
    for density in args.density:
        masked = ask(args, "masked", density)
        for found in (masked, *(ask(args, name, density) for name in ("set", "rigl"))):
            rows.append(found)
            title = {"masked": "SET, masked dense", "set": "**SET, sparse**", "rigl": "RigL, sparse"}[found["name"]]
            cells = (
                f"{found['seconds']:.1f} s", f"{masked['seconds'] / found['seconds']:.1f}x",
                f"{100 * found['rewiring'] / found['seconds']:.2f} %", f"{found['peak'] / 1e6:.0f} MB",
                f"{masked['peak'] / found['peak']:.1f}x", f"{100 * found['accuracy']:.2f} %",
            )  # fmt: skip
            print(f"| {100 * density:g} % | {title} | {' | '.join(cells)} |", flush=True)
    return facts | {"arguments": vars(args), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with mnist/")
    parser.add_argument("--hidden", type=int, nargs="+", default=[4096, 4096])
    parser.add_argument("--density", type=float, nargs="+", default=[0.05, 0.01])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--update-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", choices=("masked", "set", "rigl"), default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    found = run(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
