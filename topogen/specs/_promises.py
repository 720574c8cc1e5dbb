"""Promises out of promises: what combinators read from the claims of the specs inside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from topogen._claims import (
    CONNECTIONS,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    PATH_CONNECTED,
    PATHS,
    SYMMETRIC,
    Claim,
    Measure,
)
from topogen.measures import PathCounts, Range

__all__ = ["Claims", "degrees", "density", "in_a_row", "is_about_all_pairs", "promised"]

# A spec's claims are asked for once and handed around: a combinator's cost as much as all of those inside it.
Claims = tuple[Claim, ...]


def promised(claims: Claims, measure: Measure) -> Any:
    """Return what is promised with certainty to be the value of `measure`, or None."""
    for claim in claims:
        if claim.measure == measure and claim.relation == "==" and claim.probability == 1:
            return claim.bound
    return None


def degrees(ranges: tuple[Range, ...] | None) -> tuple[int, ...] | None:
    """One degree a layer, where all neurons of the layer share it."""
    if ranges is None or any(r.min != r.max for r in ranges):
        return None
    return tuple(r.min for r in ranges)


def density(connections: Sequence[int], sizes: Sequence[int]) -> Fraction:
    """Return the density of a chain with these connections in each layer."""
    return Fraction(sum(connections), sum(n_in * n_out for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)))


def is_about_all_pairs(claim: Claim) -> bool:
    """Whether what is promised of all pairs of an input and an output holds of any of them."""
    if claim.measure == PATHS:
        return claim.relation == "==" and claim.bound.min == claim.bound.max
    return claim.measure in (PATH_CONNECTED, SYMMETRIC) and claim.relation == "==" and claim.bound is True


def in_a_row(sizes: tuple[int, ...], members: Sequence[Claims], ends: Sequence[tuple[int, int]]) -> Claims:
    """Return what a chain of `sizes` promises besides them, whose members promise `members`.

    ``ends[i]`` is the numbers of inputs and of outputs of member i.
    """
    claims: list[Claim] = []
    source = "the members' promises in a row"
    for measure in (CONNECTIONS, FAN_OUT, FAN_IN):
        parts = [promised(member, measure) for member in members]
        if any(part is None for part in parts):
            continue
        bound = tuple(entry for part in parts for entry in part)
        claims.append(Claim(measure=measure, bound=bound, source=source))
        if measure is CONNECTIONS:
            claims.append(Claim(measure=DENSITY, bound=density(bound, sizes), source=source))
    if _row_is_connected(members):
        claims.append(Claim(measure=PATH_CONNECTED, bound=True, source="X J Y > 0 if no row of X, no column of Y is 0"))
    paths = _paths_of_a_row(members, ends)
    if paths is not None:
        source = "X J = row sum * J and J Y = column sum * J where these are constant"
        claims.append(Claim(measure=SYMMETRIC, bound=True, source=source))
        claims.append(Claim(measure=PATHS, bound=PathCounts(paths, paths), source=source))
    return tuple(claims)


def _row_is_connected(members: Sequence[Claims]) -> bool:
    """Whether a member is connected, every neuron before it leads on, and every neuron after it leads back."""
    connected = [promised(claims, PATH_CONNECTED) is True for claims in members]
    leads_on = [sure or _at_least_one(claims, FAN_OUT) for sure, claims in zip(connected, members, strict=True)]
    leads_back = [sure or _at_least_one(claims, FAN_IN) for sure, claims in zip(connected, members, strict=True)]
    return any(connected[i] for i in _between(leads_on, leads_back))


def _paths_of_a_row(members: Sequence[Claims], ends: Sequence[tuple[int, int]]) -> int | None:
    """Paths a pair: those of a symmetric member, times the row sums before it and the column sums after it."""
    row_sums = [_constant_sum(claims, FAN_OUT, n_out) for claims, (_, n_out) in zip(members, ends, strict=True)]
    column_sums = [_constant_sum(claims, FAN_IN, n_in) for claims, (n_in, _) in zip(members, ends, strict=True)]
    for i in _between([total is not None for total in row_sums], [total is not None for total in column_sums]):
        inside = promised(members[i], PATHS)
        if inside is not None and inside.min == inside.max:
            factors = row_sums[:i] + column_sums[i + 1 :]
            return inside.min * math.prod(factor for factor in factors if factor is not None)
    return None


def _between(before: Sequence[bool], after: Sequence[bool]) -> range:
    """Return the positions i for which all of ``before[:i]`` and of ``after[i + 1:]`` is true."""
    last = before.index(False) if False in before else len(before) - 1
    first = max((i for i, fine in enumerate(after) if not fine), default=0)
    return range(first, last + 1)


def _at_least_one(claims: Claims, measure: Measure) -> bool:
    ranges = promised(claims, measure)
    return ranges is not None and all(r.min >= 1 for r in ranges)


def _constant_sum(claims: Claims, measure: Measure, n_partners: int) -> int | None:
    """Return the sum that all rows (FAN_OUT) or columns (FAN_IN) of the product of the layers share, or None."""
    each = degrees(promised(claims, measure))
    if each is not None:
        return math.prod(each)
    paths = promised(claims, PATHS)
    return None if paths is None or paths.min != paths.max else paths.min * n_partners
