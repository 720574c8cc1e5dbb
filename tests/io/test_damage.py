"""Damaged and foreign files: a FormatError of one sentence for each, or the very topology that was saved."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import FormatError


def assert_same(loaded: tg.Topology, net: tg.Topology) -> None:
    assert loaded == net
    assert loaded.spec == net.spec
    assert str(loaded.seed) == str(net.seed)


def test_every_flipped_byte_is_found_or_harmless(tmp_path):
    net = tg.generate(tg.ErdosRenyi(sizes=[3, 2], density=0.5), rng=0)
    path = tmp_path / "net.npz"
    tg.save(net, path)
    whole = path.read_bytes()
    found = 0
    for position in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[position] ^= (0xFF, 0x01, 0x80)[position % 3]
        path.write_bytes(damaged)
        try:
            loaded = tg.load(path)
        except FormatError:
            found += 1
        else:  # dates and other things that a zip file says of its entries and nobody reads
            assert_same(loaded, net)
    assert found > 0.4 * len(whole)


def test_every_truncation_is_found(saved):
    whole = saved.read_bytes()
    for length in [*range(0, len(whole) - 100, 23), *range(len(whole) - 100, len(whole))]:
        saved.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"is not a topology that can be read: it is damaged, or no \.npz file"):
            tg.load(saved)


@given(st.binary(max_size=200), st.integers(0, 1400), st.integers(0, 60))
def test_overwritten_stretches_are_found_or_harmless(tmp_path_factory, garbage, start, removed):
    path = tmp_path_factory.getbasetemp() / "garbage.npz"
    net = tg.generate(tg.ErdosRenyi(sizes=[3, 2], density=0.5), rng=0)
    tg.save(net, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + garbage + whole[start + removed :])
    try:
        loaded = tg.load(path)
    except FormatError:
        return
    assert_same(loaded, net)


def rewrite(path: Path, changes: dict[str, Any], *, compressed: bool = False) -> None:
    """Write the arrays of `path` anew, by numpy, with `changes`; None drops an array."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    (np.savez_compressed if compressed else np.savez)(path, **kept)


def header(path: Path, **changes: Any) -> np.ndarray:
    """Return the header with `changes`; `...` drops a key."""
    with np.load(path) as file:
        entries = json.loads(str(file["header"])) | changes
    return np.array(json.dumps({key: value for key, value in entries.items() if value is not ...}))


