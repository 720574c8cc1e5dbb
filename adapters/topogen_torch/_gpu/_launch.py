"""What every launch does with its operands first: refuse what the compiler or the card would, in one sentence."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
import triton
from torch import Tensor

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._gpu._config import PRECISIONS, Config, Pass, Precision, checked_config, default_config
from topogen_torch._gpu._index import BlockIndex

__all__ = [
    "BLOCKS", "DTYPES", "admitted_config", "admitted_index", "admitted_rows", "admitted_values", "beside", "in_rows",
    "is_interpreted",
]  # fmt: skip

BLOCKS = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_WIDEST = 2**21  # fewer features, or entries from one row to the next: within a tile of 1024 tokens, offsets are int32


def is_interpreted() -> bool:
    """Whether Triton runs on the host, as ``TRITON_INTERPRET=1`` has it when it is set before the first import."""
    return bool(cast(Any, triton).knobs.runtime.interpret)


def admitted_values(values: Tensor, index: BlockIndex, owner: str) -> Tensor:
    """Return the values, contiguous; refuse blocks, dtypes and devices that have no kernel."""
    admitted_index(index, owner)
    if values.dtype not in DTYPES:
        checks.refuse("values", owner, "float32, float16 or bfloat16", values.dtype)
    expected = (index.blocks, index.block, index.block)
    if tuple(values.shape) != expected:
        raise SpecError(
            f"The 'values' parameter of {owner} must have shape {expected}, (blocks, block, block). "
            f"Got {tuple(values.shape)}."
        )
    _same_device(values, "values", index, owner)
    return values.contiguous()


def admitted_index(index: BlockIndex, owner: str) -> None:
    """Refuse an index whose blocks have no kernel, or whose device runs none."""
    if index.block not in BLOCKS:
        checks.refuse("index", owner, "of blocks of 16, 32, 64 or 128 neurons", index.block)
    if max(index.n_in, index.n_out) >= _WIDEST:
        sizes = (index.n_in, index.n_out)
        checks.refuse("index", owner, f"of fewer than {_WIDEST} inputs and outputs", sizes)
    if index.device.type != "cuda" and not is_interpreted():
        checks.refuse("index", owner, "on a CUDA device, or Triton in its interpreter", str(index.device))


def admitted_rows(rows: Tensor, name: str, owner: str, features: int, dtype: torch.dtype, index: BlockIndex) -> Tensor:
    """Return activations of shape (tokens, features); those of another shape, dtype or device are refused."""
    if rows.ndim != 2 or rows.shape[1] != features:
        raise SpecError(
            f"The '{name}' parameter of {owner} must have shape (tokens, {features}). Got {tuple(rows.shape)}."
        )
    if rows.dtype != dtype:
        checks.refuse(name, owner, f"{dtype} as the other operands are", rows.dtype)
    _same_device(rows, name, index, owner)
    return in_rows(rows)


def in_rows(rows: Tensor) -> Tensor:
    """Return the matrix itself if the entries of each row lie side by side, whatever the rows' distance; else a copy.

    A row that starts in the middle of 16 bytes would be read value by value: copied as well.
    """
    in_reach = rows.stride(1) == 1 and rows.shape[1] <= rows.stride(0) < _WIDEST
    if in_reach and rows.stride(0) * rows.itemsize % 16 == 0 and rows.data_ptr() % 16 == 0:
        return rows
    return rows.clone(memory_format=torch.contiguous_format)


def _same_device(tensor: Tensor, name: str, index: BlockIndex, owner: str) -> None:
    if tensor.device != index.device:
        checks.refuse(name, owner, f"on {index.device} as the index is", str(tensor.device))


def admitted_config(
    config: Config | None, kind: Pass, index: BlockIndex, dtype: torch.dtype, tokens: int, precision: Precision,
    owner: str,
) -> Config:  # fmt: skip
    """Return the tiles that were given, or the default ones of this card; refuse what would not compile."""
    checks.one_of(precision, "precision", owner, PRECISIONS)
    if config is not None:
        return checked_config(config, owner, index.block)
    config = _default(
        kind, block=index.block, dtype=dtype, n_in=index.n_in, n_out=index.n_out, density=index.density, tokens=tokens,
        precision=precision, **_limits(index.device),
    )  # fmt: skip
    if kind.startswith("circulant") and index.circulant is not None:  # no more nodes side by side than a ring has
        config = replace(config, blocks=min(config.blocks, triton.next_power_of_2(index.circulant.ring)))
    return config


def beside(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the card that holds a tensor the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


_default = lru_cache(maxsize=4096)(default_config)  # at every launch, and a launch is counted in microseconds


@lru_cache(maxsize=64)
def _limits(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    card = torch.cuda.get_device_properties(device)
    return {"processors": card.multi_processor_count, "shared_bytes": card.shared_memory_per_block_optin}
