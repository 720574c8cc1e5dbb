"""The command in this process, and what it wrote: for the tests of commands."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from topogen import _cli
from topogen_torch._reports import _timing


def topogen(*arguments: str) -> int:
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as exit_:
        _cli.main(arguments)
    return int(exit_.value.code or 0)


def rows(folder: Path | str, name: str = "metrics.csv") -> list[dict[str, str]]:
    """Rows of a CSV file without the times, which differ from run to run."""
    with (Path(folder) / name).open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def without_timing(patch: pytest.MonkeyPatch) -> None:
    """Let the twins of a run be timed as quickly as can be."""
    patch.setattr(_timing, "_LAP", 0.0)
    patch.setattr(_timing, "_ROUNDS", (1, 1))