def test_numpy_can_write_the_file_anew(saved, net):
    rewrite(saved, {})
    assert_same(tg.load(saved), net)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# layer 1 of the saved topology has shape (9, 3) and 6 connections
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": None}, "it has no array 'header', so topogen did not write it."),
        (
            {"layer_1_indices": None, "weights": np.zeros(3)},
            "it must hold 2 layers and no more (missing: layer_1_indices; foreign: weights).",
        ),
        ({"header": np.array("{")}, "its header is not JSON (Expecting property name"),
        ({"header": np.array("[1]")}, "its header must be a JSON object. Got '[1]'."),
        ({"header": np.array('{"a": 1}')}, """its header must say that it is a 'topogen topology'. Got '{"a": 1}'."""),
        ({"header": np.array(7)}, "its array 'header' must be one text. Got 0 dimensions of int64."),
        ({"header": np.array(["{}", "{}"])}, "its array 'header' must be one text. Got 1 dimensions of <U2."),
        (
            {"layer_0_indptr": np.zeros(7)},
            "must be a row of int32 or int64. Got 1 dimensions of float64.",
        ),
        ({"layer_0_indptr": np.zeros((7, 1), np.int32)}, "must be a row of int32 or int64. Got 2 dimensions of int32."),
        ({"layer_0_indptr": np.zeros(7, ">i4")}, "must be a row of int32 or int64. Got 1 dimensions of >i4."),
        (
            {"layer_0_indptr": np.array([None])},
            "array 'layer_0_indptr' holds pickled objects, which are never read.",
        ),
        ({"layer_1_shape": np.array([9, 4])}, "layer 1 has the shape (9, 4), and the header's sizes say (9, 3)."),
        ({"layer_1_indptr": i32(0, 6)}, "layer 1, of shape (9, 3), has 2 row pointers, not 10."),
        (
            {"layer_1_indptr": i32(0, 1, 2, 3, 4, 5, 6, 6, 6, 7)},
            "layer 1, of shape (9, 3), has row pointers that do not rise from 0 to 6, the number of its indices.",
        ),
        ({"layer_1_indptr": i32(1, 1, 2, 3, 4, 5, 6, 6, 6, 6)}, "has row pointers that do not rise from 0 to 6"),
        ({"layer_1_indptr": i32(0, 9, 2, 3, 4, 5, 6, 6, 6, 6)}, "has row pointers that do not rise from 0 to 6"),
        ({"layer_1_indices": i32(0, 1, 2, 3, 0, 1)}, "has indices from 0 to 3, outside [0, 2]."),
        ({"layer_1_indices": i32(0, 1, 2, -1, 0, 1)}, "has indices from -1 to 2, outside [0, 2]."),
        (
            {"layer_1_indptr": i32(0, 2, 6, 6, 6, 6, 6, 6, 6, 6), "layer_1_indices": i32(1, 0, 0, 1, 2, 2)},
            "layer 1, of shape (9, 3), has indices that are unsorted or double.",
        ),
        (
            {"layer_1_indptr": i32(0, 3, 6, 6, 6, 6, 6, 6, 6, 6), "layer_1_indices": i32(0, 1, 2, 0, 1, 1)},
            "layer 1, of shape (9, 3), has indices that are unsorted or double.",
        ),
        (
            {"layer_1_indptr": i32(0, 3, 6, 6, 6, 6, 6, 6, 6, 6), "layer_1_indices": i32(0, 1, 2, 0, 1, 2)},
            "its content has the hash",
        ),
    ],
)
def test_foreign_arrays(changes, message, saved):
    rewrite(saved, changes)
    with pytest.raises(FormatError, match=f"^The file '{re.escape(str(saved))}' is not .*{re.escape(message)}"):
        tg.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "weights"}, "its header must say that it is a 'topogen topology'."),
        (
            {"version": 3, "topogen": "9.0"},
            f"format version 3, written by topogen '9.0'; this is topogen {tg.__version__}, which reads versions 1 and "
            "2.",
        ),
        ({"seed": ..., "sha256": ...}, "its header has no 'seed' and no 'sha256'."),
        ({"sha256": "0" * 64}, f"and its header says '{'0' * 64}'."),
        ({"sha256": None}, "and its header says None."),
        ({"sizes": [6, 9]}, "its spec describes the sizes (6, 9, 3) and its header says (6, 9)."),
        ({"sizes": [6, 9], "spec": None}, "it must hold 1 layers and no more (missing: none; foreign: layer_1_indices"),
        (
            {"sizes": [6]},
            "its sizes are impossible: The 'sizes' parameter of the header must be a sequence of",
        ),
        (
            {"sizes": [6, 9.5, 3]},
            "The 'sizes[1]' parameter of the header must be an int >= 1. Got 9.5.",
        ),
        ({"sizes": "many"}, "its sizes are impossible: The 'sizes' parameter"),
        ({"spec": {"family": "Nonesuch"}}, "Got 'Nonesuch'."),
        ({"spec": [1]}, "The spec must be a JSON object with a 'family'. Got '[1]'."),
        (
            {"spec": {"family": "Dense", "sizes": [0, 1]}},
            "family Dense is impossible: The 'sizes[0]' parameter",
        ),
        ({"spec": {"family": "Dense", "size": [1]}}, "The spec of family Dense is impossible"),
        ({"spec": {"family": "Chain"}}, "impossible"),
        ({"spec": {"family": "Trim", "spec": {"family": "Chain", "specs": 3}, "sizes": [1]}}, "impossible"),
        ({"spec": {"family": "ErdosRenyi", "sizes": [6, 9, 3], "density": 10**400}}, "impossible"),
        (
            {"spec": {"family": "Dense", "sizes": [6, 9, 4]}},
            "its spec describes the sizes (6, 9, 4) and its",
        ),
        ({"seed": 3}, "its seed is no SeedSequence (TypeError: "),
        ({"seed": {}}, "its seed is no SeedSequence (KeyError: 'entropy')."),
        (
            {"seed": {"entropy": None, "spawn_key": [], "pool_size": 4}},
            "is no SeedSequence (ValueError: no entropy).",
        ),
        ({"seed": {"entropy": -1, "spawn_key": [], "pool_size": 4}}, "its seed is no SeedSequence (ValueError: "),
        ({"seed": {"entropy": 1, "spawn_key": [-1], "pool_size": 4}}, "its seed is no SeedSequence (ValueError: "),
        ({"seed": {"entropy": 1.5, "spawn_key": [], "pool_size": 4}}, "its seed is no SeedSequence (TypeError: "),
        (
            {"seed": {"entropy": 1, "spawn_key": [], "pool_size": 10**12}},
            "its seed is no SeedSequence (ValueError: a pool of 1000000000000 words).",
        ),
    ],
)
def test_foreign_headers(changes, message, saved):
    rewrite(saved, {"header": header(saved, **changes)})
    with pytest.raises(FormatError, match=f"^The file '{re.escape(str(saved))}' is not .*{re.escape(message)}"):
        tg.load(saved)


