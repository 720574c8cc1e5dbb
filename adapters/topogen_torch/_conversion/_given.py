"""Patterns that the user gives: which layer gets which, from matrices, topologies and specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import scipy.sparse as sp

import topogen as tg
from topogen import checks
from topogen.errors import SpecError
from topogen_torch._conversion._globs import Entry, covers, entries, quoted, refuse_unmatched
from topogen_torch._conversion._kinds import Choice, Part
from topogen_torch._conversion._survey import Survey

__all__ = ["given_patterns"]

_OWNER = "sparsify"


def given_patterns(
    patterns: Any,
    parts: dict[str, Part],
    owners: dict[str, str],
    draws: dict[str, int],
    seed: np.random.SeedSequence | None,
    survey: Survey,
) -> dict[str, Choice]:
    """Return the pattern of each part that one of `patterns` names; the first that does counts.

    `owners` are the names of the modules that the parts belong to, `draws` the numbers of their random draws.
    """
    requirement = "a mapping of name globs or types to matrices, topologies or specs"
    if not isinstance(patterns, Mapping) or not patterns or not all(isinstance(key, (str, type)) for key in patterns):
        checks.refuse("patterns", _OWNER, requirement, patterns)
    refuse_unmatched([entry for key in patterns for entry in entries(key, "patterns")], "patterns", survey, [*parts])
    chosen: dict[str, Choice] = {}
    for entry, value in patterns.items():
        matched = [name for name in parts if name not in chosen and _means(entry, name, owners[name], survey)]
        if not matched:
            _refuse_taken(entry, survey)
        shown = f"patterns[{entry!r}]" if isinstance(entry, str) else f"patterns[{entry.__name__}]"
        for name, choice in zip(matched, _choices(value, shown, [draws[name] for name in matched], seed), strict=True):
            _check_shape(choice, name, parts[name], shown)
            chosen[name] = choice
    return chosen


def _means(entry: Entry, name: str, owner: str, survey: Survey) -> bool:
    return covers(entry, owner, survey) or (isinstance(entry, str) and fnmatchcase(name, entry))


def _refuse_taken(entry: Entry, survey: Survey) -> None:
    shown = repr(entry) if isinstance(entry, str) else entry.__name__
    for name, reason in survey.left.items():
        if covers(entry, name, survey):
            raise SpecError(
                f"The 'patterns' parameter of sparsify must match layers that can become sparse. "
                f"Got {shown}, but {quoted(name)} cannot: {reason}."
            )
    raise SpecError(
        f"The 'patterns' parameter of sparsify must match layers that 'include', 'exclude' and earlier patterns leave. "
        f"Got {shown}, which matches none."
    )


def _choices(value: Any, name: str, draws: Sequence[int], seed: np.random.SeedSequence | None) -> list[Choice]:
    """Return a choice for each of the matched parts, of which there is one for each draw."""
    if isinstance(value, tg.AbstractSpec):
        if value.is_random and seed is None:
            checks.refuse("rng", _OWNER, f"given for the random {type(value).__name__}", None, hint="rng=0 would do.")
        if value.depth == 1 and value.is_random and seed is not None:
            return [tg.generate(value, rng=tg.child(seed, "member", draw))[0] for draw in draws]
        value = tg.generate(value, rng=None if seed is None else tg.child(seed, "member", draws[0]))
    if isinstance(value, tg.Topology):
        if any(row.size for row in value.relays):
            raise SpecError(f"The topology '{name}' must have no relays, since a layer trains all its weights.")
        if len(value) not in (1, len(draws)):
            raise SpecError(
                f"The topology '{name}' must have one layer, or as many as layers of the model match: {len(draws)}. "
                f"Got {len(value)}."
            )
        return list(value) if len(value) == len(draws) else [value[0]] * len(draws)
    if isinstance(value, (list, tuple)) and value and all(map(_is_matrix, value)):
        places = [tg.as_pattern(pattern, name=f"{name}[{k}]") for k, pattern in enumerate(value)]
        return [places] * len(draws)
    return [tg.as_pattern(value, name=name)] * len(draws)


def _is_matrix(value: Any) -> bool:
    try:
        return sp.issparse(value) or np.ndim(value) == 2
    except ValueError:  # ragged
        return False


def _check_shape(choice: Choice, name: str, part: Part, shown: str) -> None:
    layer = quoted(name)
    if isinstance(choice, list):
        places = part.turn(part.weight)[0, 0].numel()
        if part.weight.ndim < 3 or len(choice) != places:
            wanted = f"one matrix, or {places} for the places of the kernel" if part.weight.ndim > 2 else "one matrix"
            raise SpecError(f"The pattern '{shown}' for {layer} must be {wanted}. Got {len(choice)}.")
    for pattern in choice if isinstance(choice, list) else [choice]:
        if pattern.shape != part.shape:
            turned = " Transpose it." if pattern.shape == part.shape[::-1] else ""
            raise SpecError(
                f"The pattern '{shown}' must have the shape (inputs, outputs) of {layer}, {part.shape}. "
                f"Got {pattern.shape}.{turned}"
            )
