"""Combinators: specs made of specs, which promise what can be derived from the promises inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import (
    CONNECTIONS,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    PATH_CONNECTED,
    PATHS,
    SIZES,
    SYMMETRIC,
    Claim,
    Measure,
)
from topogen._spec import AbstractSpec, child
from topogen.errors import SpecError
from topogen.measures import PathCounts, Range

__all__ = ["Chain", "Trim"]

# A spec's claims are asked for once and handed around: a combinator's cost as much as all of those inside it.
Claims = tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Trim(AbstractSpec):
    """The part of a topology that lies between the first, or the last, neurons of each of its layers of nodes.

    Parameters
    ----------
    spec : AbstractSpec
        What is trimmed.
    sizes : sequence of int
        (m_0, ..., m_L) with 1 <= m_k <= n_k: how many neurons are kept.
    keep : {"first", "last"}
        Which end of every layer of nodes is kept.

    Raises
    ------
    SpecError
        If the number of sizes differs from that of `spec`, or one is out of range.

    Notes
    -----
    Dropping inputs or outputs leaves every path between the kept ones, so what `spec` promises of all pairs
    (path-connectedness, symmetry, the number of paths) is still promised, and so are the degrees on a side whose
    partners are all kept. Dropping hidden neurons can break all of it, and can leave dead neurons: `verify` tells.

    Examples
    --------
    >>> import topogen as tg
    >>> radix = tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1])
    >>> net = tg.generate(tg.Trim(radix, [784, 300, 100], keep="last"))
    >>> [layer.nnz for layer in net], tg.verify(net).holds
    ([23520, 3000], True)
    """

    spec: AbstractSpec
    sizes: tuple[int, ...]
    _: KW_ONLY
    keep: str = "first"

    def __post_init__(self) -> None:
        checks.instance(self.spec, "spec", "Trim", AbstractSpec, "an")
        sizes = checks.integers(self.sizes, "sizes", "Trim", low=1)
        inner = self.spec.sizes
        if len(sizes) != len(inner):
            checks.refuse("sizes", "Trim", f"a sequence of {len(inner)} ints, as many as {list(inner)}", self.sizes)
        for k, (kept, size) in enumerate(zip(sizes, inner, strict=True)):
            checks.integer(kept, f"sizes[{k}]", "Trim", low=1, high=size)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "keep", checks.one_of(self.keep, "keep", "Trim", ("first", "last")))

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the spec inside is."""
        return self.spec.is_random

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k of the spec inside and cut it."""
        n_in, n_out = self.shape(k)
        whole = self.spec.layer(k, seed)
        if whole.shape == (n_in, n_out):
            return whole
        return whole[:n_in, :n_out] if self.keep == "first" else whole[-n_in:, -n_out:]

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the whole layers, which are built before they are cut."""
        return self.spec.layer_bytes()

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, and of the promises inside those that the cut cannot break."""
        whole, cut = self.spec.sizes, self.sizes
        kept = [Claim(measure=SIZES, bound=cut, source="definition of Trim")]
        inside = self.spec.claims()
        connections = self._connections(inside)
        if connections is not None:
            possible = sum(n_in * n_out for n_in, n_out in zip(cut[:-1], cut[1:], strict=True))
            source = "degrees on the side whose partners are all kept"
            kept.append(Claim(measure=CONNECTIONS, bound=connections, source=source))
            kept.append(Claim(measure=DENSITY, bound=Fraction(sum(connections), possible), source=source))
        untouched = {FAN_OUT: whole[1:] == cut[1:], FAN_IN: whole[:-1] == cut[:-1]}
        for claim in inside:
            regular = claim.relation == "==" and claim.measure in untouched and _degrees(claim.bound) is not None
            if (whole[1:-1] == cut[1:-1] and _is_about_all_pairs(claim)) or (regular and untouched[claim.measure]):
                kept.append(claim)
        return tuple(kept)

    def _connections(self, inside: Claims) -> tuple[int, ...] | None:
        """Count the connections of each layer, where regular degrees or an untouched layer tell."""
        whole, cut = self.spec.sizes, self.sizes
        inner = _promised(inside, CONNECTIONS)
        fan_out, fan_in = _degrees(_promised(inside, FAN_OUT)), _degrees(_promised(inside, FAN_IN))
        counts: list[int] = []
        for k in range(self.depth):
            if whole[k : k + 2] == cut[k : k + 2] and inner is not None:
                counts.append(inner[k])
            elif whole[k + 1] == cut[k + 1] and fan_out is not None:
                counts.append(cut[k] * fan_out[k])
            elif whole[k] == cut[k] and fan_in is not None:
                counts.append(cut[k + 1] * fan_in[k])
            else:
                return None
        return tuple(counts)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Chain(AbstractSpec):
    """Topologies one after the other: the outputs of each are the inputs of the next.

    Parameters
    ----------
    *specs : AbstractSpec
        At least one; the last size of each equals the first size of the next.

    Raises
    ------
    SpecError
        If there is no spec, or two neighbours do not match.

    Notes
    -----
    Promised where it follows from the members' promises: sizes, degrees, connections and density; path-connectedness
    (one member connected, every neuron before it with a way on, every neuron after it with a way back); symmetry and
    the number of paths (one member symmetric, constant fan-out before it, constant fan-in after it: J A = d J for
    constant fan-in d). Member i draws from the seed that ("member", i) names, so equal members differ.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Chain(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), tg.Dense(sizes=[100, 10])))
    >>> net.sizes, print(tg.measures.path_counts(net))
    300
    ((800, 300, 100, 10), None)
    """

    specs: tuple[AbstractSpec, ...]

    def __init__(self, *specs: AbstractSpec) -> None:
        if not specs:
            checks.refuse("specs", "Chain", "at least one spec", specs)
        for i, spec in enumerate(specs):
            checks.instance(spec, f"specs[{i}]", "Chain", AbstractSpec, "an")
        for i, (left, right) in enumerate(zip(specs[:-1], specs[1:], strict=True)):
            if left.sizes[-1] != right.sizes[0]:
                raise SpecError(
                    f"The 'specs' parameter of Chain must be specs whose widths match. Got {left.sizes[-1]} outputs of "
                    f"specs[{i}] and {right.sizes[0]} inputs of specs[{i + 1}]."
                )
        object.__setattr__(self, "specs", specs)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.specs))})"

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The members' sizes, shared ends once."""
        return self.specs[0].sizes[:1] + tuple(size for spec in self.specs for size in spec.sizes[1:])

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a member is."""
        return any(spec.is_random for spec in self.specs)

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Chain:
        """Build the chain from ``{"specs": (...)}``."""
        if set(values) != {"specs"}:
            raise SpecError(f"Chain has the field 'specs' and no other. Got {sorted(values)}.")
        return cls(*values["specs"])

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k: the layer of the member that it falls in, from that member's seed."""
        self.shape(k)
        for i, spec in enumerate(self.specs):
            if k < spec.depth:
                return spec.layer(k, None if seed is None else child(seed, "member", i))
            k -= spec.depth
        raise AssertionError("unreachable: shape(k) has checked k")

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the members' layers in a row."""
        return tuple(needed for spec in self.specs for needed in spec.layer_bytes())

    def claims(self) -> tuple[Claim, ...]:
        """Promise what follows from the members' promises."""
        claims = [Claim(measure=SIZES, bound=self.sizes, source="definition of Chain")]
        members = [spec.claims() for spec in self.specs]
        for measure in (CONNECTIONS, FAN_OUT, FAN_IN):
            parts = _all_promised(members, measure)
            if parts is not None:
                bound = tuple(entry for part in parts for entry in part)
                claims.append(Claim(measure=measure, bound=bound, source="the members' promises in a row"))
                if measure is CONNECTIONS:
                    possible = sum(n_in * n_out for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))
                    density = Fraction(sum(bound), possible)
                    claims.append(Claim(measure=DENSITY, bound=density, source="the members' promises in a row"))
        if _chain_is_connected(members):
            claims.append(
                Claim(measure=PATH_CONNECTED, bound=True, source="X J Y > 0 if no row of X, no column of Y is 0")
            )
        paths = self._paths(members)
        if paths is not None:
            source = "X J = row sum * J and J Y = column sum * J where these are constant"
            claims.append(Claim(measure=SYMMETRIC, bound=True, source=source))
            claims.append(Claim(measure=PATHS, bound=PathCounts(paths, paths), source=source))
        return tuple(claims)

    def _paths(self, members: Sequence[Claims]) -> int | None:
        """Paths a pair: those of a symmetric member, times the row sums before it and the column sums after it."""
        row_sums = [
            _constant_sum(claims, FAN_OUT, spec.sizes[-1]) for claims, spec in zip(members, self.specs, strict=True)
        ]
        column_sums = [
            _constant_sum(claims, FAN_IN, spec.sizes[0]) for claims, spec in zip(members, self.specs, strict=True)
        ]
        for i, claims in enumerate(members):
            inside = _promised(claims, PATHS)
            if inside is None or inside.min != inside.max:
                continue
            before, after = row_sums[:i], column_sums[i + 1 :]
            factors = [factor for factor in before + after if factor is not None]
            if len(factors) == len(self.specs) - 1:
                return inside.min * math.prod(factors)
        return None


