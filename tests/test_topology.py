"""Canonical patterns out of anything that is a matrix, refusals for the rest, and Topology as a container."""

from __future__ import annotations

import copy
import hashlib
import pickle
import re

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen._topology import pattern_bytes
from topogen.errors import SpecError
from topogen.testing import patterns, topologies

FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")
TYPES = (np.bool_, np.int8, np.uint64, np.float16, np.float32, np.float64, np.longdouble, np.complex64)


def assert_is_pattern_of(pattern, dense):
    """Canonical by its arrays (scipy's flags are not asked), and equal to the dense truth."""
    assert type(pattern) is sp.csr_array
    assert pattern.dtype == np.bool_
    assert pattern.data.all()
    assert pattern.indices.dtype == pattern.indptr.dtype == np.int32
    assert pattern.nnz == pattern.indices.size == pattern.data.size
    for start, stop in zip(pattern.indptr[:-1], pattern.indptr[1:], strict=True):
        assert (np.diff(pattern.indices[start:stop]) > 0).all()
    np.testing.assert_array_equal(pattern.toarray(), dense != 0)


def raw_csr(data, indices, indptr, shape):
    """A csr_array with these very arrays, none of scipy's checks made."""
    made = sp.csr_array(shape, dtype=np.asarray(data).dtype)
    made.data, made.indices, made.indptr = map(np.asarray, (data, indices, indptr))
    return made


def frozen_bytes(x):
    names = ("data", "indices", "indptr", "coords", "offsets", "rows")
    return [
        np.asarray(part).tobytes() for name in names if hasattr(x, name) for part in np.atleast_1d(getattr(x, name))
    ]


@given(patterns(), st.sampled_from(FORMATS), st.booleans(), st.sampled_from(TYPES))
def test_every_scipy_format_and_number_type(pattern, form, old, dtype):
    dense = pattern.toarray() * np.array(3, dtype=dtype)
    if dtype is np.float16:  # scipy knows none
        dense = dense.astype(np.float32)
    made = (sp.csr_matrix if old else sp.csr_array)(dense).asformat(form)
    before = frozen_bytes(made)
    assert_is_pattern_of(tg.as_pattern(made), dense)
    assert frozen_bytes(made) == before


@given(patterns(), st.sampled_from(TYPES))
def test_every_dense_array_and_nested_list(pattern, dtype):
    dense = pattern.toarray().astype(dtype)
    before = dense.copy()
    assert_is_pattern_of(tg.as_pattern(dense), before)
    assert_is_pattern_of(tg.as_pattern(np.asfortranarray(dense)), before)
    if dtype is not np.longdouble:
        assert_is_pattern_of(tg.as_pattern(dense.tolist()), before)
    np.testing.assert_array_equal(dense, before)


@given(patterns(), st.randoms(use_true_random=False))
def test_unsorted_duplicate_and_zero_entries_are_put_right(pattern, random):
    rows, columns = pattern.nonzero()
    entries = [(i, j, 2.0) for i, j in zip(rows, columns, strict=True)]
    entries += [(i, j, 0.0) for i in range(pattern.shape[0]) for j in range(pattern.shape[1]) if random.random() < 0.2]
    entries += [entry for entry in entries if random.random() < 0.3]
    random.shuffle(entries)
    entries.sort(key=lambda entry: entry[0])
    i, j, values = (np.array([entry[part] for entry in entries]) for part in range(3))
    indptr = np.searchsorted(i, np.arange(pattern.shape[0] + 1)) if entries else np.zeros(pattern.shape[0] + 1, int)
    messy = raw_csr(values.astype(float), j.astype(np.int32), indptr.astype(np.int32), pattern.shape)
    before = frozen_bytes(messy)
    assert_is_pattern_of(tg.as_pattern(messy), pattern.toarray())
    assert frozen_bytes(messy) == before
    coo = sp.coo_array((values, (i.astype(np.int32), j.astype(np.int32))), shape=pattern.shape)
    before = frozen_bytes(coo)
    assert_is_pattern_of(tg.as_pattern(coo), pattern.toarray())
    assert frozen_bytes(coo) == before


def test_stored_zeros_are_dropped_from_a_copy():
    stored = sp.csr_array((np.array([1.0, 0.0, 2.0]), np.array([0, 1, 2]), np.array([0, 3])), shape=(1, 3))
    before = frozen_bytes(stored)
    assert_is_pattern_of(tg.as_pattern(stored), np.array([[1, 0, 1]]))
    assert frozen_bytes(stored) == before
    canonical_but_for_a_zero = raw_csr([True, False], np.array([0, 1], np.int32), np.array([0, 2], np.int32), (1, 2))
    assert_is_pattern_of(tg.as_pattern(canonical_but_for_a_zero), np.array([[1, 0]]))


