"""Measure launch settings on a card, and keep the fastest of each pass: ``topogen bench --tune``, and the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from topogen_torch._gpu._accuracy import KERNELS
from topogen_torch._gpu._cases import Case, Operands, index_of, operands_of
from topogen_torch._gpu._config import Config, default_config
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._gpu._timed import pass_calls, seconds_per_batch
from topogen_torch._gpu._tuning import cache_file, config_for, keep, key_of

__all__ = ["Trial", "Tuned", "candidates", "first_trials", "launch_once", "tune", "tune_pass", "tuning_cases"]

SIZES = (4096, 2048, 1024, 8192)
BLOCKS = (64, 128, 32, 16)
SPARSITIES = (0.9, 0.8, 0.95)
TOKENS = 8192

_ROUNDS = 3  # the default alone, what is around it, and what is around the fastest of those
_AT_ONCE = {  # fields that change one by one, and together: an accumulator twice as large wants twice the threads
    "product": ("tokens", "depth", "warps", "group", ("tokens", "warps"), ("tokens", "warps", "group")),
    "gradient": ("tokens", "warps", "split_k", "blocks", ("blocks", "warps"), ("blocks", "split_k"),
                 ("blocks", "warps", "split_k")),
}  # fmt: skip
_LEAST = {"tokens": 16, "depth": 16, "warps": 2, "stages": 2}


class Tuned(NamedTuple):
    """The fastest setting of one pass that was found, and its seconds beside those that it was looked for around."""

    key: str
    config: Config
    seconds: float
    default_seconds: float


class Trial(NamedTuple):
    """One setting of one of the three passes of a layer."""

    case: Case
    kernel: str
    place: int
    config: Config


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
    for case, kernel in chosen:
        passes = (tune_pass(case, kernel, place, tokens, dtype, card, _ROUNDS, device) for place in range(3))
        gains = ", ".join(f"{each.default_seconds / each.seconds:.2f}x" for each in passes if each is not None)
        on_step(f"{case.n} neurons, blocks of {case.block}, {case.name}: {gains}")
    return cache_file() if chosen else None


def tune_pass(
    case: Case, kernel: str, place: int, tokens: int, dtype: torch.dtype, card: str, rounds: int, device: torch.device
) -> Tuned | None:
    """Tune one of the three passes of a layer in so many rounds, each around the fastest of the last, and keep it.

    None if not even the setting that is there can run.
    """
    found = _tuned(case, kernel, place, operands_of(case, tokens, dtype, device), rounds)
    if found is not None:
        keep(card, {found.key: found.config})
    return found


def first_trials(case: Case, kernel: str, tokens: int, dtype: torch.dtype, device: torch.device) -> list[Trial]:
    """Return what `tune_pass` measures in its first two rounds: to be compiled ahead, in other processes."""
    index = index_of(case.blocks(), case.block, device)
    return [
        Trial(case, kernel, place, config)
        for place, (name, _) in enumerate(KERNELS[kernel])
        for config in _with_candidates(_start(name, index, dtype, tokens), name)
    ]


def launch_once(trial: Trial, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile a setting, which Triton keeps on disk, and see that it runs."""
    pass_calls(trial.kernel, operands_of(trial.case, tokens, dtype, device), trial.config)[trial.place](0)


def candidates(config: Config, kind: str) -> list[Config]:
    """Return the settings around one that `tune` tries."""
    is_gradient = kind.endswith("value_gradient")
    changes: list[dict[str, int]] = []
    for names in _AT_ONCE["gradient" if is_gradient else "product"]:
        fields = (names,) if isinstance(names, str) else names
        # Of three fields the last moves against the others: the same number of programs, of tokens side by side.
        for factors in ((2, 2, 0.5), (0.5, 0.5, 2)):
            changes.append({name: int(getattr(config, name) * by) for name, by in zip(fields, factors, strict=False)})
    if "circulant" in kind and not is_gradient:
        changes += [{"blocks": config.blocks * 2}, {"blocks": config.blocks // 2}]
    step = 2 if kind in ("forward", "input_gradient") else 1  # every second stage holds the index
    changes += [{"stages": config.stages + by} for by in (step, -step)]
    changes += [{"split_k": config.split_k + by} for by in (1, -1) if is_gradient]
    legal = (each for each in changes if all(value >= _LEAST.get(name, 1) for name, value in each.items()))
    return list(dict.fromkeys(replace(config, **each) for each in legal))


def _with_candidates(config: Config, kind: str) -> list[Config]:
    return [config, *(each for each in candidates(config, kind) if each != config)]


def _start(kind: Any, index: BlockIndex, dtype: torch.dtype, tokens: int) -> Config:
    """Return the setting that a layer has so far."""
    return config_for(kind, index, dtype, tokens, "ieee") or default_config(
        kind, block=index.block, dtype=dtype, n_in=index.n_in, n_out=index.n_out, density=index.density, tokens=tokens,
        precision="ieee", **_limits(index.device),
    )  # fmt: skip


def _tuned(case: Case, kernel: str, place: int, operands: Operands, rounds: int) -> Tuned | None:
    name, index, x = KERNELS[kernel][place][0], operands.index, operands.xs[0]
    start = _start(name, index, x.dtype, x.shape[0])
    seconds: dict[Config, float] = {}
    around = [start]
    for _ in range(rounds):
        for config in around:
            if config in seconds:
                continue
            call = partial(pass_calls, kernel, operands, config)
            found = _seconds(lambda call=call: call()[place], len(operands.xs), index.device)
            if found is not None:
                seconds[config] = found
        if start not in seconds:
            return None
        around = candidates(min(seconds, key=seconds.__getitem__), name)
    best = min(seconds, key=seconds.__getitem__)
    kind: Any = name
    key = key_of(kind, case.block, x.dtype, index.density, case.n, case.n, x.shape[0], "ieee")
    return Tuned(key, best, seconds[best], seconds[start])


def _seconds(call: Callable[[], Any], batches: int, device: torch.device) -> float | None:
    """Return the seconds of a pass; None where we, the compiler or the card refuse the setting."""
    try:
        pass_ = call()
        pass_(0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception:  # compilers fail in many ways; a card that is lost shows in the next call
        return None
    return seconds_per_batch(pass_, batches, device)


def _limits(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    card = torch.cuda.get_device_properties(device)
    return {"processors": card.multi_processor_count, "shared_bytes": card.shared_memory_per_block_optin}
