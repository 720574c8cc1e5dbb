"""Topologies as .npz files: plain numpy arrays and one line of JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._topology import Topology, as_topology, pattern_hash
from topogen.errors import FormatError, SpecError
from topogen.io._atomic import replacing
from topogen.io._header import FORMAT, header_from_json, header_to_json

__all__ = ["load", "save"]

_HEADER = "header"
_PARTS = ("shape", "indptr", "indices")
_CHUNK = 1 << 20  # bytes
_Array = np.ndarray[Any, Any]


def save(net: Any, path: str | os.PathLike[str]) -> None:
    """Write a topology to a ``.npz`` file.

    Parameters
    ----------
    net : Topology, sequence of matrices, or one matrix
        Written layer by layer: a lazy topology needs memory for one layer at a time.
    path : str or path-like
        Where to; must end in ``.npz``. An existing file is replaced in one step when all is written, and stays as it
        was if anything goes wrong before, Ctrl-C and a full disk included.

    Raises
    ------
    SpecError
        If `net` is no topology, its spec does not fit its layers or has no JSON form, or `path` does not end in
        ``.npz``.
    OSError
        If the file cannot be written.

    Notes
    -----
    Layer k is three arrays that numpy reads alone, ``layer_k_shape``, ``layer_k_indptr`` and ``layer_k_indices``: a
    csr matrix of ones. ``header`` is a JSON text: format and its version, topogen's version, sizes, spec, seed, and
    the SHA-256 of the sizes and of each layer's `pattern_hash`. Equal topologies of equal spec and seed give equal
    bytes. A topology with relays has them in ``relays_k``, one row of neuron indices for each layer of nodes, and in
    the hash; its format version is 2, and that of every other file is 1, which any topogen reads.

    The arrays are not compressed. Deflate makes the indices of random layers 2.3 times smaller, but writing them 20
    times and reading them 10 times slower; and a file without compression cannot ask for more memory than its own
    size.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import topogen as tg
    >>> net = tg.generate(tg.RandomBiregular(sizes=[8, 8], fan_in=2), rng=0)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> tg.save(net, path)
    >>> tg.load(path) == net, tg.load(path).spec == net.spec
    (True, True)
    """
    net = as_topology(net, name="net")
    target = _npz_path(path, "save")
    header_to_json(net, "")  # a spec that cannot be written is found before anything is
    with replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        digest = _digest(net.sizes)
        for k, layer in enumerate(net):
            digest.update(bytes.fromhex(pattern_hash(layer)))
            shape = np.array(layer.shape, np.int64)
            for part, array in zip(_PARTS, (shape, layer.indptr, layer.indices), strict=True):
                _write_array(archive, f"layer_{k}_{part}", array)
        if any(row.size for row in net.relays):
            for k, row in enumerate(net.relays):
                _add_relays(digest, row)
                _write_array(archive, f"relays_{k}", row)
        _write_array(archive, _HEADER, np.array(header_to_json(net, digest.hexdigest())))


def load(path: str | os.PathLike[str]) -> Topology:
    """Read a topology that `save` wrote.

    Parameters
    ----------
    path : str or path-like
        A file that ends in ``.npz``.

    Returns
    -------
    Topology
        Equal to the one that was saved, with its spec and seed. Everything is read and checked before it is returned.

    Raises
    ------
    FormatError
        If the file is no topology: damaged, truncated, foreign, of an unknown version, or with a spec that is unknown,
        impossible or does not fit the layers. The sentence names the file and what is wrong.
    SpecError
        If `path` does not end in ``.npz``, or the file is larger than the memory at hand.
    OSError
        If the file is missing or cannot be opened.

    Notes
    -----
    Nothing in the file is ever unpickled or executed, and no more memory is asked for than a file of its size can fill.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import topogen as tg
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> tg.save([[1, 0, 1], [0, 1, 1]], path)
    >>> tg.load(path).sizes
    (2, 3)
    """
    target = _npz_path(path, "load")
    with target.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        checks.fits_in_memory(size, "path", "load")
        try:
            return _read(file, size)
        except FormatError as error:
            raise FormatError(f"The file '{target}' is not a topology that can be read: {error}") from None


def _npz_path(path: Any, owner: str) -> Path:
    text = os.fspath(cast("os.PathLike[str]", path)) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or Path(text).suffix != ".npz":
        checks.refuse("path", owner, "a path that ends in '.npz'", text)
    return Path(text)


def _digest(sizes: Iterable[int]) -> Any:
    """Return the content hash so far; the hash of each layer's pattern follows."""
    return hashlib.sha256(json.dumps([FORMAT, *sizes]).encode())


def _add_relays(digest: Any, row: _Array) -> None:
    digest.update(b"relays" + len(row).to_bytes(8, "little") + row.astype("<i8").tobytes())


def _write_array(archive: zipfile.ZipFile, name: str, array: _Array) -> None:
    # a ZipInfo has no date of its own, so that equal topologies give equal bytes
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


# From here on a FormatError carries the reason alone; `load` puts the file's name before it.


def _read(file: BinaryIO, size: int) -> Topology:
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, size)
    except FormatError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, LookupError, struct.error) as error:
        raise FormatError(f"it is damaged, or no .npz file at all ({error}).") from None