def _is_about_all_pairs(claim: Claim) -> bool:
    """Whether what is promised of all pairs of an input and an output holds of any of them."""
    if claim.measure == PATHS:
        return claim.relation == "==" and claim.bound.min == claim.bound.max
    return claim.measure in (PATH_CONNECTED, SYMMETRIC) and claim.relation == "==" and claim.bound is True


def _promised(claims: Claims, measure: Measure) -> Any:
    """Return what is promised with certainty to be the value of `measure`, or None."""
    for claim in claims:
        if claim.measure == measure and claim.relation == "==" and claim.probability == 1:
            return claim.bound
    return None


def _all_promised(members: Sequence[Claims], measure: Measure) -> list[Any] | None:
    parts = [_promised(claims, measure) for claims in members]
    return None if any(part is None for part in parts) else parts


def _degrees(ranges: tuple[Range, ...] | None) -> tuple[int, ...] | None:
    """One degree a layer, where all neurons of the layer share it."""
    if ranges is None or any(r.min != r.max for r in ranges):
        return None
    return tuple(r.min for r in ranges)


def _chain_is_connected(members: Sequence[Claims]) -> bool:
    leads_on = [_is_connected(claims) or _at_least_one(claims, FAN_OUT) for claims in members]
    leads_back = [_is_connected(claims) or _at_least_one(claims, FAN_IN) for claims in members]
    return any(
        _is_connected(claims) and all(leads_on[:i]) and all(leads_back[i + 1 :]) for i, claims in enumerate(members)
    )


def _is_connected(claims: Claims) -> bool:
    return _promised(claims, PATH_CONNECTED) is True


def _at_least_one(claims: Claims, measure: Measure) -> bool:
    ranges = _promised(claims, measure)
    return ranges is not None and all(r.min >= 1 for r in ranges)


def _constant_sum(claims: Claims, measure: Measure, n_partners: int) -> int | None:
    """Return the sum that all rows (FAN_OUT) or columns (FAN_IN) of the product of the layers share, or None."""
    degrees = _degrees(_promised(claims, measure))
    if degrees is not None:
        return math.prod(degrees)
    paths = _promised(claims, PATHS)
    return None if paths is None or paths.min != paths.max else paths.min * n_partners