def test_a_flag_that_lies_is_not_believed():
    lying = raw_csr([True, True], np.array([1, 0], np.int32), np.array([0, 2], np.int32), (1, 2))
    lying.has_canonical_format = True
    assert_is_pattern_of(tg.as_pattern(lying), np.ones((1, 2)))


def test_wide_indices_are_narrowed_and_canonical_arrays_are_shared():
    wide = raw_csr([True], np.array([1], np.int64), np.array([0, 1], np.int64), (1, 2))
    assert_is_pattern_of(tg.as_pattern(wide), np.array([[0, 1]]))
    narrow = tg.as_pattern(wide)
    assert np.shares_memory(tg.as_pattern(narrow).indices, narrow.indices)


@pytest.mark.parametrize(
    "cancelling",
    [
        sp.coo_array(([1, -1], ([0, 0], [0, 0])), shape=(1, 1)),
        sp.coo_array((np.array([128, 128], np.uint8), ([0, 0], [0, 0])), shape=(1, 1)),  # 256 is 0 in uint8
        sp.csr_array((np.array([1.0, -1.0]), np.array([0, 0]), np.array([0, 2])), shape=(1, 1)),
        sp.csc_array((np.array([1.0, -1.0]), np.array([0, 0]), np.array([0, 2])), shape=(1, 1)),
        sp.bsr_array((np.array([[[1]], [[-1]]]), np.array([0, 0]), np.array([0, 2])), shape=(1, 1)),
    ],
    ids=["coo", "coo-uint8", "csr", "csc", "bsr"],
)
def test_entries_stored_twice_that_cancel_are_refused(cancelling):
    with pytest.raises(SpecError, match=r"^The matrix 'w' must not store entries twice that cancel\. Got 1 such pos"):
        tg.as_pattern(cancelling, name="w")


@pytest.mark.parametrize(
    "holds_nan",
    [
        [[np.nan, 1.0]],
        sp.csr_array([[np.nan, 1.0]]),
        sp.coo_array(([np.inf, -np.inf], ([0, 0], [0, 0])), shape=(1, 1)),
        np.array([[complex(0, np.nan)]]),
    ],
    ids=["dense", "csr", "inf-inf", "complex"],
)
def test_nan_is_refused(holds_nan):
    with pytest.raises(SpecError, match=r"^The matrix 'pattern' must not hold NaN\. Got 1 of them\.$"):
        tg.as_pattern(holds_nan)


def broken(form, **parts):
    made = sp.csr_array(np.eye(2, 3, dtype=bool)).asformat(form)
    for name, value in parts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (broken("csr", indices=np.array([0, 3], np.int32)), "indices must be < 3"),
        (broken("csr", indices=np.array([0, -1], np.int32)), "indices must be >= 0"),
        (broken("csr", indptr=np.array([0, 2, 1], np.int32)), "indptr must be a non-decreasing sequence"),
        (broken("csr", indptr=np.array([0, 9, 0], np.int32)), "its row pointers must not decrease"),
        (broken("csr", indptr=np.array([0, 1], np.int32)), "index pointer size 2 should be 3"),
        (broken("csr", indptr=np.array([1, 1, 2], np.int32)), "index pointer should start with 0"),
        (
            raw_csr([True] * 3, np.array([0, 1, 2], np.int32), np.array([0, 2, 1, 3], np.int32), (3, 3)),
            "indptr must be a non-decreasing sequence",
        ),
        (broken("csr", data=np.ones(1, bool)), "indices and data should have the same size"),
        (broken("csc", indices=np.array([0, 7], np.int32)), "indices must be < 2"),
        (broken("csc", indices=np.array([0, -7], np.int32)), "indices must be >= 0"),
        (broken("coo", coords=(np.array([0, 7]), np.array([0, 1]))), "axis 0 index 7 exceeds matrix dimension 2"),
        (broken("coo", coords=(np.array([0, 1]), np.array([0, -1]))), "negative axis 1 index: -1"),
    ],
)
def test_indices_that_lead_outside_are_refused_before_compiled_code_reads_them(matrix, reason):
    sentence = f"The matrix 'pattern' must be a valid scipy sparse array: {reason}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.as_pattern(matrix)


@pytest.mark.parametrize(
    ("thing", "got"),
    [
        ([1, 2], "1 dimensions of int64"),
        (np.zeros((2, 2, 2)), "3 dimensions of float64"),
        (sp.coo_array(np.array([1, 2])), "1 dimensions of int64"),
        ([["a"]], "2 dimensions of <U1"),
        (np.array([[None]]), "2 dimensions of object"),
        (np.array([["2026-01-01"]], dtype="M8[D]"), "2 dimensions of datetime64[D]"),
        ("abc", "0 dimensions of <U3"),
        (None, "0 dimensions of object"),
        ([], "1 dimensions of float64"),
        ([[1, 2], [3]], "ragged rows"),
    ],
)
def test_what_is_no_matrix_is_refused(thing, got):
    sentence = f"The matrix 'pattern' must be a two-dimensional matrix of numbers. Got {got}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.as_pattern(thing)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_a_matrix_has_rows_and_columns(shape):
    sentence = f"The matrix 'pattern' must have at least one row and one column. Got shape {shape}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.as_pattern(np.zeros(shape))


