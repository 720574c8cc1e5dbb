"""The summary page of a study, made of its table: what every study says in the same way."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from topogen_torch.studies._study import Measured, Study

__all__ = ["by_settings", "percent", "table", "whole_page"]


def whole_page(study: Study, rows: Sequence[Any], measured: Sequence[Measured], path: Path, *, quick: bool) -> str:
    """Return the page: title, how much was measured, the study's own text, and how it was made.

    Its pictures are named after the table, which stands at `path`.
    """
    text = re.sub(rf"\({study.name}-([\w-]+\.svg)\)", rf"({path.stem}-\1)", study.page(measured).strip())
    hours = sum(float(one.about["seconds"]) for one in measured) / 3600
    machines = _different(f"{one.about['cpu']}, threads: {one.about['threads']}" for one in measured)
    versions = _different(
        f"topogen {one.about['topogen']}, torch {one.about['torch']}, numpy {one.about['numpy']}, "
        f"Python {one.about['python']}"
        for one in measured
    )
    dates = sorted({one.about["date"] for one in measured})
    return "\n".join([
        f"# {study.title}",
        "",
        f"**{len(measured)} of {len(rows)} rows measured.** This page is made of [the table]({path.name}) by",
        "",
        "```",
        f"topogen study {study.name} --data-dir DIR{' --quick' if quick else ''}",
        "```",
        "",
        "which measures the rows that are still missing.",
        "",
        text,
        "",
        "## How it was made",
        "",
        f"- Machine: {'; '.join(machines)}.",
        f"- Versions: {'; '.join(versions)}.",
        f"- Date: {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}. {hours:.1f} hours of computing.",
        "- Every setting of every row stands in the table.",
        "",
    ])  # fmt: skip


def by_settings(
    measured: Iterable[Measured], key: Callable[[Any], Any], result: str = "test_accuracy"
) -> dict[Any, list[Any]]:
    """Return the figures called `result` of all rows with the same ``key(row)``: those of its seeds."""
    groups: dict[Any, list[Any]] = {}
    for one in measured:
        groups.setdefault(key(one.row), []).append(one.results[result])
    return groups


def percent(shares: Sequence[float] | None, digits: int = 2) -> str:
    """Return mean ± standard deviation (of the sample) of shares, in percent, and their number where it is not 3."""
    if not shares:
        return "not measured"
    mean = 100 * statistics.mean(shares)
    if len(shares) == 1:
        return f"{mean:.{digits}f} (one seed)"
    counted = "" if len(shares) == 3 else f" ({len(shares)} seeds)"
    return f"{mean:.{digits}f} ± {100 * statistics.stdev(shares):.{digits}f}{counted}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _different(texts: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(texts))
