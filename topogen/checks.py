"""Argument checks that write the one error sentence.

``The 'fan_in' parameter of RandomBiregular must be an int in [1, 784]. Got 900.``

Every check takes the value, the parameter's ``name`` and its ``owner`` (the class or function that the user called),
returns the value in normal form and raises `SpecError` otherwise. Adapters write the same sentence through them.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from topogen.errors import SpecError

__all__ = ["fits_in_memory", "instance", "integer", "integers", "one_of", "real", "refuse", "row"]

T = TypeVar("T")


def refuse(name: str, owner: str, requirement: str, value: object, *, hint: str = "") -> NoReturn:
    """Raise the one error sentence; `hint` adds the nearest thing that would work."""
    shown = repr(value)
    if len(shown) > 120:
        shown = f"{shown[:117]}..."
    raise SpecError(
        f"The '{name}' parameter of {owner} must be {requirement}. Got {shown}.{f' {hint}' if hint else ''}"
    )


def integer(value: Any, name: str, owner: str, *, low: int | None = None, high: int | None = None) -> int:
    """Return `value` as an int of [low, high]; a bool, a float or a string is refused, whatever its value."""
    if isinstance(value, numbers.Integral) and not _is_bool(value):
        number = int(value)
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    refuse(name, owner, f"an int{_interval(low, high)}", value)


def row(value: Any, name: str, owner: str, requirement: str) -> tuple[Any, ...]:
    """Return `value`, any finite iterable but a string or a mapping, as a tuple."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict, set, frozenset)):
        try:
            return tuple(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        except TypeError:  # an array of no dimensions is an Iterable that cannot be iterated over
            pass
    refuse(name, owner, requirement, cast(object, value))


def integers(
    value: Any, name: str, owner: str, *, low: int | None = None, high: int | None = None, at_least: int = 0
) -> tuple[int, ...]:
    """Return `value` as a tuple of at least `at_least` ints of [low, high]; the error names the entry at fault."""
    requirement = f"a sequence of{f' at least {at_least}' if at_least else ''} ints{_interval(low, high)}"
    entries = row(value, name, owner, requirement)
    if len(entries) < at_least:
        refuse(name, owner, requirement, value)
    return tuple(integer(entry, f"{name}[{i}]", owner, low=low, high=high) for i, entry in enumerate(entries))


def real(
    value: Any, name: str, owner: str, *, low: float = 0.0, high: float = math.inf, open_low: bool = False
) -> float:
    """Return `value` as a finite float of [low, high], or of (low, high] with `open_low`."""
    if isinstance(value, numbers.Real) and not _is_bool(value):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and low <= number <= high and not (open_low and number == low):
            return number
    closing = "inf)" if high == math.inf else f"{high:g}]"
    refuse(name, owner, f"a finite number in {'(' if open_low else '['}{low:g}, {closing}", value)


def one_of(value: Any, name: str, owner: str, choices: Sequence[T]) -> T:
    """Return the element of `choices` that equals `value`."""
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    shown = " or ".join(repr(choice) for choice in choices)
    refuse(name, owner, shown, value)


def instance(value: Any, name: str, owner: str, kind: type[T], article: str = "a") -> T:
    """Return `value`, an instance of `kind`."""
    if isinstance(value, kind):
        return value
    refuse(name, owner, f"{article} {kind.__name__}", value)


def fits_in_memory(needed: int, name: str, owner: str) -> None:
    """Refuse, before anything is allocated, what needs more bytes than this machine has available."""
    available = _available_bytes()
    if available is not None and needed > available:
        raise SpecError(
            f"The '{name}' parameter of {owner} must describe something that fits in memory. "
            f"It needs {needed:,} bytes and {available:,} are available."
        )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _interval(low: int | None, high: int | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" >= {low}"
    return f" <= {high}" if low is None else f" in [{low}, {high}]"


def _available_bytes() -> int | None:
    """Memory that can be had without swapping, or physical memory where only that is known, or None."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
