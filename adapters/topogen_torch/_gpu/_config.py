"""How a pass is cut into programs: what a tuning table holds, and what is taken where there is no entry.

None of the defaults is measured: they come from the arithmetic of registers, shared memory and traffic that stands
beside them, and the tests compile each of them for sm_80 and sm_90 and see that no register spills.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from topogen import checks

__all__ = [
    "ACTIVATIONS", "PRECISIONS", "Activation", "Config", "Pass", "Precision", "checked_config", "default_config",
    "fitted",
]  # fmt: skip

Activation = Literal["relu", "gelu"]
ACTIVATIONS: tuple[Activation | None, ...] = (None, "relu", "gelu")

Pass = Literal[
    "forward",
    "input_gradient",
    "value_gradient",
    "circulant_forward",
    "circulant_input_gradient",
    "circulant_value_gradient",
]
Precision = Literal["tf32", "ieee"]
PRECISIONS: tuple[Precision, ...] = ("tf32", "ieee")

A100_SHARED_BYTES = 166_912
H200_PROCESSORS = 132

_BESIDE = 2**23  # bytes of activations that programs side by side read: they stay in L2 with all that passes through


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Tiles and launch parameters of one pass. All but `split_k` and `stages` are powers of two.

    Parameters
    ----------
    tokens : int
        At least 16. Products: tokens a program, the M dimension. Value gradients: tokens a step, the K dimension.
    depth : int
        At least 16. Products: connections of an output a step, the K dimension; it divides the block or is a multiple
        of it, and then several blocks are merged into a step. Value gradients do not use it.
    blocks : int
        Blocks side by side in a program. Block products: 1. Value gradient: blocks of one input block. Circulant
        passes: neighbouring nodes of a class.
    split_k : int
        Value gradients: parts of the tokens that programs of their own sum, added up afterwards in a fixed order.
    warps, stages : int
        Triton's ``num_warps`` and ``num_stages``. Of the stages of a block product, every second one goes to the index
        that must arrive before its operands can be asked for: six of them keep three steps of operands on their way.
    group : int
        Products: token tiles that run side by side over all outputs, so that their activations stay in L2.
    """

    tokens: int
    depth: int = 64
    blocks: int = 1
    split_k: int = 1
    warps: int = 4
    stages: int = 3
    group: int = 8


def default_config(
    kind: Pass,
    *,
    block: int,
    dtype: torch.dtype,
    n_in: int,
    n_out: int,
    density: float,
    tokens: int,
    precision: Precision = "tf32",
    processors: int = H200_PROCESSORS,
    shared_bytes: int = A100_SHARED_BYTES,
) -> Config:
    """Return tiles that fit the registers and the shared memory of a card from sm_80 on. Not tuned for any.

    Parameters
    ----------
    kind : str
        One of `Pass`.
    block : int
        16, 32, 64 or 128.
    dtype : torch.dtype
        float16, bfloat16 or float32.
    n_in, n_out, tokens : int
        Neurons and rows of the activations.
    density : float
        Stored blocks / possible blocks.
    precision : {"tf32", "ieee"}
        Of float32.
    processors : int
        Multiprocessors of the card: value gradients are split until each has two programs.
    shared_bytes : int
        Shared memory that a program may take: stages are left out until they fit.

    Returns
    -------
    Config
    """
    exact = dtype == torch.float32 and precision == "ieee"
    if kind.endswith("value_gradient"):
        config = _gradient_tiles(kind, block, dtype.itemsize, exact, density * n_out / block)
    else:
        config = _product_tiles(kind, block, dtype.itemsize, exact)
    config = fitted(
        config, kind, block=block, dtype=dtype, n_in=n_in, n_out=n_out, density=density, tokens=tokens,
        processors=processors,
    )  # fmt: skip
    while config.stages > 2 and _shared_bytes(kind, config, block, dtype.itemsize) > shared_bytes:
        config = replace(config, stages=config.stages - 1)
    return config


