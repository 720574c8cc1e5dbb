r"""Layers as the Graph Challenge has them: text, one connection a line, ``row\tcolumn\tvalue``.

Rows are inputs and columns outputs, both counted from 1; lines end in a newline, the last one too. The challenge
writes the columns one after the other and values as C's ``%e``, ``6.250000e-02`` for 1/16, and so does `write_layer`,
byte for byte. The format does not hold the shape. Readers take connections in any order and refuse everything else
that is not as described, with the number of the line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._topology import as_pattern
from topogen.errors import FormatError
from topogen.io._atomic import replacing

__all__ = ["read_layer", "read_weights", "write_layer"]

_CHUNK = 1 << 23  # bytes that are parsed at once
_TAB, _NEWLINE = b"\t\n"
_MAX_DIGITS = 18  # of an index: what an int64 holds whatever the digits are
_MAX_LETTERS = 64  # of a value: more than any float needs
_IN_NUMBERS = np.zeros(256, np.bool_)
_IN_NUMBERS[list(b"0123456789+-.eE")] = True

_Bytes = npt.NDArray[np.uint8]
_Positions = npt.NDArray[np.int64]


def write_layer(path: str | os.PathLike[str], layer: Any, value: float) -> None:
    r"""Write the connections of a layer, all with the same value.

    Parameters
    ----------
    path : str or path-like
        Where to. An existing file is replaced in one step when all is written, and stays as it was if anything goes
        wrong before.
    layer : sparse or dense matrix, shape (n_in, n_out)
        As for `topogen.as_pattern`: a connection is an entry that is not zero.
    value : float
        Finite and not zero; 1/16 in the challenge. Written with six decimals.

    Raises
    ------
    SpecError
        If `layer` is no matrix, or `value` is not such a number.
    OSError
        If the file cannot be written.

    Notes
    -----
    O(nnz) time; beside the layer, its transpose and the text of one column are held.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import topogen as tg
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "layer.tsv"
    >>> tg.io.graph_challenge.write_layer(path, [[1, 0], [1, 1]], 1 / 16)
    >>> path.read_bytes()
    b'1\t1\t6.250000e-02\n2\t1\t6.250000e-02\n2\t2\t6.250000e-02\n'
    """
    pattern = as_pattern(layer, name="layer")
    number = checks.real(value, "value", "write_layer", low=-math.inf)
    if number == 0:
        checks.refuse("value", "write_layer", "a number other than 0, which would be no connection", value)
    columns = pattern.tocsc()
    rows = [b"%d\t" % (i + 1) for i in range(pattern.shape[0])]
    with replacing(path) as file:
        for j, (start, stop) in enumerate(zip(columns.indptr[:-1], columns.indptr[1:], strict=True)):
            if start < stop:
                ending = b"%d\t%e\n" % (j + 1, number)
                sources: list[int] = columns.indices[start:stop].tolist()
                file.write(ending.join([rows[i] for i in sources]))
                file.write(ending)


def read_layer(path: str | os.PathLike[str], shape: tuple[int, int]) -> sp.csr_array:
    """Read the connections of a layer; their values are checked and dropped.

    Parameters
    ----------
    path : str or path-like
    shape : (int, int)
        (n_in, n_out), which the file does not tell.

    Returns
    -------
    csr_array, shape (n_in, n_out), dtype bool
        In canonical form.

    Raises
    ------
    FormatError
        If the file is no such text: a line that does not hold two indices within `shape` and a finite value other than
        0, a connection that is there twice, or an end in the middle of a line. The sentence names file and line.
    SpecError
        If `shape` is no shape.
    OSError
        If the file cannot be read.

    Notes
    -----
    The text is read in pieces of 8 MiB. A file that was cut between two lines cannot be told from a layer with fewer
    connections: compare ``nnz``.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import topogen as tg
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "layer.tsv"
    >>> tg.io.graph_challenge.write_layer(path, [[1, 0], [1, 1]], 1 / 16)
    >>> tg.io.graph_challenge.read_layer(path, (2, 2)).toarray().astype(int).tolist()
    [[1, 0], [1, 1]]
    """
    return as_pattern(_read(path, shape, "read_layer", with_values=False))


def read_weights(path: str | os.PathLike[str], shape: tuple[int, int]) -> sp.csr_array:
    """Read the weights of a layer.

    Parameters
    ----------
    path : str or path-like
    shape : (int, int)
        (n_in, n_out), which the file does not tell.

    Returns
    -------
    csr_array, shape (n_in, n_out), dtype float64
        In canonical form: sorted indices, no duplicates, no stored zeros.

    Raises
    ------
    FormatError, SpecError, OSError
        As `read_layer`.

    Notes
    -----
    As for `read_layer`. The challenge's images are such a file too: image, pixel, 1.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import topogen as tg
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "layer.tsv"
    >>> tg.io.graph_challenge.write_layer(path, [[1, 0], [1, 1]], 1 / 16)
    >>> tg.io.graph_challenge.read_weights(path, (2, 2)).toarray().tolist()
    [[0.0625, 0.0], [0.0625, 0.0625]]
    """
    return _read(path, shape, "read_weights", with_values=True)


class _Lines(NamedTuple):
    """Lines in a row: indices counted from 0, and the values."""

    rows: _Positions
    columns: _Positions
    values: npt.NDArray[np.float64]


def _read(path: str | os.PathLike[str], shape: tuple[int, int], owner: str, *, with_values: bool) -> sp.csr_array:
    sides = checks.integers(shape, "shape", owner, low=1)
    if len(sides) != 2:
        checks.refuse("shape", owner, "a pair of ints, (n_in, n_out)", shape)
    n_in, n_out = sides
    index = sp.get_index_dtype(maxval=max(sides))
    rows, columns, values = [np.empty(0, index)], [np.empty(0, index)], [np.empty(0)]
    done = 0
    for text in _whole_lines(path):
        lines = _Parser(os.fspath(path), done, text).lines(n_in, n_out)
        rows.append(lines.rows.astype(index))
        columns.append(lines.columns.astype(index))
        values.append(lines.values if with_values else np.ones(0))
        done += len(lines.rows)
    return _assembled(
        os.fspath(path),
        np.concatenate(rows),
        np.concatenate(columns),
        np.concatenate(values) if with_values else np.ones(done, np.bool_),
        (n_in, n_out),
    )


def _whole_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the file in pieces that end where a line ends, but for the last one if the file does not."""
    with open(path, "rb") as file:  # noqa: PTH123 - a path-like need not be a Path
        rest = b""
        while piece := file.read(_CHUNK):
            end = piece.rfind(b"\n") + 1 or len(piece)  # a line as long as a piece is wrong anyhow
            yield rest + piece[:end]
            rest = piece[end:]
        if rest:
            yield rest


