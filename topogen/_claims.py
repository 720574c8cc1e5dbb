"""What a theorem promises (Claim), what is read off a topology (Measure), and the two side by side (Report)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal, TypeGuard, cast

from topogen import checks, measures
from topogen._topology import Topology
from topogen.errors import ClaimError

__all__ = [
    "COMPONENTS",
    "CONNECTIONS",
    "DEAD_NEURONS",
    "DEFAULT_MEASURES",
    "DENSITY",
    "FAN_IN",
    "FAN_OUT",
    "GIRTH",
    "PATHS",
    "PATH_CONNECTED",
    "RAMANUJAN_RATIO",
    "SECOND_SINGULAR_VALUE",
    "SIZES",
    "SYMMETRIC",
    "Claim",
    "Measure",
    "Report",
    "ReportRow",
]

Relation = Literal["==", "<=", ">=", "<", ">"]
_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}

_MOST_ROUNDING = 1e-6  # a tolerance is for rounding, never a margin

_LONGEST_DECIMAL = 14_000  # bits; Python refuses to write ints of more than 4300 digits in decimal


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Measure:
    """A named number of a topology.

    Attributes
    ----------
    name : str
        The row's name in a report.
    of : callable
        One of `topogen.measures`; measures that share it are computed once.
    read : callable
        Takes what is reported out of what `of` returns.

    Examples
    --------
    >>> import topogen as tg
    >>> longest = tg.Measure("largest fan-in", tg.measures.fan_in, lambda ranges: max(r.max for r in ranges))
    >>> longest.read(longest.of([[1, 0], [1, 1]]))
    2
    """

    name: str
    of: Callable[[Topology], Any]
    read: Callable[[Any], Any] = _itself


def _sizes(topology: Topology) -> tuple[int, ...]:
    return topology.sizes


def _same_everywhere(counts: measures.PathCounts) -> bool:
    return counts.min == counts.max


def _number_dead(neurons: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(len(indices) for indices in neurons)


SIZES = Measure("sizes", _sizes)
CONNECTIONS = Measure("connections", measures.connections)
DENSITY = Measure("density", measures.exact_density)
FAN_OUT = Measure("fan-out", measures.fan_out)
FAN_IN = Measure("fan-in", measures.fan_in)
PATH_CONNECTED = Measure("path-connected", measures.is_path_connected)
SYMMETRIC = Measure("symmetric", measures.path_counts, _same_everywhere)
PATHS = Measure("paths per pair", measures.path_counts)
DEAD_NEURONS = Measure("dead neurons", measures.dead_neurons, _number_dead)
COMPONENTS = Measure("components", measures.n_components)

GIRTH = Measure("girth", measures.girth)
SECOND_SINGULAR_VALUE = Measure("second singular value", measures.second_singular_values, max)
RAMANUJAN_RATIO = Measure("sigma_2 / Ramanujan bound", measures.ramanujan_ratios, max)

DEFAULT_MEASURES = (
    SIZES, CONNECTIONS, DENSITY, FAN_OUT, FAN_IN, PATH_CONNECTED, SYMMETRIC, PATHS, DEAD_NEURONS, COMPONENTS,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One promise of a theorem: ``measure relation bound``, with the theorem's source.

    Attributes
    ----------
    measure : Measure
        What is read off the topology.
    bound : object
        What the theorem says of it, exact wherever the theorem is (int, Fraction, tuple of them, PathCounts).
    source : str
        Theorem, equation or definition, with the publication.
    relation : {"==", "<=", ">=", "<", ">"}
        How the measured value stands to the bound.
    probability : float, in (0, 1]
        The least probability with which a random family keeps the promise; 1 where it is certain.
    tolerance : float, in [0, 1e-6]
        How far beyond a float bound the measured value may lie, because it is computed in floating point. An exact
        bound takes none, and neither does "==": that a number is sqrt(3) is two claims, "<=" and ">=".

    Raises
    ------
    SpecError
        If `measure` is no Measure, `source` no string, `relation`, `probability` or `tolerance` out of range, or a
        tolerance is given where the comparison is exact.

    Examples
    --------
    >>> import topogen as tg
    >>> components = tg.Measure("components", tg.measures.n_components)
    >>> claim = tg.Claim(measure=components, bound=3, relation="<=", source="an example")
    >>> print(claim)
    components <= 3
    >>> tg.verify([[1, 0], [0, 1]], claims=[claim]).holds
    True
    """

    measure: Measure
    bound: Any
    source: str
    relation: Relation = "=="
    probability: float = 1.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        checks.instance(self.measure, "measure", "Claim", Measure)
        checks.instance(self.source, "source", "Claim", str)
        checks.one_of(self.relation, "relation", "Claim", tuple(_HOLDS))
        checks.real(self.probability, "probability", "Claim", high=1.0, open_low=True)
        checks.real(self.tolerance, "tolerance", "Claim", high=_MOST_ROUNDING)
        if self.tolerance and not (isinstance(self.bound, float) and self.relation in ("<=", ">=")):
            checks.refuse(
                "tolerance", "Claim", f"0 unless a float bound is compared by <= or >= ({self})", self.tolerance
            )

    @property
    def name(self) -> str:
        """The measure's name."""
        return self.measure.name

    def is_kept_by(self, measured: Any) -> bool:
        """Whether the measured value keeps the promise; tuples are compared entry by entry."""
        holds = _HOLDS[self.relation]
        bound: Any = self.bound
        if isinstance(bound, tuple):
            entries = cast(tuple[Any, ...], bound)
            return len(measured) == len(entries) and all(map(holds, measured, entries))
        if self.tolerance:
            bound += self.tolerance if self.relation == "<=" else -self.tolerance
        return bool(holds(measured, bound))

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {shown(self.bound)}"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One line of a report: ``holds`` is None, and ``promised`` too, where nothing was promised."""

    name: str
    promised: Any
    measured: Any
    holds: bool | None
    relation: str = "=="
    source: str = ""
    probability: float = 1.0
    tolerance: float = 0.0

    @property
    def promise(self) -> str:
        """What was promised, for a table: the relation unless it is ==, the bound, the tolerance unless it is 0."""
        if self.holds is None:
            return ""
        relation = "" if self.relation == "==" else f"{self.relation} "
        rounding = f" (to {self.tolerance:g})" if self.tolerance else ""
        return f"{relation}{shown(self.promised)}{rounding}"