@given(patterns(), patterns())
def test_the_hash_is_that_of_the_graph(a, b):
    wide = sp.csr_array(a.shape, dtype=np.bool_)
    wide.data, wide.indices, wide.indptr = a.data, a.indices.astype(np.int64), a.indptr.astype(np.int64)
    assert tg.pattern_hash(wide) == tg.pattern_hash(a)
    same = a.shape == b.shape and (a.toarray() == b.toarray()).all()
    assert (tg.pattern_hash(a) == tg.pattern_hash(b)) == same


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (1, "b1a0bf6df657437230a8a931d7c1a3e7210d11ab93fd7a5af6ccd5168e3226d8"),
        (2, "41f2dfa9562e4ff8e8668a3fd43159778f3d859c946c99e4b593b2733c8afdee"),
    ],
)
def test_the_hash_of_a_known_pattern_stays_what_it_is(version, digest):
    assert tg.pattern_hash(tg.as_pattern([[1, 0], [1, 1]]), version) == digest


@pytest.mark.parametrize(("columns", "kind"), [(2**16, "<u2"), (2**16 + 1, "<u4"), (2**31 - 1, "<u4")])
def test_indices_are_hashed_in_as_few_bytes_as_all_of_a_shape_have_room_in(columns, kind):
    pattern = sp.csr_array((np.ones(2, np.bool_), [1, columns - 1], [0, 2]), shape=(1, columns))
    content = b"topogen layer pattern 2" + np.array([1, columns, 0, 2], "<i8").tobytes()
    content += np.array([1, columns - 1]).astype(kind).tobytes()
    assert tg.pattern_hash(pattern) == hashlib.sha256(content).hexdigest()


def test_a_hash_has_two_versions():
    with pytest.raises(SpecError, match=r"^The 'version' parameter of pattern_hash must be 1 or 2\. Got 3\.$"):
        tg.pattern_hash(tg.as_pattern([[1]]), 3)


def test_bytes_of_a_pattern():
    pattern = tg.generate(tg.Dense(sizes=[7, 5]))[0]
    assert pattern_bytes(7, 5, 35) == pattern.data.nbytes + pattern.indices.nbytes + pattern.indptr.nbytes
    assert pattern_bytes(1, 2**31, 1) == 9 + 16


@given(topologies())
def test_a_topology_counts_and_contains(net):
    dense = [layer.toarray() for layer in net]
    assert net.sizes == (dense[0].shape[0], *(layer.shape[1] for layer in dense))
    assert net.nnz == sum(int(layer.sum()) for layer in dense)
    assert net.density == net.nnz / sum(layer.size for layer in dense)
    assert len(net) == len(net.layers) == len(dense)
    assert (net[-1] != net.layers[len(net) - 1]).nnz == 0
    assert (net.spec, net.seed) == (None, None)
    assert tg.Topology(dense) == net
    assert tg.Topology([sp.csc_matrix(layer) for layer in net]) == net
    assert tg.as_topology(net) is net
    assert tg.as_topology(dense) == net
    assert copy.deepcopy(net) == net
    assert pickle.loads(pickle.dumps(net)) == net


@given(topologies(), topologies())
def test_topologies_are_equal_when_all_connections_are(a, b):
    same = a.sizes == b.sizes and all((x.toarray() == y.toarray()).all() for x, y in zip(a, b, strict=True))
    assert (a == b) == same
    assert a != "a topology"


def test_spec_and_seed_do_not_matter_to_equality():
    spec = tg.ErdosRenyi(sizes=[4, 5], density=0.5)
    net = tg.generate(spec, rng=3)
    assert tg.Topology(net.layers) == net
    assert repr(net) == f"Topology(sizes=(4, 5), spec={spec!r})"
    assert repr(tg.Topology(net.layers)) == "Topology(sizes=(4, 5))"
    with pytest.raises(TypeError, match="unhashable"):
        hash(net)