class _Parser:
    """Reads a piece of text all at once; only where that fails it looks for the line that is at fault."""

    def __init__(self, path: str | bytes, lines_before: int, text: bytes) -> None:
        self._path = path
        self._before = lines_before
        self._text = text

    def lines(self, n_in: int, n_out: int) -> _Lines:
        octets = np.frombuffer(self._text, np.uint8)
        separators = np.flatnonzero((octets == _TAB) | (octets == _NEWLINE))
        kinds = octets[separators]
        if octets[-1] != _NEWLINE or kinds.size % 3 or not (kinds.reshape(-1, 3) == [_TAB, _TAB, _NEWLINE]).all():
            self._refuse_structure()
        ends = separators.reshape(-1, 3)
        starts = np.concatenate([[0], separators[:-1] + 1]).reshape(-1, 3)
        return _Lines(
            self._indices(octets, starts[:, 0], ends[:, 0], n_in, "row"),
            self._indices(octets, starts[:, 1], ends[:, 1], n_out, "column"),
            self._values(octets, starts[:, 2], ends[:, 2]),
        )

    def _indices(self, octets: _Bytes, starts: _Positions, ends: _Positions, largest: int, what: str) -> _Positions:
        lengths = ends - starts
        numbers = np.zeros(len(starts), np.int64)
        sound = (lengths > 0) & (lengths <= _MAX_DIGITS)
        for place in range(min(int(lengths.max()), _MAX_DIGITS)):
            here = place < lengths
            digits = octets[np.where(here, starts + place, 0)] - np.uint8(ord("0"))  # what is no digit wraps to > 9
            sound &= ~here | (digits <= 9)
            numbers = np.where(here, 10 * numbers + digits, numbers)
        sound &= (numbers >= 1) & (numbers <= largest)
        if not sound.all():
            line = int(np.argmin(sound))
            self._refuse(line, f"its {what} must be an int in [1, {largest}]", self._field(starts, ends, line))
        return numbers - 1

    def _values(self, octets: _Bytes, starts: _Positions, ends: _Positions) -> npt.NDArray[np.float64]:
        lengths = ends - starts
        longest = min(int(lengths.max()), _MAX_LETTERS)
        within = np.arange(longest) < lengths[:, np.newaxis]
        letters = octets[np.where(within, starts[:, np.newaxis] + np.arange(longest), 0)]
        if (lengths == longest).all() and (letters == letters[0]).all():  # one value, as the challenge has it
            lengths, within, letters = lengths[:1], within[:1], letters[:1]
        sound = (_IN_NUMBERS[letters] | ~within).all(axis=1) & (lengths > 0) & (lengths <= longest)
        texts = np.where(within, letters, np.uint8(0)).view(f"S{longest}").ravel() if longest else [b""] * len(letters)
        numbers = np.array([_number(text) if fine else math.nan for text, fine in zip(texts, sound, strict=True)])
        sound = np.isfinite(numbers) & (numbers != 0)
        if not sound.all():
            line = int(np.argmin(sound))
            self._refuse(line, "its value must be a finite number other than 0", self._field(starts, ends, line))
        return numbers if len(numbers) == len(starts) else np.full(len(starts), numbers[0])

    def _field(self, starts: _Positions, ends: _Positions, line: int) -> bytes:
        return self._text[int(starts[line]) : int(ends[line])]

    def _refuse_structure(self) -> NoReturn:
        lines = self._text.split(b"\n")
        ended = lines.pop()
        for line, text in enumerate(lines):
            if text.count(b"\t") != 2:
                self._refuse(line, "it must be a row, a column and a value, with a tab between each two", text)
        self._refuse(len(lines), "it must end in a newline (was the file cut?)", ended)

    def _refuse(self, line: int, reason: str, got: bytes) -> NoReturn:
        field = got.decode("latin-1")
        shown = ascii(field if len(field) <= 80 else f"{field[:77]}...")
        raise FormatError(f"{self._path!r}, line {self._before + line + 1}: {reason}. Got {shown}.")


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _assembled(
    path: str | bytes,
    rows: npt.NDArray[np.integer],
    columns: npt.NDArray[np.integer],
    values: npt.NDArray[Any],
    shape: tuple[int, int],
) -> sp.csr_array:
    """Return the canonical matrix of entries that are in no order, unless one of them is there twice."""
    keys = rows.astype(np.int64) * shape[1] + columns
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if twice.size:
        second = int(order[twice + 1].min())
        first = int(order[np.searchsorted(keys, int(rows[second]) * shape[1] + int(columns[second]))])
        raise FormatError(
            f"{path!r}, line {second + 1}: every connection must be there once. Got row {rows[second] + 1}, column "
            f"{columns[second] + 1} again, which is in line {first + 1} too."
        )
    index = sp.get_index_dtype(maxval=max(len(keys), *shape))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(index)
    matrix = sp.csr_array((values[order], columns[order].astype(index), indptr), shape=shape)
    matrix.has_canonical_format = True
    return matrix
