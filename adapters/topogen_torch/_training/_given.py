"""Settings that were given, beside those that exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from topogen.errors import SpecError

__all__ = ["REQUIRED", "filled", "unknown"]

REQUIRED = object()  # stands where a setting has no default


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the defaults with what was given; refuse what has no default, and what was needed and not given."""
    for key in given:
        if key not in defaults:
            raise SpecError(f"The settings of {what} must be known ones ({unknown(key, defaults)}). Got {key!r}.")
    result = {**defaults, **given}
    missing = [key for key, value in result.items() if value is REQUIRED]
    if missing:
        raise SpecError(f"The settings of {what} must have {missing[0]!r}. Got {dict(given)}.")
    return result


def unknown(name: Any, known: Collection[str]) -> str:
    """Return what to say of an unknown name: the known one most like it, or all."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"the nearest is {near[0]!r}" if near else f"known: {', '.join(map(repr, known))}"
