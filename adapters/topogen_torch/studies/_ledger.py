"""The table of a study: a CSV file to which several processes may add rows, and in which no line is ever half written.

The table is replaced as a whole, in one step, under a lock. A process that measures a row holds a claim on it, which
the operating system takes back when the process ends, however it ends. Locks and claims are bytes of one file beside
the table, ``.NAME.csv.lock``; they are those of fcntl, so that they hold between machines too where the file system
carries them. Where there is no fcntl (Windows), one process at a time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from topogen.errors import FormatError
from topogen.io import replacing
from topogen_torch.studies._study import Measured, Study

try:
    import fcntl
except ImportError:
    fcntl = None

__all__ = ["ABOUT", "Ledger"]

ABOUT = ("seconds", "date", "topogen", "torch", "numpy", "python", "cpu", "threads")


class Ledger:
    """The table of a study at a path; it need not exist yet."""

    def __init__(self, path: Path, study: Study) -> None:
        self.path = path
        self._study = study
        self._header = [*study.settings, *study.results, *ABOUT]
        path.parent.mkdir(parents=True, exist_ok=True)
        # closing any descriptor of a file gives up all locks that the process has on it: one is kept for good
        self._lock = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        """Give up all locks."""
        os.close(self._lock)

    def read(self) -> list[Measured]:
        """Return what was measured, in the order in which it was.

        Raises
        ------
        FormatError
            If the table belongs to another study or another form of this one, or a line cannot be read.
        """
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            if header != self._header:
                differing = sorted(set(header) ^ set(self._header)) or ["the order"]
                raise FormatError(
                    f"The table {self.path} must have the columns of the study '{self._study.name}'. "
                    f"They differ in {', '.join(differing)}."
                )
            return [self._measured(cells, lines.line_num) for cells in lines]

    def append(self, measured: Measured) -> None:
        """Add a row; whatever happens, the table has the new line or has not."""
        with self.locked():
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            known = self.read()
            writer.writerow(self._header)
            writer.writerows(self._cells(one) for one in [*known, measured])
            with replacing(self.path) as file:
                file.write(text.getvalue().encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing the table, and what follows from it, while the block runs."""
        _lock(self._lock, 0, wait=True)
        try:
            yield
        finally:
            _unlock(self._lock, 0)

    @contextmanager
    def claimed(self, row: Any) -> Iterator[bool]:
        """Yield whether the row is this process's to measure while the block runs."""
        digest = hashlib.sha256(repr(self.key(row)).encode()).digest()
        place = 1 + int.from_bytes(digest[:7], "big")
        if not _lock(self._lock, place, wait=False):
            yield False
            return
        try:
            yield True
        finally:
            _unlock(self._lock, place)

    def key(self, row: Any) -> tuple[str, ...]:
        """Return what identifies a row in the table."""
        return tuple(_cell(value) for value in asdict(row).values())

    def _cells(self, measured: Measured) -> list[str]:
        results = [_cell(measured.results[name]) for name in self._study.results]
        return [*self.key(measured.row), *results, *(measured.about[name] for name in ABOUT)]

    def _measured(self, cells: Sequence[str], line: int) -> Measured:
        kinds = [*self._study.settings.values(), *self._study.results.values(), *[str] * len(ABOUT)]
        try:
            if len(cells) != len(kinds):
                raise ValueError(f"it must have {len(kinds)} entries. Got {len(cells)}.")
            values = [_value(cell, kind) for cell, kind in zip(cells, kinds, strict=True)]
        except ValueError as error:
            raise FormatError(f"The table {self.path} is damaged in line {line}: {error}") from None
        named = dict(zip(self._header, values, strict=True))
        row, results, about = (
            {name: named[name] for name in part} for part in (self._study.settings, self._study.results, ABOUT)
        )
        return Measured(self._study.row(**row), results, about)


def _cell(value: Any) -> str:
    """Return a value as text that `_value` makes the same value of."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(cell: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(float(part) for part in cell.split())
    if kind is bool:
        if cell not in ("True", "False"):
            raise ValueError(f"True or False must stand where {cell!r} does.")
        return cell == "True"
    return cast(Any, kind)(cell)


def _lock(descriptor: int, place: int, *, wait: bool) -> bool:
    """Lock one byte of a file against other processes; whether it could be had."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
    except (BlockingIOError, PermissionError):  # the two ways in which systems say that somebody else has it
        return False
    return True


def _unlock(descriptor: int, place: int) -> None:
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)