def test_a_list_of_rows_is_one_matrix_and_a_list_of_matrices_a_chain():
    assert tg.as_topology([[1, 0], [1, 1]]).sizes == (2, 2)
    assert tg.as_topology(np.ones((2, 3))).sizes == (2, 3)
    assert tg.as_topology(sp.coo_array(np.ones((2, 3)))).sizes == (2, 3)
    assert tg.as_topology([[[1, 0], [1, 1]], [[1], [0]]]).sizes == (2, 2, 1)
    assert tg.as_topology(np.ones((2, 3, 3))).sizes == (3, 3, 3)
    assert tg.as_topology([[[1, 1]], sp.csr_array([[1], [1]])]).sizes == (1, 2, 1)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([], "The 'layers' parameter of Topology must be a sequence of at least one matrix. Got []."),
        ("net", "The 'layers' parameter of Topology must be a sequence of matrices. Got 'net'."),
        (None, "The 'layers' parameter of Topology must be a sequence of matrices. Got None."),
        (np.array(3), "The 'layers' parameter of Topology must be a sequence of matrices. Got array(3)."),
        (
            [np.ones((2, 3)), np.ones((2, 1))],
            "The 'layers' parameter of Topology must be a chain whose widths match. Got 3 columns in layers[0] and 2 "
            "rows in layers[1].",
        ),
        ([[[1]], 5], "The matrix 'layers[1]' must be a two-dimensional matrix of numbers. Got 0 dimensions of int64."),
        (
            [[[1]], [[1, 2], [3]]],
            "The matrix 'layers[1]' must be a two-dimensional matrix of numbers. Got ragged rows.",
        ),
        ([[[1]], [[np.nan]]], "The matrix 'layers[1]' must not hold NaN. Got 1 of them."),
    ],
)
def test_what_is_no_chain_is_refused(layers, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Topology(layers)


@pytest.mark.parametrize("thing", [5, "ab", None, tg.Dense(sizes=[2, 2]), np.array(3)])
def test_what_is_no_topology_is_refused(thing):
    sentence = f"The 'x' parameter of topogen must be a Topology, a sequence of matrices or one matrix. Got {thing!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.as_topology(thing)


def test_ragged_rows_first_in_a_chain_are_refused_too():
    with pytest.raises(SpecError, match=r"^The matrix 'layers\[0\]' must be .* Got ragged rows\.$"):
        tg.as_topology([[[1, 2], [3]], [[1]]])


def lazy(sizes, built=None):
    def build(k):
        if built is not None:
            built.append(k)
        return np.full((sizes[k], sizes[k + 1]), k + 1)

    return tg.LazyLayers(sizes, build)


def test_lazy_layers_are_built_on_access_and_not_kept():
    built = []
    layers = lazy([2, 3, 4, 5], built)
    assert (len(layers), layers.sizes, built) == (3, (2, 3, 4, 5), [])
    assert layers[-1].shape == (4, 5)
    assert [layer.shape for layer in layers] == [(2, 3), (3, 4), (4, 5)]
    assert layers[1].dtype == np.bool_
    assert built == [2, 0, 1, 2, 1]
    assert repr(layers) == "LazyLayers(sizes=(2, 3, 4, 5))"


def test_slices_of_lazy_layers_are_lazy_where_they_are_a_chain():
    built = []
    layers = lazy([2, 3, 4, 5, 6], built)
    part = layers[1:]
    assert isinstance(part, tg.LazyLayers)
    assert isinstance(part[1:], tg.LazyLayers)
    assert (part.sizes, part[1:].sizes, built) == ((3, 4, 5, 6), (4, 5, 6), [])
    assert part[1:][0].shape == (4, 5)
    assert tg.as_topology(part).sizes == part.sizes
    assert [layer.shape for layer in layers[::-2]] == [(5, 6), (3, 4)]
    assert layers[4:] == []


def test_a_lazy_layer_of_another_shape_is_refused():
    layers = tg.LazyLayers([3, 2], lambda k: np.ones((2, 2)))
    with pytest.raises(SpecError, match=r"^Layer 0 must have shape \(3, 2\)\. Got \(2, 2\)\.$"):
        layers[0]


def test_an_index_error_in_a_builder_is_not_taken_for_the_end():
    def build(k):
        if k == 1:
            raise IndexError("a bug of the family")
        return np.ones((2, 2))

    with pytest.raises(IndexError, match="a bug of the family"):
        list(tg.LazyLayers([2, 2, 2], build))


@pytest.mark.parametrize("k", [3, -4])
def test_a_layer_out_of_range_is_an_index_error(k):
    for net in (tg.Topology(lazy([2, 3, 4, 5])), tg.Topology(list(lazy([2, 3, 4, 5])))):
        with pytest.raises(IndexError):
            net[k]


@pytest.mark.parametrize("sizes", [[], [3], "34", [3, 0]])
def test_lazy_sizes_are_checked(sizes):
    with pytest.raises(SpecError, match=r"^The 'sizes(\[1\])?' parameter of LazyLayers must be "):
        tg.LazyLayers(sizes, lambda k: None)
