"""How a report is printed: one table of what is stored, one of what was measured, and what both mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from topogen_torch._reports._advice import density_text

if TYPE_CHECKING:
    from topogen_torch._reports._report import LayerReport

__all__ = ["compared", "figures", "measured_table", "stored_table"]

_Column = tuple[str, Callable[["LayerReport"], str]]


def stored_table(rows: Sequence[LayerReport]) -> list[str]:
    """Return the lines of the first table; the last row, the total, stands below a rule."""
    return _table(_STORED, rows)


def measured_table(rows: Sequence[LayerReport]) -> list[str]:
    """Return the lines of the second."""
    return _table(_MEASURED, rows)


def compared(own: float | None, dense: float | None, unit: float) -> str:
    """Return own / dense and the ratio, in `unit`; "-" for what was not measured."""
    if own is None:
        return "-"
    if dense is None:
        return f"{figures(own / unit)} / -"
    ratio = f" {figures(dense / own)}x" if own > 0 else ""
    return f"{figures(own / unit)} / {figures(dense / unit)}{ratio}"


def figures(value: float) -> str:
    """Three figures, or all those before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _table(columns: Sequence[_Column], rows: Sequence[LayerReport]) -> list[str]:
    cells = [[name for name, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[c]) for line in cells) for c in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if columns[c][0] in _LEFT else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _fan_in(row: LayerReport) -> str:
    if row.fan_in is None:
        return ""
    least, mean, most = row.fan_in
    return str(least) if least == most else f"{least}..{mean:.1f}..{most}"


def _seconds(name: str) -> Callable[[LayerReport], str]:
    def show(row: LayerReport) -> str:
        own: Any = getattr(row.seconds, name, None)
        return compared(own, getattr(row.dense_seconds, name, None), 1e-3)

    return show


def _break_even(row: LayerReport) -> str:
    if row.break_even is None:
        return ""
    return f"{density_text(row.break_even.forward)} / {density_text(row.break_even.forward_backward)}"


_LEFT = {"layer", "kind", "kernel", "recommended"}
_STORED: list[_Column] = [
    ("layer", lambda row: row.name),
    ("kind", lambda row: row.kind),
    ("in x out", lambda row: "" if row.shape is None else " x ".join(map(str, row.shape))),
    ("stored", lambda row: "" if row.connections is None else f"{row.connections:,}"),
    ("density", lambda row: "" if row.density is None else f"{100 * row.density:.4g} %"),
    ("fan-in", _fan_in),
    (
        "dead",
        lambda row: "" if row.unconnected_inputs is None else f"{row.unconnected_inputs}/{row.unconnected_outputs}",
    ),
    ("training/dense [kB]", lambda row: compared(row.memory.total, row.dense_memory.total, 1e3)),
    ("state/dense [kB]", lambda row: compared(row.state, row.dense_state, 1e3)),
]
_MEASURED: list[_Column] = [
    ("layer", lambda row: row.name),
    ("kernel", lambda row: row.kernel),
    ("forward/dense [ms]", _seconds("forward")),
    ("+backward/dense [ms]", _seconds("forward_backward")),
    ("step/dense [ms]", _seconds("step")),
    ("peak/dense [MB]", lambda row: compared(row.peak, row.dense_peak, 1e6)),
    ("break-even", _break_even),
    ("recommended", lambda row: row.recommended),
]