@dataclass(frozen=True, slots=True)
class Report:
    """Claims beside what was measured: what `verify` returns. ``print`` shows it as a table.

    Rows are found by name, ``report["density"].measured``; iterating gives them in order.

    Attributes
    ----------
    rows : tuple of ReportRow
        Promised rows first, then what was measured besides.
    holds : bool or None
        True if every claim held, False if one broke, None if nothing was promised.
    """

    rows: tuple[ReportRow, ...]

    @property
    def holds(self) -> bool | None:
        """True if every claim held, False if one broke, None if nothing was promised."""
        verdicts = [row.holds for row in self.rows if row.holds is not None]
        return all(verdicts) if verdicts else None

    def __getitem__(self, name: str) -> ReportRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def raise_if_broken(self) -> None:
        """Raise `ClaimError` naming every broken claim, its promise and what was measured."""
        broken = [
            f"{row.name} {row.relation} {shown(row.promised)} was promised ({row.source}), "
            f"measured {shown(row.measured)}"
            for row in self.rows
            if row.holds is False
        ]
        if broken:
            raise ClaimError(f"{'; '.join(broken)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as numbers, strings, bools, lists and dicts, ready for JSON."""
        return {
            "holds": self.holds,
            "rows": [
                {
                    "name": row.name,
                    "relation": row.relation,
                    "promised": None if row.holds is None else _plain(row.promised),
                    "measured": _plain(row.measured),
                    "holds": row.holds,
                    "source": row.source,
                    "probability": row.probability,
                    "tolerance": row.tolerance,
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        verdict = {True: "yes", False: "NO", None: ""}
        table = [("claim", "promised", "measured", "held")]
        for row in self.rows:
            table.append((row.name, row.promise, shown(row.measured), verdict[row.holds]))
        columns = [max(len(line[c]) for line in table) for c in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, columns, strict=True)).rstrip() for line in table
        ]
        lines.insert(1, "  ".join("-" * width for width in columns))
        return "\n".join(lines)


def shown(value: Any) -> str:
    """Return `value` for a table: long runs of equal entries are counted, yes and no replace bools."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_plain_tuple(value):
        runs = ((text, len(list(run))) for text, run in groupby(map(shown, value)))
        parts = (f"{times} times {text}" if times > 3 else ", ".join([text] * times) for text, times in runs)
        return f"({', '.join(parts)})"
    if isinstance(value, Fraction):
        return f"{value} = {float(value):.4g}" if value.denominator > 1 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _plain(value: Any) -> Any:
    """Return `value`, exact, in what JSON knows: Fractions as "1/10", ranges as [min, max], huge ints as hex."""
    if isinstance(value, measures.PathCounts):
        return [_plain(value.min), _plain(value.max)]
    if isinstance(value, tuple):
        return [_plain(entry) for entry in cast(tuple[Any, ...], value)]
    if isinstance(value, int) and value.bit_length() > _LONGEST_DECIMAL:
        return hex(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _is_plain_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return type(value) is tuple
