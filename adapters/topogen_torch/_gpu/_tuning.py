"""Launch settings that were measured on a card, from the table that is shipped and from the user's own.

A table is JSON: card name -> key of a pass -> the fields of a `Config`. A key names the pass, the block, the dtype
(``tf32`` for float32 on tensor cores), the least of `DENSITIES` that the layer's does not pass by more than a
hundredth, and size and tokens rounded up to powers of two. What was measured on one card is never taken on another.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from topogen.io import replacing
from topogen_torch._gpu._config import Config, Pass, Precision, fitted
from topogen_torch._gpu._index import BlockIndex

__all__ = ["DENSITIES", "cache_file", "config_for", "keep", "key_of", "tuned"]

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Upper ends of the buckets of densities."""

Table = dict[str, dict[str, Config]]

_SHIPPED = "tuned.json"
_KEY = re.compile(r"(.+) density<=(\S+) size<=(\d+) tokens<=(\d+)")
_log = logging.getLogger("topogen")
_noticed: set[str] = set()


def config_for(kind: Pass, index: BlockIndex, dtype: torch.dtype, tokens: int, precision: Precision) -> Config | None:
    """Return what was measured for such a pass on the index's card, at this density and size or the nearest to them.

    None if nothing was, and one notice where nothing is known of the card. Only a card is looked up: elsewhere there is
    nothing to tune.
    """
    if index.device.type != "cuda":
        return None
    return _found(
        *_card(index.device), kind, index.block, dtype, index.density, index.n_in, index.n_out, tokens, precision
    )


def key_of(
    kind: Pass, block: int, dtype: torch.dtype, density: float, n_in: int, n_out: int, tokens: int,
    precision: Precision = "ieee",
) -> str:  # fmt: skip
    """Return the key of a pass.

    Examples
    --------
    >>> key_of("forward", 64, torch.bfloat16, 0.1, 4096, 4096, 8000)
    'forward block=64 bfloat16 density<=0.1 size<=4096 tokens<=8192'
    """
    bound = next((bound for bound in DENSITIES if density <= 1.01 * bound), 1.0)  # a tenth of the blocks, rounded up
    size, rows = (1 << max(0, math.ceil(math.log2(max(1.0, number)))) for number in (math.sqrt(n_in * n_out), tokens))
    name = "tf32" if dtype == torch.float32 and precision == "tf32" else str(dtype).removeprefix("torch.")
    return f"{kind} block={block} {name} density<={bound:g} size<={size} tokens<={rows}"


def tuned(card: str) -> dict[str, Config]:
    """Return all that is known of a card: what the user measured, else what is shipped."""
    return {**_shipped().get(card, {}), **_kept().get(card, {})}


def keep(card: str, found: Mapping[str, Config]) -> Path:
    """Add measured settings of a card to the user's table, which is replaced whole or not at all; return its file."""
    path = cache_file()
    table = _read(path)
    table.setdefault(card, {}).update(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = {name: {key: asdict(config) for key, config in sorted(of.items())} for name, of in sorted(table.items())}
    with replacing(path) as file:
        file.write((json.dumps(shown, indent=1) + "\n").encode())
    _kept.cache_clear()
    _found.cache_clear()
    return path


def cache_file() -> Path:
    """Return the user's table: in ``$TOPOGEN_CACHE``, else in the folder where this system keeps caches."""
    chosen = os.environ.get("TOPOGEN_CACHE")
    if chosen:
        return Path(chosen) / "gpu_tuning.json"
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "topogen" / "gpu_tuning.json"


@lru_cache(maxsize=4096)
def _found(
    card: str, processors: int, kind: Pass, block: int, dtype: torch.dtype, density: float, n_in: int, n_out: int,
    tokens: int, precision: Precision,
) -> Config | None:  # fmt: skip
    known = tuned(card)
    if not known and card not in _noticed:
        _noticed.add(card)
        _log.warning(
            "The block-sparse kernels have not been tuned for %s and run with general settings; "
            "'topogen bench --tune' measures better ones on it and keeps them.",
            card,
        )
    key = key_of(kind, block, dtype, density, n_in, n_out, tokens, precision)
    nearest = _nearest(known, key)
    if nearest is None or nearest == key:
        return None if nearest is None else known[key]
    return fitted(
        known[nearest], kind, block=block, dtype=dtype, n_in=n_in, n_out=n_out, density=density, tokens=tokens,
        processors=processors,
    )  # fmt: skip


def _nearest(known: Mapping[str, Config], key: str) -> str | None:
    """Return the key of the same pass, block and dtype at the nearest density, size and number of tokens."""
    pass_, *wanted = _parts(key)

    def distance(other: str) -> float:
        return sum(abs(math.log2(one / another)) for one, another in zip(_parts(other)[1:], wanted, strict=True))

    return min((other for other in known if _parts(other)[0] == pass_), key=distance, default=None)


def _parts(key: str) -> tuple[Any, ...]:
    """Return what `key_of` made of pass, block and dtype, and its three numbers."""
    found = _KEY.fullmatch(key)
    return (found[1], *map(float, found.groups()[1:])) if found else (None,)


@lru_cache(maxsize=16)
def _card(device: torch.device) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count


@lru_cache(maxsize=1)
def _shipped() -> Table:
    return _table(json.loads(files("topogen_torch._gpu").joinpath(_SHIPPED).read_text()))


@lru_cache(maxsize=1)
def _kept() -> Table:
    return _read(cache_file())


def _read(path: Path) -> Table:
    """Return the table in a file; an empty one, and a warning, where it is damaged: it can be measured again."""
    try:
        return _table(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _log.warning("The tuning table %s cannot be read and is not used: %s.", path, error)
        return {}


def _table(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    return {card: {key: _config(of) for key, of in entries.items()} for card, entries in found.items()}


def _config(found: dict[str, Any]) -> Config:
    """Return a stored entry; `ValueError` if it is none."""
    known = {field.name for field in fields(Config)}
    if set(found) - known or not all(type(value) is int and value >= 1 for value in found.values()):
        raise ValueError(f"{found} is no launch setting")
    return Config(**found)