def test_deeply_nested_json_is_refused(saved):
    text = str(header(saved, spec=0))[:-1] + ', "spec": ' + '{"family": "Chain", "specs": [' * 5000 + "]}" * 5000 + "}"
    for deep in (text, "[" * 100_000):
        rewrite(saved, {"header": np.array(deep)})
        with pytest.raises(FormatError, match="is not a topology that can be read"):
            tg.load(saved)


def test_a_compressed_copy_is_refused(saved):
    rewrite(saved, {}, compressed=True)
    with pytest.raises(FormatError, match="its array 'layer_0_shape' is compressed, which topogen never does"):
        tg.load(saved)


def replace_member(path: Path, name: str, data: bytes, *, twice: bool = False) -> None:
    """Write the archive anew with other bytes for one member."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[name] = data
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(name, data)


def npy(descr: str, shape: tuple[int, ...], data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """Return the bytes of a .npy file whose header says anything at all."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy("<i8", (10**15,)), "its array 'layer_0_indices' has 0 bytes for the shape (1000000000000000,) of int64."),
        (npy("<i4", (-1,), b"1234"), "has 4 bytes for the shape (-1,) of int32."),
        (npy("<i4", (2,), bytes(4)), "has 4 bytes for the shape (2,) of int32."),
        (npy("<i4", (1,), bytes(8)), "has 8 bytes for the shape (1,) of int32."),
        (
            npy("|O", (1,), pickle.dumps([1])),
            "array 'layer_0_indices' holds pickled objects, which are never read.",
        ),
        (npy("<i4", (0,), version=(3, 0)), "is no array of numpy (version (3, 0) of the format)."),
        (b"", "its array 'layer_0_indices' is no array of numpy (EOF"),
        (b"hello", "its array 'layer_0_indices' is no array of numpy ("),
        (npy("nonsense", (1,)), "its array 'layer_0_indices' is no array of numpy ("),
        (b"\x93NUMPY\x01\x00\x08\x00((((((((", "its array 'layer_0_indices' is no array of numpy ("),
    ],
)
def test_foreign_bytes_in_an_array(data, message, saved):
    replace_member(saved, "layer_0_indices.npy", data)
    with pytest.raises(FormatError, match=re.escape(message)):
        tg.load(saved)


def test_a_header_text_that_is_no_text(saved):
    replace_member(saved, "header.npy", npy("<U1", (), b"\xff\xff\xff\xff"))
    with pytest.raises(FormatError, match=r"it is damaged, or no \.npz file at all .*utf-32.* can't decode"):
        tg.load(saved)


def test_members_that_are_no_arrays_or_come_twice(saved):
    original = saved.read_bytes()
    replace_member(saved, "readme.txt", b"hello")
    with pytest.raises(FormatError, match=r"it holds 'readme\.txt', which is no array\."):
        tg.load(saved)
    saved.write_bytes(original)
    replace_member(saved, "layer_0_shape.npy", b"", twice=True)
    with pytest.raises(FormatError, match=r"it holds 'layer_0_shape\.npy' twice\."):
        tg.load(saved)


def test_sizes_that_the_file_cannot_hold_are_never_allocated(saved):
    """The zip directory claims more than the file has: in both of its numbers, or in one."""
    with zipfile.ZipFile(saved, "a") as archive:
        for info in archive.infolist():
            info.file_size = info.compress_size = 1 << 40
        archive._didModify = True  # so that the directory is written anew
    with pytest.raises(FormatError, match=r"its arrays claim [\d,]{15,} bytes, and the file has \d,\d+\."):
        tg.load(saved)


def test_an_encrypted_archive_is_refused(saved):
    data = bytearray(saved.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        data[start + offset] |= 1
    saved.write_bytes(data)
    with pytest.raises(FormatError, match="is encrypted"):
        tg.load(saved)


def test_nothing_is_unpickled(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    buffer = io.BytesIO()
    np.save(buffer, np.array(Bomb()), allow_pickle=True)
    for name in ("header.npy", "layer_0_indptr.npy"):
        replace_member(saved, name, buffer.getvalue())
        with pytest.raises(FormatError, match="holds pickled objects, which are never read"):
            tg.load(saved)
    assert not (tmp_path / "exploded").exists()
    np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)  # the bomb does work
    assert (tmp_path / "exploded").exists()
