"""Measure launch settings on a card, and keep the fastest of each pass: ``topogen bench --tune``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from topogen.errors import SpecError
from topogen_torch._gpu._accuracy import KERNELS
from topogen_torch._gpu._cases import Case, operands_of
from topogen_torch._gpu._config import Config, default_config
from topogen_torch._gpu._timed import pass_calls, seconds_per_batch
from topogen_torch._gpu._tuning import keep, key_of

__all__ = ["Tuned", "candidates", "tune", "tuning_cases"]

SIZES = (4096, 2048, 1024, 8192)
BLOCKS = (64, 128, 32, 16)
SPARSITIES = (0.9, 0.8, 0.95)
TOKENS = 8192

_ROUNDS = 3  # the default alone, what is around it, and what is around the fastest of those


class Tuned(NamedTuple):
    """The fastest setting of one pass that was found, and its seconds beside those of the default."""

    key: str
    config: Config
    seconds: float
    default_seconds: float


def tuning_cases(
    sizes: Sequence[int] = SIZES, blocks: Sequence[int] = BLOCKS, sparsities: Sequence[float] = SPARSITIES
) -> list[tuple[Case, str]]:
    """Return the layers that are tuned, each with the kernel: random blocks, and the first layer of RadiX systems."""
    found = [
        (Case(n, block, "random", sparsity), "triton")
        for n in sizes for block in blocks for sparsity in sparsities if n % block == 0
    ]  # fmt: skip
    for n in sizes:
        for block in blocks:
            nodes = n // block
            first = 1 << nodes.bit_length() // 2
            if n % block == 0 and nodes >= 4 and not nodes & (nodes - 1):
                found.append((Case(n, block, "RadiX", 1 - first / nodes, (first, nodes // first)), "circulant"))
    return found


def tune(
    chosen: Sequence[tuple[Case, str]],
    device: torch.device,
    card: str,
    on_step: Callable[[str], None],
    *,
    tokens: int = TOKENS,
    dtype: torch.dtype = torch.bfloat16,
) -> Path | None:
    """Tune every case and keep what is found after each of them, so that an interrupted run has not been for nothing.

    Returns the file of the table, None where there was nothing to tune.
    """
    path = None
    for case, kernel in chosen:
        found = list(_tuned(case, kernel, tokens, dtype, device))
        path = keep(card, {each.key: each.config for each in found})
        gains = ", ".join(f"{each.default_seconds / each.seconds:.2f}x" for each in found)
        on_step(f"{case.n} neurons, blocks of {case.block}, {case.name}: {gains}")
    return path


def candidates(config: Config, kind: str) -> list[Config]:
    """Return the settings that differ from one in a single field: what `tune` tries around it."""
    fields = {"tokens": (2.0, 0.5), "warps": (2.0, 0.5), "stages": (1.5, 0.5)}
    if kind.endswith("value_gradient"):
        fields |= {"split_k": (2.0, 0.5), "blocks": (2.0, 0.5)}
    else:
        fields |= {"depth": (2.0, 0.5), "group": (2.0, 0.5)} | ({"blocks": (2.0, 0.5)} if "circulant" in kind else {})
    least = {"tokens": 16, "depth": 16, "warps": 2, "stages": 2}
    found: list[Config] = []
    for name, factors in fields.items():
        for factor in factors:
            value = int(getattr(config, name) * factor)
            if value >= least.get(name, 1):
                found.append(replace(config, **{name: value}))
    return found


def _tuned(case: Case, kernel: str, tokens: int, dtype: torch.dtype, device: torch.device) -> Iterator[Tuned]:
    operands = operands_of(case, tokens, dtype, device)
    index = operands.index
    for place, (name, _) in enumerate(KERNELS[kernel]):
        kind: Any = name
        default = default_config(
            kind, block=case.block, dtype=dtype, n_in=case.n, n_out=case.n, density=index.density, tokens=tokens,
            precision="ieee", **_limits(device),
        )  # fmt: skip
        seconds: dict[Config, float] = {}
        around = [default]
        for _ in range(_ROUNDS):
            for config in around:
                if config in seconds:
                    continue
                call = partial(pass_calls, kernel, operands, config)
                found = _seconds(lambda call=call, place=place: call()[place], len(operands.xs), device)
                if found is not None:
                    seconds[config] = found
            if not seconds:
                break
            around = candidates(min(seconds, key=seconds.__getitem__), name)
        if default in seconds:
            best = min(seconds, key=seconds.__getitem__)
            key = key_of(kind, case.block, dtype, index.density, case.n, case.n, tokens, "ieee")
            yield Tuned(key, best, seconds[best], seconds[default])


def _seconds(call: Callable[[], Any], batches: int, device: torch.device) -> float | None:
    """Return the seconds of a pass; None where the card has too little for the setting, or we refuse it."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    try:
        return seconds_per_batch(call(), batches, device)
    except (OutOfResources, CompilationError, SpecError):
        return None


def _limits(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    card = torch.cuda.get_device_properties(device)
    return {"processors": card.multi_processor_count, "shared_bytes": card.shared_memory_per_block_optin}
