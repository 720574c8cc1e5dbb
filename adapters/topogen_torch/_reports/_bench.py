"""``topogen bench``: how fast sparse layers are beside dense ones on this machine, by density and batch."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import torch
from torch import nn

import topogen as tg
from topogen import checks, kernels
from topogen_torch._layers import SparseLinear
from topogen_torch._reports._advice import BreakEven, break_even_of, density_text, kernel_of
from topogen_torch._reports._report_table import figures
from topogen_torch._reports._timing import calls_of, medians, random_inputs

__all__ = ["Bench", "BenchSettings", "Cell", "measure"]

_OWNER = "topogen bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What to measure: square layers of `size` neurons with random patterns."""

    size: int
    batches: tuple[int, ...]
    densities: tuple[float, ...]
    threads: int
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        checks.integer(self.size, "--size", _OWNER, low=1)
        checks.integers(self.batches, "--batch", _OWNER, low=1)
        checks.integer(self.threads, "--threads", _OWNER, low=1)
        checks.integer(self.seed, "--seed", _OWNER, low=0)
        checks.one_of(self.dtype, "--dtype", _OWNER, ("float32", "float64"))
        for density in self.densities:
            checks.real(density, "--density", _OWNER, low=0, high=1)
        checks.fits_in_memory(6 * self.size**2 * 4, "--size", _OWNER)

    @property
    def steps(self) -> int:
        """How many times `measure` says that it is done with something."""
        return 1 + len(self.batches) * (len(self.densities) + 1)


class Cell(NamedTuple):
    """One layer and one batch: seconds of the forward pass and of both, sparse and dense, and what multiplied."""

    density: float
    batch: int
    forward: float
    both: float
    dense_forward: float
    dense_both: float
    kernel: str


@dataclass(slots=True, kw_only=True)
class Bench:
    """What was measured so far."""

    settings: BenchSettings
    facts: dict[str, str]
    peak: float | None = None
    cells: list[Cell] = field(default_factory=list)
    break_even: dict[int, BreakEven] = field(default_factory=dict)
    complete: bool = False

    @property
    def dense_rates(self) -> dict[int, float]:
        """FLOP/s of the dense forward product by batch, the best that was seen."""
        rates: dict[int, float] = {}
        for cell in self.cells:
            rate = 2 * self.settings.size**2 * cell.batch / cell.dense_forward
            rates[cell.batch] = max(rate, rates.get(cell.batch, 0.0))
        return rates

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, strings, lists and dicts, ready for JSON; seconds, FLOP/s."""
        return {
            "facts": self.facts,
            "settings": asdict(self.settings),
            "complete": self.complete,
            "peak": self.peak,
            "dense_rates": {str(batch): rate for batch, rate in self.dense_rates.items()},
            "cells": [cell._asdict() for cell in self.cells],
            "break_even": {str(batch): found._asdict() for batch, found in self.break_even.items()},
        }

    def to_markdown(self) -> str:
        """Return the tables."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        settings = self.settings
        yield ", ".join(f"{name} {value}" for name, value in self.facts.items())
        yield ""
        layer = f"{settings.size} x {settings.size}, {settings.dtype}, {settings.threads} threads"
        yield f"{layer}, random patterns, medians of calls in turns with torch.nn.Linear"
        if self.peak is not None:
            yield ""
            yield from _rows(["", "GFLOP/s", "of the peak"])
            yield f"| multiply-adds in registers, the peak | {figures(self.peak / 1e9)} | 100 % |"
            for batch, rate in self.dense_rates.items():
                yield f"| dense forward, batch {batch} | {figures(rate / 1e9)} | {100 * rate / self.peak:.0f} % |"
        for title, own in (("forward", "forward"), ("forward + backward", "both")):
            yield ""
            yield from _rows([f"{title}, times dense speed", *(f"batch {batch}" for batch in settings.batches)])
            for density in settings.densities:
                found = {cell.batch: cell for cell in self.cells if cell.density == density}
                cells = [_speed(found.get(batch), own) for batch in settings.batches]
                yield f"| density {100 * density:.4g} % | {' | '.join(cells)} |"
            even = [self.break_even.get(batch) for batch in settings.batches]
            column = 0 if own == "forward" else 1
            texts = ["not measured" if found is None else density_text(found[column]) for found in even]
            yield f"| break-even density | {' | '.join(texts)} |"
        densely = [cell for cell in self.cells if cell.kernel != "rows"]
        if densely:
            yield ""
            where = ", ".join(f"{100 * cell.density:.4g} % at batch {cell.batch}" for cell in densely)
            yield f"multiplied densely, above the built-in break-even: {where}."
        if not self.complete:
            yield ""
            yield "stopped before everything was measured."


def measure(bench: Bench, on_step: Callable[[str], None]) -> None:
    """Fill `bench`; `on_step` is told what has just been done. What is there when it is interrupted holds."""
    settings = bench.settings
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        bench.peak = kernels.fma_peak(settings.dtype, threads=settings.threads)
        on_step("peak")
        for batch in settings.batches:
            for density in settings.densities:
                bench.cells.append(_cell(settings, density, batch))
                on_step(f"density {density:g}, batch {batch}")
            empty = _layer(settings, 0.0)
            found = break_even_of(empty, random_inputs(empty, (batch, settings.size)))
            if found is not None:
                bench.break_even[batch] = found
            on_step(f"break-even, batch {batch}")
        bench.complete = True
    finally:
        torch.set_num_threads(threads)


def facts() -> dict[str, str]:
    """Return what a reader must know of the machine."""
    return {
        "processor": llvm.get_host_cpu_name(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "topogen": tg.__version__,
    }


def _layer(settings: BenchSettings, density: float) -> SparseLinear:
    spec = tg.ErdosRenyi(sizes=(settings.size, settings.size), density=density)
    pattern = tg.generate(spec, rng=settings.seed)[0]
    return SparseLinear(pattern, bias=False, dtype=getattr(torch, settings.dtype))


def _cell(settings: BenchSettings, density: float, batch: int) -> Cell:
    layer = _layer(settings, density)
    dense = nn.Linear(settings.size, settings.size, bias=False, dtype=layer.values.dtype)
    inputs = random_inputs(layer, (batch, settings.size))
    calls = [*calls_of(layer, inputs, "sgd")[:2], *calls_of(dense, inputs, "sgd")[:2]]
    forward, both, dense_forward, dense_both = medians(calls, torch.device("cpu"))
    return Cell(density, batch, forward, both, dense_forward, dense_both, kernel_of(layer, batch))


def _rows(header: list[str]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"


def _speed(cell: Cell | None, name: str) -> str:
    if cell is None:
        return "not measured"
    mine, other = getattr(cell, name), getattr(cell, f"dense_{name}")
    return f"{figures(other / mine)}x ({figures(mine * 1e3)} of {figures(other * 1e3)} ms)"
