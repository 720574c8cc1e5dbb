"""Relays of a topology: kept by ==, repr, save and load, and refused where they are impossible."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import topogen as tg
from topogen.errors import FormatError, SpecError

LAYERS = ([[1, 1, 0], [0, 0, 1]], [[1, 0], [1, 1], [0, 1]])  # sizes (2, 3, 2); every hidden neuron has one input


def net(relays=((), (0, 2), ())):
    return tg.Topology(LAYERS, relays=relays)


def test_relays_are_one_row_of_int64_for_each_layer_of_nodes():
    assert [row.tolist() for row in net().relays] == [[], [0, 2], []]
    assert {row.dtype for row in net().relays} == {np.dtype(np.int64)}
    assert [row.tolist() for row in tg.Topology(LAYERS).relays] == [[], [], []]
    assert [row.tolist() for row in net([[], np.array([1], np.uint8), []]).relays] == [[], [1], []]


def test_relays_are_part_of_what_is_equal_and_of_the_repr():
    assert net() == net()
    assert net() != net([[], [0], []])
    assert net() != net([[], [0, 1], []])
    assert net() != tg.Topology(LAYERS)
    assert tg.Topology(LAYERS) == net([[], [], []])
    assert repr(net()) == "Topology(sizes=(2, 3, 2), n_relays=2)"
    assert repr(tg.Topology(LAYERS)) == "Topology(sizes=(2, 3, 2))"


def test_connections_of_relays_are_stored_and_measured_as_any_other():
    assert net().nnz == tg.Topology(LAYERS).nnz
    assert tg.measures.path_counts(net()) == tg.measures.path_counts(LAYERS)


INDICES = "must be increasing neuron indices in [0, 2]."
ROWS = "must be one row of neuron indices for each of the 3 layers of nodes."


@pytest.mark.parametrize(
    ("relays", "name", "rest"),
    [
        (5, "relays", f"{ROWS} Got 5."),
        ([[], []], "relays", f"{ROWS} Got 2 rows."),
        ([[], [3], []], "relays[1]", f"{INDICES} Got [3]."),
        ([[], [-1], []], "relays[1]", f"{INDICES} Got [-1]."),
        ([[], [1, 0], []], "relays[1]", f"{INDICES} Got [1, 0]."),
        ([[], [0, 0], []], "relays[1]", f"{INDICES} Got [0, 0]."),
        ([[], [1.0], []], "relays[1]", f"{INDICES} Got [1.0]."),
        ([[], [True], []], "relays[1]", f"{INDICES} Got [True]."),
        ([[], [[0], [1, 2]], []], "relays[1]", f"{INDICES} Got [[0], [1, 2]]."),
        ([[], 1, []], "relays[1]", f"{INDICES} Got 1."),
        ([[1], [], []], "relays[0]", "must be empty, since an input has nothing to pass on. Got 1 relays."),
        ([[], [], [1]], "relays[2]", "must be neurons with one incoming connection each. Got neuron 1 with 2."),
    ],
)
def test_impossible_relays_are_refused(relays, name, rest):
    with pytest.raises(SpecError, match=f"^The '{re.escape(name)}' parameter of Topology {re.escape(rest)}$"):
        net(relays)


def test_relays_of_lazy_layers_are_believed_without_building():
    def build(k):
        raise AssertionError("built")

    assert tg.Topology(tg.LazyLayers([2, 3, 2], build), relays=[[], [0], [1]]).relays[2].tolist() == [1]


# ---- files


def test_save_and_load_keep_them(tmp_path):
    tg.save(net(), tmp_path / "net.npz")
    loaded = tg.load(tmp_path / "net.npz")
    assert loaded == net()
    assert [row.tolist() for row in loaded.relays] == [[], [0, 2], []]


def version(path):
    with np.load(path) as file:
        return json.loads(str(file["header"]))["version"]


def test_files_without_relays_are_as_they_were(tmp_path):
    tg.save(tg.Topology(LAYERS), tmp_path / "plain.npz")
    tg.save(net(), tmp_path / "relays.npz")
    assert (version(tmp_path / "plain.npz"), version(tmp_path / "relays.npz")) == (1, 2)
    with np.load(tmp_path / "plain.npz") as file:
        assert not [name for name in file.files if "relay" in name]


def test_every_flipped_byte_is_found_or_harmless(tmp_path):
    path = tmp_path / "net.npz"
    tg.save(net(), path)
    whole = path.read_bytes()
    found = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= (0xFF, 0x01, 0x80)[position % 3]
        path.write_bytes(damaged)
        try:
            assert tg.load(path) == net()
        except FormatError:
            found += 1
    assert found > 0.1 * len(whole)  # every seventh byte is flipped


def rewrite(path, changes, **header):
    """Write the arrays of `path` anew, by numpy, with `changes`, None dropping one, and another header."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    arrays["header"] = np.array(json.dumps(json.loads(str(arrays["header"])) | header))
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "header", "message"),
    [
        ({"relays_1": np.array([0, 1])}, {}, "its content has the hash "),
        ({"relays_1": np.array([0]), "relays_2": np.array([2])}, {}, "its content has the hash "),
        ({"relays_1": None}, {}, "it must hold 2 layers and no more (missing: relays_1; foreign: none)."),
        ({}, {"version": 1}, "(missing: none; foreign: relays_0, relays_1, relays_2)."),
        ({"relays_1": np.array([0.0, 2.0])}, {}, "its array 'relays_1' must be a row of int32 or int64."),
    ],
)
def test_damaged_relays_are_found(changes, header, message, tmp_path):
    path = tmp_path / "net.npz"
    tg.save(net(), path)
    rewrite(path, {})
    assert tg.load(path) == net()
    rewrite(path, changes, **header)
    with pytest.raises(FormatError, match=re.escape(message)):
        tg.load(path)


def test_a_file_of_impossible_relays_with_a_hash_that_fits_is_refused(tmp_path):
    forged = net()
    forged.relays = (forged.relays[0], forged.relays[1], np.array([0]))  # output 0 has two inputs
    tg.save(forged, tmp_path / "net.npz")
    message = "its relays are impossible: The 'relays[2]' parameter of Topology must be neurons with one incoming"
    with pytest.raises(FormatError, match=re.escape(message)):
        tg.load(tmp_path / "net.npz")
