"""What the explicit expanders, all of them one regular layer, have in common to promise."""

from __future__ import annotations

from fractions import Fraction

from topogen._claims import (
    COMPONENTS,
    CONNECTIONS,
    DEAD_NEURONS,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    SECOND_SINGULAR_VALUE,
    SIZES,
    Claim,
)
from topogen.measures import Range

__all__ = ["biregular_claims", "connected", "sigma_at_most", "sigma_is"]

_ROUNDING = 1e-8  # of a singular value computed in float64; measured errors are below 1e-12


def biregular_claims(sizes: tuple[int, ...], fan_in: int, source: str) -> tuple[Claim, ...]:
    """Return what the degrees of one biregular layer say."""
    n_in, n_out = sizes
    connections = n_out * fan_in
    fan_out = connections // n_in
    return (
        Claim(measure=SIZES, bound=sizes, source=source),
        Claim(measure=CONNECTIONS, bound=(connections,), source=source),
        Claim(measure=FAN_OUT, bound=(Range(fan_out, fan_out),), source=source),
        Claim(measure=FAN_IN, bound=(Range(fan_in, fan_in),), source=source),
        Claim(measure=DENSITY, bound=Fraction(fan_in, n_in), source=source),
        Claim(measure=DEAD_NEURONS, bound=(0, 0), source="every neuron has fan-in or fan-out >= 1"),
    )


def connected(source: str) -> Claim:
    """Return the claim that the layer is in one piece."""
    return Claim(measure=COMPONENTS, bound=1, source=source)


def sigma_at_most(bound: float, source: str) -> Claim:
    """Return the claim that the second singular value is at most `bound`."""
    return Claim(measure=SECOND_SINGULAR_VALUE, bound=bound, relation="<=", tolerance=_ROUNDING, source=source)


def sigma_is(value: float, source: str) -> tuple[Claim, Claim]:
    """Return the two claims that the second singular value is `value`."""
    below = Claim(measure=SECOND_SINGULAR_VALUE, bound=value, relation=">=", tolerance=_ROUNDING, source=source)
    return sigma_at_most(value, source), below
