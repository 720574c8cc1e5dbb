"""Graph Challenge files: byte for byte the official ones, read back whole, and refused with the line that is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import FormatError, SpecError
from topogen.io import graph_challenge
from topogen.io.graph_challenge import read_layer, read_weights, write_layer
from topogen.testing import patterns

VALUES = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: value != 0)


def expected_text(pattern, value):
    """The format as it is described, line by line."""
    dense = pattern.toarray()
    lines = [
        "%d\t%d\t%e\n" % (i + 1, j + 1, value)  # noqa: UP031 - the format is C's
        for j in range(dense.shape[1])
        for i in range(dense.shape[0])
        if dense[i, j]
    ]
    return "".join(lines).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.tsv"


@given(patterns(max_inputs=14, max_outputs=14), VALUES)
def test_files_are_as_described_and_read_back(tmp_path_factory, pattern, value):
    path = tmp_path_factory.mktemp("layer") / "layer.tsv"
    write_layer(path, pattern, value)
    text = path.read_bytes()
    assert text == expected_text(pattern, value)
    read = read_layer(path, pattern.shape)
    assert tg.pattern_hash(read) == tg.pattern_hash(pattern)
    assert read.dtype == np.bool_
    weights = read_weights(path, pattern.shape)
    assert weights.dtype == np.float64
    np.testing.assert_array_equal(weights.toarray(), pattern.toarray() * float(f"{value:e}"))
    for matrix in (read, weights):
        assert type(matrix) is sp.csr_array
        matrix.check_format(full_check=True)
        assert matrix.has_canonical_format
        assert matrix.indices.dtype == matrix.indptr.dtype == np.int32


@given(st.dictionaries(st.tuples(st.integers(1, 30), st.integers(1, 20)), VALUES, max_size=40), st.randoms())
def test_entries_are_read_in_any_order_and_in_pieces(tmp_path_factory, entries, random):
    path = tmp_path_factory.mktemp("layer") / "layer.tsv"
    lines = [f"{row}\t{column}\t{value!r}\n" for (row, column), value in entries.items()]
    random.shuffle(lines)
    path.write_text("".join(lines), newline="")
    expected = np.zeros((30, 20))
    for (row, column), value in entries.items():
        expected[row - 1, column - 1] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_challenge, "_CHUNK", 64)  # a piece of a line or two
        np.testing.assert_array_equal(read_weights(path, (30, 20)).toarray(), expected)
        np.testing.assert_array_equal(read_layer(path, (30, 20)).toarray(), expected != 0)


def test_all_official_layers_byte_by_byte(data_dir, path):
    folder = data_dir / "graphchallenge"
    packed = np.load(folder / "graphchallenge_1024_l120.npz", allow_pickle=False)
    listed = json.loads((folder / "graphchallenge_1024_sha256.json").read_text())["official_tsv_sha256"]
    assert len(listed) == 120
    spec = tg.GraphChallenge(neurons=1024, layers=120, row_classes=packed["rowclass"])
    for k, layer in enumerate(tg.generate(spec, lazy=True), 1):
        write_layer(path, layer, 1 / 16)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[f"n1024-l{k}.tsv"], k


def test_the_official_inference_finds_the_official_categories(data_dir, path):
    """The challenge from end to end, through the files: 1200 of its images, 120 layers, 19 categories."""
    packed = np.load(data_dir / "graphchallenge" / "graphchallenge_1024_l120.npz", allow_pickle=False)
    indptr, indices = packed["images_indptr"], packed["images_indices"]
    active = sp.csr_array((np.ones(len(indices)), indices, indptr), shape=tuple(packed["images_shape"]))
    for layer in tg.generate(tg.GraphChallenge(neurons=1024, layers=120, row_classes=packed["rowclass"]), lazy=True):
        write_layer(path, layer, 1 / 16)
        active = active @ read_weights(path, (1024, 1024))
        active.data = np.clip(active.data - 0.3, 0, 32)  # the bias goes to stored entries only
        active.eliminate_zeros()
    categories = np.flatnonzero(np.diff(active.indptr)) + 1
    np.testing.assert_array_equal(categories, packed["truth_categories_subset_1based"])
    assert len(categories) == 19


GOOD = b"1\t1\t6.25e-02\n2\t1\t6.25e-02\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"0\t2\t1\n", 3, "its row must be an int in [1, 3]. Got '0'."),
        (b"4\t2\t1\n", 3, "its row must be an int in [1, 3]. Got '4'."),
        (b"-1\t2\t1\n", 3, "its row must be an int in [1, 3]. Got '-1'."),
        (b"1.0\t2\t1\n", 3, "its row must be an int in [1, 3]. Got '1.0'."),
        (b" 1\t2\t1\n", 3, "its row must be an int in [1, 3]. Got ' 1'."),
        (b"\t2\t1\n", 3, "its row must be an int in [1, 3]. Got ''."),
        (b"18446744073709551617\t2\t1\n", 3, "its row must be an int in [1, 3]. Got '18446744073709551617'."),
        (b"1\t3\t1\n", 3, "its column must be an int in [1, 2]. Got '3'."),
        (b"3\t2\t1\n1\tx\t1\n", 4, "its column must be an int in [1, 2]. Got 'x'."),
        (b"1\t2\t0\n", 3, "its value must be a finite number other than 0. Got '0'."),
        (b"1\t2\t0.000000e+00\n", 3, "its value must be a finite number other than 0. Got '0.000000e+00'."),
        (b"1\t2\t\n", 3, "its value must be a finite number other than 0. Got ''."),
        (b"1\t2\tnan\n", 3, "its value must be a finite number other than 0. Got 'nan'."),
        (b"1\t2\t1e999\n", 3, "its value must be a finite number other than 0. Got '1e999'."),
        (b"1\t2\t1_0\n", 3, "its value must be a finite number other than 0. Got '1_0'."),
        (b"1\t2\t1-2\n", 3, "its value must be a finite number other than 0. Got '1-2'."),
        (b"1\t2\t1\x00\n", 3, "its value must be a finite number other than 0. Got '1\\x00'."),
        (b"1\t2\t1\r\n", 3, "its value must be a finite number other than 0. Got '1\\r'."),
        (b"1\t2\t1 \n", 3, "its value must be a finite number other than 0. Got '1 '."),
        (b"\n", 3, "it must be a row, a column and a value, with a tab between each two. Got ''."),
        (b"1 2 1\n", 3, "it must be a row, a column and a value, with a tab between each two. Got '1 2 1'."),
        (b"3\t2\t1\n1\t2\n", 4, "it must be a row, a column and a value, with a tab between each two. Got '1\\t2'."),
        (
            b"1\t2\t1\t1\n",
            3,
            "it must be a row, a column and a value, with a tab between each two. Got '1\\t2\\t1\\t1'.",
        ),
        (b"1\t2\n1\t2\t1\t1\n", 3, "it must be a row, a column and a value, with a tab between each two. Got '1\\t2'."),
        (b"\xff\xfe\n", 3, "it must be a row, a column and a value, with a tab between each two. Got '\\xff\\xfe'."),
        (b"1\t2\t6.2", 3, "it must end in a newline (was the file cut?). Got '1\\t2\\t6.2'."),
        (
            b"3\t2\t1\n2\t1\t6.25e-02\n",
            4,
            "every connection must be there once. Got row 2, column 1 again, which is in line 2 too.",
        ),
    ],
)
@pytest.mark.parametrize("chunk", [32, 1 << 23])
def test_what_is_malformed_is_refused_with_its_line(path, monkeypatch, text, line, reason, chunk):
    monkeypatch.setattr(graph_challenge, "_CHUNK", chunk)
    path.write_bytes(GOOD + text)
    for read in (read_layer, read_weights):
        with pytest.raises(FormatError) as caught:
            read(path, (3, 2))
        assert str(caught.value) == f"'{path}', line {line}: {reason}"


@pytest.mark.parametrize("length", [65, 500, 10**6])
def test_a_value_longer_than_any_number_is_refused(path, length):
    path.write_bytes(GOOD + b"1\t2\t" + b"1" * length + b"\n")
    with pytest.raises(FormatError, match=r", line 3: its value must be a finite number other than 0\. Got '1{65,77}"):
        read_layer(path, (3, 2))


@pytest.mark.parametrize("value", [b"6.25e-02", b"5.0e+00"])
def test_a_fault_among_other_values_is_found_too(path, value):
    path.write_bytes(GOOD + b"3\t2\t" + value + b"\n1\t2\tinf\n")
    with pytest.raises(FormatError, match=r", line 4: its value must be a finite number other than 0\. Got 'inf'\.$"):
        read_layer(path, (3, 2))


def test_a_letter_is_no_digit_however_large_the_shape(path):
    path.write_bytes(GOOD + b"1\ta\t1\n")
    with pytest.raises(FormatError, match=r", line 3: its column must be an int in \[1, 1000\]\. Got 'a'\.$"):
        read_layer(path, (3, 1000))


def test_values_of_different_lengths_are_told_apart(path):
    path.write_bytes(b"1\t1\t51\n2\t1\t5\n3\t1\t511\n")
    assert read_weights(path, (3, 1)).toarray().ravel().tolist() == [51, 5, 511]


def test_of_many_connections_the_first_that_is_there_again_is_named(path):
    pairs = np.random.default_rng(0).permutation([(i + 1, j + 1) for j in range(40) for i in range(50)]).tolist()
    path.write_text("".join(f"{row}\t{column}\t1\n" for row, column in pairs + pairs), newline="")
    row, column = pairs[0]
    with pytest.raises(FormatError) as caught:
        read_layer(path, (50, 40))
    assert str(caught.value) == (
        f"'{path}', line 2001: every connection must be there once. Got row {row}, column {column} again, which is in "
        f"line 1 too."
    )


def test_a_file_cut_anywhere_is_refused_or_ends_with_a_whole_line(path):
    whole = expected_text(tg.as_pattern(np.ones((3, 4))), 1 / 16)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size and not whole[:size].endswith(b"\n"):
            with pytest.raises(FormatError, match=r"it must end in a newline \(was the file cut\?\)\. Got"):
                read_layer(path, (3, 4))
        else:
            assert read_layer(path, (3, 4)).nnz == whole[:size].count(b"\n")


@pytest.mark.parametrize("read", [read_layer, read_weights])
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((3,), "The 'shape' parameter of {} must be a pair of ints, (n_in, n_out). Got (3,)."),
        ((3, 0), "The 'shape[1]' parameter of {} must be an int >= 1. Got 0."),
        (3, "The 'shape' parameter of {} must be a sequence of ints >= 1. Got 3."),
    ],
)
def test_a_shape_is_a_pair(path, read, shape, sentence):
    path.write_bytes(GOOD)
    with pytest.raises(SpecError, match=f"^{re.escape(sentence.format(read.__name__))}$"):
        read(path, shape)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            0,
            "The 'value' parameter of write_layer must be a number other than 0, which would be no connection. Got 0.",
        ),
        (float("nan"), "The 'value' parameter of write_layer must be a finite number in [-inf, inf). Got nan."),
        ("1", "The 'value' parameter of write_layer must be a finite number in [-inf, inf). Got '1'."),
    ],
)
def test_a_value_is_a_number_other_than_0(path, value, sentence):
    path.write_bytes(b"before")
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        write_layer(path, [[1]], value)
    assert path.read_bytes() == b"before"


def test_writing_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    def fail(file):
        raise OSError("no space left")

    path.write_bytes(b"before")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_layer(path, np.ones((3, 3)), 1.0)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in Path(path.parent).iterdir()] == [path.name]


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        read_layer(path, (3, 3))
