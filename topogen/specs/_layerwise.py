"""What families with one degree a layer share: reading the parameter, and promising the degrees."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from topogen import checks, measures
from topogen._claims import CONNECTIONS, DENSITY, FAN_IN, FAN_OUT, SIZES, Claim, Measure
from topogen._topology import Topology
from topogen.measures import Range
from topogen.specs._promises import density

__all__ = ["SMALLER_SIDE", "connections_of", "degree_claims", "each_layer", "layer_ints"]


def _degrees_of_the_smaller_side(topology: Topology) -> tuple[Range, ...]:
    """Return the range of the fan-in of each layer that narrows, of the fan-out of each other layer."""
    sizes = topology.sizes
    both = zip(sizes[:-1], sizes[1:], measures.fan_in(topology), measures.fan_out(topology), strict=True)
    return tuple(fan_in if n_out < n_in else fan_out for n_in, n_out, fan_in, fan_out in both)


SMALLER_SIDE = Measure("degree on the smaller side", _degrees_of_the_smaller_side)


def layer_ints(
    value: Any, name: str, owner: str, sizes: tuple[int, ...], *, low: int = 1, high: Callable[[int, int], int]
) -> int | tuple[int, ...]:
    """Return `value`, an int for all layers or a sequence of one a layer, each in [low, high(n_in, n_out)]."""
    depth = len(sizes) - 1
    checked: int | tuple[int, ...]
    if isinstance(value, numbers.Number):
        checked = checks.integer(value, name, owner, low=low)
    else:
        requirement = f"an int or a sequence of {depth} ints, one a layer"
        given = checks.row(value, name, owner, requirement)
        if len(given) != depth:
            checks.refuse(name, owner, requirement, value)
        checked = checks.integers(given, name, owner, low=low)
    for k, number in enumerate(each_layer(checked, depth)):
        n_in, n_out = sizes[k], sizes[k + 1]
        entry = name if isinstance(checked, int) else f"{name}[{k}]"
        checks.integer(number, entry, f"{owner} (layer {k}, {n_in} x {n_out})", low=low, high=high(n_in, n_out))
    return checked


def each_layer(value: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return one value a layer, where `value` is that already or one for all."""
    return value if isinstance(value, tuple) else (value,) * depth


def connections_of(density: float, n_in: int, n_out: int) -> int:
    """Return round(density * n_in * n_out), halves to even, exact for the decimal that was written."""
    return round(Fraction(repr(density)) * n_in * n_out)


def degree_claims(
    sizes: tuple[int, ...],
    *,
    connections: Sequence[int],
    fan_out: Sequence[int | Range] | None = None,
    fan_in: Sequence[int | Range] | None = None,
    source: str,
) -> tuple[Claim, ...]:
    """Promise sizes, connections, density and, where they are known, the range of the degrees of each layer."""
    claims = [
        Claim(measure=SIZES, bound=sizes, source=source),
        Claim(measure=CONNECTIONS, bound=tuple(connections), source=source),
        Claim(measure=DENSITY, bound=density(connections, sizes), source=source),
    ]
    for measure, degrees in ((FAN_OUT, fan_out), (FAN_IN, fan_in)):
        if degrees is not None:
            bound = tuple(d if isinstance(d, Range) else Range(d, d) for d in degrees)
            claims.append(Claim(measure=measure, bound=bound, source=source))
    return tuple(claims)
