"""Which modules a user means: name globs and types, and what to say where they mean none."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._conversion._survey import Survey

__all__ = ["Entry", "covers", "entries", "quoted", "refuse_unmatched"]

Entry = str | type[nn.Module]
"""A glob over names, in which ``*`` matches dots too, or a type of module."""

_REQUIREMENT = "a name glob, a type of module, or a sequence of them"


def entries(value: Any, name: str) -> tuple[Entry, ...]:
    """Return one glob or type, or several, as a tuple."""
    given = (value,) if isinstance(value, (str, type)) else checks.row(value, name, "sparsify", _REQUIREMENT)
    for entry in given:
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, nn.Module)):
            checks.refuse(name, "sparsify", _REQUIREMENT, value)
    return given


def quoted(name: str) -> str:
    """Return a name as a sentence has it."""
    return repr(name) if name else "the model"


def covers(entry: Entry, name: str, survey: Survey) -> bool:
    """Whether an entry means what is called `name`, or a module around it, under any of its names."""
    for alias in survey.aliases.get(name, [name]):
        if isinstance(entry, str):
            steps = alias.split(".")
            around = (".".join(steps[:length]) for length in range(len(steps) + 1))
            if any(fnmatchcase(outer, entry) for outer in around):
                return True
        elif any(isinstance(module, entry) for module in survey.holders.get(alias, [])):
            return True
    return False


def refuse_unmatched(given: Sequence[Entry], name: str, survey: Survey, extra: Sequence[str] = ()) -> None:
    """Refuse entries that match nothing in the model, and name what is nearest; `extra` are names of parts."""
    known = [*survey.holders, *extra]
    for entry in given:
        if any(fnmatchcase(other, entry) for other in known) if isinstance(entry, str) else _present(entry, survey):
            continue
        if isinstance(entry, str):
            near = get_close_matches(entry, filter(None, known), n=1, cutoff=0.0)
            shown, hint = repr(entry), f"; the nearest name is {near[0]!r}" if near else ""
        else:
            kinds = {type(chain[-1]).__name__ for chain in survey.holders.values()}
            near = get_close_matches(entry.__name__, kinds, n=1)
            shown, hint = entry.__name__, f"; the nearest type is {near[0]}" if near else ""
        raise SpecError(f"The '{name}' parameter of sparsify must match a module of the model. Got {shown}{hint}.")


def _present(entry: type[nn.Module], survey: Survey) -> bool:
    return any(isinstance(chain[-1], entry) for chain in survey.holders.values())