def _read_archive(archive: zipfile.ZipFile, size: int) -> Topology:
    members = _members(archive, size)
    if _HEADER not in members:
        raise FormatError(f"it has no array '{_HEADER}', so topogen did not write it.")
    letters = _read_array(archive, members.pop(_HEADER), "U", 0).tobytes()
    header = header_from_json(letters.decode("utf-32"))  # numpy's own conversion crashes on what is no letter
    depth = len(header.sizes) - 1
    expected = {f"layer_{k}_{part}" for k in range(depth) for part in _PARTS}
    if header.has_relays:
        expected |= {f"relays_{k}" for k in range(depth + 1)}
    if expected != set(members):
        missing, foreign = _few(expected - set(members)), _few(set(members) - expected)
        raise FormatError(f"it must hold {depth} layers and no more (missing: {missing}; foreign: {foreign}).")
    patterns: list[sp.csr_array] = []
    for k in range(depth):
        shape = (header.sizes[k], header.sizes[k + 1])
        stored, indptr, indices = (_read_array(archive, members[f"layer_{k}_{part}"], "i", 1) for part in _PARTS)
        if tuple(stored.tolist()) != shape:
            raise FormatError(f"layer {k} has the shape {tuple(stored.tolist())}, and the header's sizes say {shape}.")
        patterns.append(_pattern(k, shape, indptr, indices))
    relays = None
    if header.has_relays:
        relays = [_read_array(archive, members[f"relays_{k}"], "i", 1) for k in range(depth + 1)]

    def content(version: int) -> str:
        digest = _digest(header.sizes)
        for pattern in patterns:
            digest.update(bytes.fromhex(pattern_hash(pattern, version)))
        for row in relays or ():
            _add_relays(digest, row)
        return digest.hexdigest()

    found = content(2)
    if found != header.sha256 != content(1):
        raise FormatError(f"its content has the hash {found}, and its header says {header.sha256!r}.")
    try:
        return Topology(patterns, spec=header.spec, seed=header.seed, relays=relays)
    except SpecError as error:  # the layers have been checked
        raise FormatError(f"its relays are impossible: {error}") from None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's arrays by name, having checked that the file, of `size` bytes, can hold what they claim."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in members:
            raise FormatError(f"it holds {info.filename!r}{' twice' if name in members else ', which is no array'}.")
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError(f"its array {name!r} is compressed, which topogen never does.")
        members[name] = info
    claimed = sum(info.file_size for info in members.values())
    if claimed > size or any(info.file_size != info.compress_size for info in members.values()):
        raise FormatError(f"its arrays claim {claimed:,} bytes, and the file has {size:,}.")
    return members


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, kind: str, ndim: int) -> _Array:
    """Read one array of dtype kind `kind` ("U" or "i") and `ndim` dimensions; zipfile checks its checksum."""
    name = info.filename.removesuffix(".npy")
    data = bytearray(info.file_size)  # not bytes: the array can be written to, as any other
    filled = 0
    with archive.open(info) as member:
        while chunk := member.read(_CHUNK):
            data[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
    shape, dtype, offset = _array_header(data, name)
    if dtype.hasobject:
        raise FormatError(f"its array {name!r} holds pickled objects, which are never read.")
    dtypes = (np.dtype(np.int32), np.dtype(np.int64))
    if len(shape) != ndim or not (dtype in dtypes if kind == "i" else dtype.kind == kind and dtype.isnative):
        wanted = "a row of int32 or int64" if kind == "i" else "one text"
        raise FormatError(f"its array {name!r} must be {wanted}. Got {len(shape)} dimensions of {dtype}.")
    count = shape[0] if shape else 1
    if count * dtype.itemsize != len(data) - offset:
        raise FormatError(f"its array {name!r} has {len(data) - offset:,} bytes for the shape {shape} of {dtype}.")
    return np.frombuffer(data, dtype, count, offset).reshape(shape)


def _array_header(data: bytearray, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, dtype, and where the numbers start."""
    start = BytesIO(data[: 1 << 14])
    try:
        version = np.lib.format.read_magic(start)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    except Exception as error:  # these are not numpy's bytes, so that its parser may fail in any way
        raise FormatError(f"its array {name!r} is no array of numpy ({error}).") from None
    return shape, dtype, start.tell()


def _pattern(k: int, shape: tuple[int, int], indptr: _Array, indices: _Array) -> sp.csr_array:
    """Return layer k, or say why its arrays are no canonical pattern."""

    def refuse(what: str) -> NoReturn:
        raise FormatError(f"layer {k}, of shape {shape}, has {what}.")

    n_in, n_out = shape
    if len(indptr) != n_in + 1:
        refuse(f"{len(indptr)} row pointers, not {n_in + 1}")
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        refuse(f"row pointers that do not rise from 0 to {len(indices)}, the number of its indices")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_out:
        refuse(f"indices from {indices.min()} to {indices.max()}, outside [0, {n_out - 1}]")
    rises = indices[1:] > indices[:-1]
    first = indptr[1:-1]
    rises[first[(first > 0) & (first < len(indices))] - 1] = True  # the first index of a row may be any
    if not rises.all():
        refuse("indices that are unsorted or double")
    pattern = sp.csr_array((np.ones(len(indices), np.bool_), indices, indptr), shape=shape)
    pattern.has_canonical_format = True
    return pattern


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