def fitted(
    config: Config,
    kind: Pass,
    *,
    block: int,
    dtype: torch.dtype,
    n_in: int,
    n_out: int,
    density: float,
    tokens: int,
    processors: int,
) -> Config:
    """Return the same tiles, cut to the size of a layer, in as many parts and such an order as suits it.

    Parameters
    ----------
    config : Config
        Whose `split_k` and `group` do not matter.
    kind, block, dtype, n_in, n_out, density, tokens, processors
        As for `default_config`.
    """
    if not kind.endswith("value_gradient"):
        rows = min(config.tokens, max(16, _power_above(tokens)))
        read = rows * (n_out if kind.endswith("input_gradient") else n_in) * dtype.itemsize
        return replace(config, tokens=rows, group=max(1, min(16, _power_above(_BESIDE // read + 1) // 2)))
    blocks = config.blocks
    if kind == "value_gradient":
        blocks = min(blocks, _power_above(round(density * n_out / block)))
    per_program = blocks if kind == "value_gradient" else blocks**2
    programs = max(1, round(n_in * n_out * density / block**2 / per_program))
    split = min(-(-2 * processors // programs), max(1, tokens // 512))
    return replace(config, blocks=blocks, split_k=split)


def _product_tiles(kind: Pass, block: int, itemsize: int, exact: bool) -> Config:
    side = max(1, 128 // block) if kind.startswith("circulant") else 1  # 128 outputs side by side, where they share
    if exact:  # no tensor cores: every thread holds its own operands
        return Config(tokens=64, depth=16, blocks=max(1, side // 2), stages=2, warps=8 if side > 1 else 4)
    width = block * side
    return Config(
        tokens=256 if width <= 64 and itemsize == 2 else 128,
        depth=64 if itemsize == 2 else 32,  # 128 bytes of a row a step: a whole cache line
        blocks=side,
        warps=8 if width > 32 else 4,
        # With three steps of a square tile on their way, and two of a narrow one, a processor of an H200 holds two
        # programs or three: while one waits for its index or writes its result, another multiplies.
        stages=3 if kind.startswith("circulant") else 6 if width > 64 else 4,
    )


def _gradient_tiles(kind: Pass, block: int, itemsize: int, exact: bool, fan_out: float) -> Config:
    width = 64 if exact else 128 if itemsize == 4 or kind.startswith("circulant") else 256
    blocks = max(1, width // block)
    if kind == "value_gradient":
        blocks = min(blocks, _power_above(round(fan_out)))
    if exact:
        return Config(tokens=16, blocks=blocks, warps=8 if block == 128 else 4, stages=2)
    entries = blocks * block * (block if kind == "value_gradient" else blocks * block)
    if entries > 16384:  # half of the registers hold the sums: shorter steps
        return Config(tokens=32, blocks=blocks, warps=8, stages=4)
    return Config(tokens=64 if itemsize == 2 else 32, blocks=blocks, warps=8 if entries > 8192 else 4, stages=3)


def _shared_bytes(kind: Pass, config: Config, block: int, itemsize: int) -> int:
    """Return the bytes of the operands that are on their way at a time.

    Triton copies ahead as many steps as there are stages. Where an index must arrive before its operands can be asked
    for, it keeps every second stage for the index.
    """
    width = config.blocks * block
    if kind == "value_gradient":
        return config.stages * config.tokens * (width + block) * itemsize
    if kind == "circulant_value_gradient":
        return config.stages * config.tokens * 2 * width * itemsize
    buffers = config.stages if kind.startswith("circulant") else -(-config.stages // 2)
    return buffers * config.depth * (config.tokens + width) * itemsize


def _power_above(number: int) -> int:
    """Return the least power of two from `number` on."""
    return 1 << max(0, number - 1).bit_length()


def checked_config(config: Config, owner: str, block: int) -> Config:
    """Return the tiles; refuse those of which the interpreter makes nothing and the compiler an error."""
    side = {"tokens": (16, 1024), "depth": (16, 512), "blocks": (1, 512 // block), "group": (1, 1024), "warps": (1, 32)}
    for name, (low, high) in side.items():
        given = getattr(config, name)
        if checks.integer(given, f"config.{name}", owner, low=low, high=high) & (given - 1):
            nearest = f"The nearest are {_power_above(given) // 2} and {_power_above(given)}."
            checks.refuse(f"config.{name}", owner, f"a power of two in [{low}, {high}]", given, hint=nearest)
    checks.integer(config.split_k, "config.split_k", owner, low=1, high=1024)
    checks.integer(config.stages, "config.stages", owner, low=1, high=16)
    return config
