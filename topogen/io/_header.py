"""What a file says of a topology besides its connections: one JSON text."""

from __future__ import annotations

import json
import numbers
from typing import Any, NamedTuple

import numpy as np

from topogen import checks
from topogen._spec import AbstractSpec, spec_from_json, spec_to_json
from topogen._topology import Topology
from topogen._version import __version__
from topogen.errors import FormatError, SpecError

__all__ = ["FORMAT", "Header", "header_from_json", "header_to_json"]

FORMAT = "topogen topology"
_PLAIN, _WITH_RELAYS = 1, 2  # versions; a topology without relays is written as it was before there were any
_KEYS = ("sizes", "spec", "seed", "sha256")


class Header(NamedTuple):
    """The header of a file, checked."""

    sizes: tuple[int, ...]
    spec: AbstractSpec | None
    seed: np.random.SeedSequence | None
    sha256: str
    has_relays: bool


def header_to_json(net: Topology, sha256: str) -> str:
    """Return the header of `net`, whose content hash is `sha256`; SpecError where `load` would refuse it."""
    header = {
        "format": FORMAT,
        "version": _WITH_RELAYS if any(row.size for row in net.relays) else _PLAIN,
        "topogen": __version__,
        "sizes": net.sizes,
        "spec": _spec_to_plain(net),
        "seed": None if net.seed is None else _seed_to_plain(net.seed),
        "sha256": sha256,
    }
    return json.dumps(header)


def header_from_json(text: str) -> Header:
    """Return the header that `text` is; FormatError, with the reason alone, where it is none."""
    try:
        plain: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its header is not JSON ({error}).") from None
    if not isinstance(plain, dict):
        raise FormatError(f"its header must be a JSON object. Got {_start(text)}.")
    header: dict[str, Any] = plain  # pyright: ignore[reportUnknownVariableType]
    if header.get("format") != FORMAT:
        raise FormatError(f"its header must say that it is a '{FORMAT}'. Got {_start(text)}.")
    version = header.get("version")
    if type(version) is not int or version not in (_PLAIN, _WITH_RELAYS):
        raise FormatError(
            f"it has format version {version!r}, written by topogen {header.get('topogen')!r}; "
            f"this is topogen {__version__}, which reads versions {_PLAIN} and {_WITH_RELAYS}."
        )
    missing = [key for key in _KEYS if key not in header]
    if missing:
        raise FormatError(f"its header has no {' and no '.join(map(repr, missing))}.")
    try:
        sizes = checks.integers(header["sizes"], "sizes", "the header", low=1, at_least=2)
    except SpecError as error:
        raise FormatError(f"its sizes are impossible: {error}") from None
    return Header(
        sizes,
        _spec_from_plain(header["spec"], sizes),
        _seed_from_plain(header["seed"]),
        header["sha256"],
        has_relays=version == _WITH_RELAYS,
    )


def _spec_to_plain(net: Topology) -> Any:
    """Return the spec as JSON objects, once it is sure that it reads back."""
    if net.spec is None:
        return None
    if net.spec.sizes != net.sizes:
        raise SpecError(
            f"The 'net' parameter of save must have a spec of its own sizes. Got {net.sizes} and {net.spec!r}."
        )
    try:
        text = spec_to_json(net.spec)
        faithful = spec_from_json(text) == net.spec
    except (TypeError, ValueError) as error:
        raise SpecError(f"The spec of 'net' must have a JSON form. Got {net.spec!r}: {error}") from None
    if not faithful:
        raise SpecError(f"The spec of 'net' must equal what is read from its JSON form. Got {net.spec!r} and {text}.")
    return json.loads(text)


def _spec_from_plain(plain: Any, sizes: tuple[int, ...]) -> AbstractSpec | None:
    if plain is None:
        return None
    try:
        spec = spec_from_json(json.dumps(plain))
    except (LookupError, ArithmeticError, AttributeError, RecursionError) as error:  # fields that no family writes
        raise FormatError(f"its spec is impossible ({type(error).__name__}: {error}).") from None
    if spec.sizes != sizes:
        raise FormatError(f"its spec describes the sizes {spec.sizes} and its header says {sizes}.")
    return spec


def _seed_to_plain(seed: np.random.SeedSequence) -> dict[str, Any]:
    return {"entropy": _words(seed.entropy), "spawn_key": _words(seed.spawn_key), "pool_size": int(seed.pool_size)}


def _words(entropy: Any) -> Any:
    """Return what a SeedSequence is made of, ints, texts of ints and nested rows of them, in Python's own types."""
    if isinstance(entropy, numbers.Integral):
        return int(entropy)
    return entropy if isinstance(entropy, str) else [_words(word) for word in entropy]


def _seed_from_plain(plain: Any) -> np.random.SeedSequence | None:
    if plain is None:
        return None
    try:
        if plain["entropy"] is None:  # numpy would draw one
            raise ValueError("no entropy")
        if not 4 <= plain["pool_size"] <= 4096:  # 4 unless asked otherwise; mixing takes quadratic time
            raise ValueError(f"a pool of {plain['pool_size']} words")
        return np.random.SeedSequence(plain["entropy"], spawn_key=plain["spawn_key"], pool_size=plain["pool_size"])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise FormatError(f"its seed is no SeedSequence ({type(error).__name__}: {error}).") from None


def _start(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
