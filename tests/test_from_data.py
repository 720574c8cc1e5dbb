"""from_weights, from_correlation and from_ontology, against dense numpy and brute force."""

from __future__ import annotations

import re
import tracemalloc

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.from_data import _correlation

# ---- weights


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_connections_are_the_weights_above_the_threshold(seed, threshold, transpose):
    rng = np.random.default_rng(seed)
    dense = [rng.normal(size=shape).round(1) for shape in [(4, 6), (6, 3)]]
    truth = [abs(matrix) > threshold for matrix in dense]
    given_ = [matrix.T for matrix in dense] if transpose else dense
    for form in (np.asarray, np.ndarray.tolist, sp.coo_array, sp.csc_matrix, lambda m: m.astype(np.float32)):
        # in float32 the tenths are not those of float64, so that only what is no tie is compared
        net = tg.from_weights([form(matrix) for matrix in given_], threshold=threshold, transpose=transpose)
        for layer, mask, matrix in zip(net, truth, dense, strict=True):
            clear = abs(abs(matrix) - threshold) > 1e-6
            np.testing.assert_array_equal(layer.toarray()[clear], mask[clear])
        assert (net.spec, net.seed) == (None, None)


def test_the_threshold_is_compared_as_a_real_number():
    tenth = np.array([[0.1]], np.float32)  # a little more than the 0.1 of float64
    assert tg.from_weights(tenth, threshold=0.1).nnz == 1
    assert tg.from_weights(tenth.astype(np.float64), threshold=float(tenth[0, 0])).nnz == 0
    assert tg.from_weights(np.array([[60000]], np.float16), threshold=1e6).nnz == 0
    assert tg.from_weights(np.array([[-128, 127, 3]], np.int8), threshold=100).nnz == 2
    assert tg.from_weights(np.array([[200, 3]], np.uint8), threshold=100).nnz == 1
    assert tg.from_weights(np.array([[3 + 4j, 3]]), threshold=4.5).nnz == 1
    assert tg.from_weights([[np.inf, -np.inf]], threshold=1e300).nnz == 2


def test_stored_zeros_are_no_connections_and_entries_stored_twice_are_added():
    stored = sp.csr_array(([0.0, 2.0], [0, 1], [0, 2]), shape=(1, 2))
    assert tg.from_weights(stored).layers[0].toarray().tolist() == [[False, True]]
    twice = sp.csr_array(([0.6, 0.6, 0.9], [1, 1, 0], [0, 3]), shape=(1, 2))
    twice.has_canonical_format = True  # a lie
    before = twice.data.copy()
    assert tg.from_weights(twice, threshold=1).layers[0].toarray().tolist() == [[False, True]]
    assert tg.from_weights(sp.coo_array(twice), threshold=1).nnz == 1
    np.testing.assert_array_equal(twice.data, before)


def test_one_matrix_and_a_chain():
    assert tg.from_weights([[1, 0, 2], [0, 3, 0]]).sizes == (2, 3)
    assert tg.from_weights([[[1, 0, 2], [0, 3, 0]], [[1], [1], [1]]]).sizes == (2, 3, 1)
    assert tg.from_weights(np.ones((2, 3)), transpose=True).sizes == (3, 2)
    assert tg.from_weights(tg.Topology([np.eye(2)])).sizes == (2, 2)


@pytest.mark.parametrize(
    ("weights", "options", "sentence"),
    [
        (3, {}, "The 'weights' parameter of from_weights must be a matrix or a sequence of matrices. Got 3."),
        ([], {}, "The 'weights' parameter of from_weights must be a sequence of at least one matrix. Got []."),
        (
            [np.ones((3, 2)), np.ones((3, 4))],
            {},
            "The 'weights' parameter of from_weights must be a chain whose widths match. Got 2 outputs in weights[0] "
            "and 3 inputs in weights[1], with transpose=False.",
        ),
        (
            [np.ones((2, 3)), np.ones((3, 4))],
            {"transpose": True},
            "The 'weights' parameter of from_weights must be a chain whose widths match. Got 2 outputs in weights[0] "
            "and 4 inputs in weights[1], with transpose=True.",
        ),
        ([[[1, np.nan]]], {"threshold": 1}, "The matrix 'weights[0]' must not hold NaN. Got 1 of them."),
        (
            np.eye(2),
            {"threshold": -1},
            "The 'threshold' parameter of from_weights must be a finite number in [0, inf). Got -1.",
        ),
        (
            np.eye(2),
            {"threshold": np.nan},
            "The 'threshold' parameter of from_weights must be a finite number in [0, inf). Got nan.",
        ),
        (np.eye(2), {"transpose": 1}, "The 'transpose' parameter of from_weights must be a bool. Got 1."),
        (
            [np.eye(2), "ab"],
            {},
            "The matrix 'weights[1]' must be a two-dimensional matrix of numbers. Got 0 dimensions of <U2.",
        ),
    ],
)
def test_what_are_no_weights_is_refused(weights, options, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.from_weights(weights, **options)


# ---- correlation


def correlations(data):
    return np.corrcoef(data, rowvar=False).reshape(data.shape[1], -1)


@pytest.fixture(params=[1 << 23, 7, 23], ids=["one block", "single columns", "small blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(_correlation, "_BLOCK", request.param)


def data_of(seed, samples=30, features=11):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, 3)) @ rng.normal(size=(3, features)) + rng.normal(size=(samples, features))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("threshold", [0, 0.2, 0.5, 0.9, 1])
def test_a_threshold_joins_what_numpy_finds_correlated(threshold):
    for seed in range(5):
        data = data_of(seed)
        truth = abs(correlations(data)) >= threshold - 1e-13
        np.testing.assert_array_equal(tg.from_correlation(data, threshold=threshold).layers[0].toarray(), truth)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("fan_in", [1, 2, 5, 11])
def test_fan_in_picks_the_most_correlated(fan_in):
    for seed in range(5):
        data = data_of(seed)
        net = tg.from_correlation(data, fan_in=fan_in)
        assert net.sizes == (11, 11)
        assert net.nnz == 11 * fan_in
        for j, column in enumerate(abs(correlations(data)).T):
            best = set(np.argsort(-column)[:fan_in].tolist())
            assert set(np.flatnonzero(net.layers[0].toarray()[:, j]).tolist()) == best


@pytest.mark.usefixtures("_blocks")
def test_of_equals_itself_and_then_the_smaller_index_is_picked():
    base = np.random.default_rng(0).normal(size=(40, 2))
    data = np.stack([base[:, 0], -base[:, 0], 3 * base[:, 0] + 7, base[:, 1], base[:, 0] * 1e200, base[:, 0] - 1], 1)
    layer = tg.from_correlation(data, fan_in=3).layers[0].toarray()
    picked = [np.flatnonzero(column).tolist() for column in layer.T]
    assert picked == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]
    joined = tg.from_correlation(data, threshold=1).layers[0].toarray()
    equal = np.ones(6, bool)
    equal[3] = False
    np.testing.assert_array_equal(joined, np.outer(equal, equal) | np.eye(6, dtype=bool))


def test_extreme_and_whole_numbers():
    column = np.array([1.0, 2.0, 4.0, 3.0])
    data = np.stack([column, column * 4e307, column * 1e-300, 1e16 + 2 * column, column[::-1]], axis=1)
    truth = abs(correlations(np.stack([column, column, column, column, column[::-1]], axis=1))) > 0.99
    np.testing.assert_array_equal(tg.from_correlation(data, threshold=0.99).layers[0].toarray(), truth)
    np.testing.assert_array_equal(
        tg.from_correlation(np.stack([column, column[::-1]], 1).astype(np.uint8), threshold=0.99).layers[0].toarray(),
        np.eye(2),
    )
    assert tg.from_correlation([[0], [1]], fan_in=1).sizes == (1, 1)


MATRIX = "must be a real matrix of at least two samples (rows) and one feature (column)."
SPOILT = np.column_stack([np.arange(4.0), np.full(4, 0.1), np.arange(4.0), np.full(4, -3)])


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        (
            SPOILT,
            {"fan_in": 1},
            "The 'data' parameter of from_correlation must hold features that vary. "
            "Got 2 of 4 columns that are constant: 1, 3.",
        ),
        (
            np.zeros((3, 15)),
            {"fan_in": 1},
            "The 'data' parameter of from_correlation must hold features that vary. "
            "Got 15 of 15 columns that are constant: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more.",
        ),
        (
            [[1, np.nan], [2, 3]],
            {"threshold": 0.5},
            "The 'data' parameter of from_correlation must hold finite numbers only. "
            "Got 1 of 2 columns that are not finite: 1.",
        ),
        (
            [[1, 2]],
            {"threshold": 0.5},
            f"The 'data' parameter of from_correlation {MATRIX} Got shape (1, 2) of int64.",
        ),
        (
            np.ones(3),
            {"threshold": 0.5},
            f"The 'data' parameter of from_correlation {MATRIX} Got shape (3,) of float64.",
        ),
        (
            np.ones((3, 2)) * 1j,
            {"threshold": 0.5},
            f"The 'data' parameter of from_correlation {MATRIX} Got shape (3, 2) of complex128.",
        ),
        ([[1], [1, 2]], {"fan_in": 1}, f"The 'data' parameter of from_correlation {MATRIX} Got ragged rows."),
        (
            np.eye(3),
            {},
            "Exactly one of the 'threshold' and 'fan_in' parameters of from_correlation must be given. "
            "Got threshold=None and fan_in=None.",
        ),
        (
            np.eye(3),
            {"threshold": 0.5, "fan_in": 2},
            "Exactly one of the 'threshold' and 'fan_in' parameters of from_correlation must be given. "
            "Got threshold=0.5 and fan_in=2.",
        ),
        (
            np.eye(3),
            {"threshold": 1.5},
            "The 'threshold' parameter of from_correlation must be a finite number in [0, 1]. Got 1.5.",
        ),
        (np.eye(3), {"fan_in": 4}, "The 'fan_in' parameter of from_correlation must be an int in [1, 3]. Got 4."),
        (np.eye(3), {"fan_in": 0}, "The 'fan_in' parameter of from_correlation must be an int in [1, 3]. Got 0."),
    ],
)
def test_data_that_cannot_be_correlated_is_refused(data, options, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.from_correlation(data, **options)


@pytest.mark.parametrize("options", [{"fan_in": 40}, {"threshold": 0.0}], ids=["fan_in", "threshold"])
def test_connections_that_would_not_fit_in_memory_are_refused(options, monkeypatch):
    monkeypatch.setattr(tg.checks, "_available_bytes", lambda: 10_000)
    (name,) = options
    message = f"^The '{name}' parameter of from_correlation must describe something that fits in memory"
    with pytest.raises(SpecError, match=message):
        tg.from_correlation(data_of(0, features=50), **options)


def test_never_all_correlations_at_once(monkeypatch):
    monkeypatch.setattr(_correlation, "_BLOCK", 1 << 16)
    n = 3000
    data = np.random.default_rng(0).normal(size=(5, n))
    tracemalloc.start()
    try:
        net = tg.from_correlation(data, fan_in=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert net.nnz == 2 * n
    assert peak < 8 * n * n / 10


# ---- ontologies


@st.composite
def ontologies(draw):
    """Parents and annotations: terms in no particular order, at least one annotation."""
    n_terms, n_genes = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    order = draw(st.permutations(range(n_terms)))
    rows = [draw(st.lists(st.integers(0, max(i - 1, 0)), max_size=3)) if i else [] for i in range(n_terms)]
    parents = {f"t{i}": [f"t{j}" for j in rows[i]] for i in order}
    terms = st.lists(st.sampled_from(sorted(parents)), max_size=3)
    annotations = {f"g{i}": draw(terms) for i in range(n_genes)}
    annotations["g0"] = [*annotations["g0"], f"t{draw(st.integers(0, n_terms - 1))}"]
    return parents, annotations


@given(ontologies())
def test_an_ontology_is_the_graph_of_its_edges_without_the_terms_that_no_gene_reaches(ontology):
    parents, annotations = ontology
    graph = nx.DiGraph()
    graph.add_nodes_from([*annotations, *parents])
    graph.add_edges_from((key, term) for rows in ontology for key, terms in rows.items() for term in terms)
    reached = set().union(*(nx.descendants(graph, gene) for gene in annotations))
    graph = nx.DiGraph(graph.subgraph(reached | set(annotations)))
    ordered = nx.DiGraph()
    ordered.add_nodes_from(node for node in [*annotations, *parents] if node in graph)
    ordered.add_edges_from(graph.edges)
    mine, truth = tg.ontology_layering(parents, annotations), tg.layering(ordered)
    assert mine == truth
    assert tg.from_ontology(parents, annotations) == truth.topology
    assert mine.names[0] == tuple(annotations)
    roots = {term for term in reached if not parents[term]}
    assert set(mine.names[-1]) == roots


def test_a_small_ontology_by_hand():
    parents = {"cell": (), "nucleus": {"cell"}, "membrane": ["cell"], "pore": iter(["nucleus", "membrane"]), "sea": []}
    annotations = {"NUP1": ["pore", "pore"], "PMA1": {"membrane"}, "unknown": []}
    net, places, names = tg.ontology_layering(parents, annotations)
    assert names == (("NUP1", "PMA1", "unknown"), ("pore", "PMA1"), ("nucleus", "membrane"), ("cell",))
    assert places["membrane"] == (2, 1)
    assert "sea" not in places
    assert [row.tolist() for row in net.relays] == [[], [1], [], []]
    assert [layer.toarray().astype(int).tolist() for layer in net] == [
        [[1, 0], [0, 1], [0, 0]],
        [[1, 1], [0, 1]],
        [[1], [1]],
    ]


def test_names_are_any_hashable_things():
    net, places, _ = tg.ontology_layering({8150: [], 9987: [8150]}, {("SGD", 1): [9987]})
    assert net.sizes == (1, 1, 1)
    assert places == {("SGD", 1): (0, 0), 9987: (1, 0), 8150: (2, 0)}


@pytest.mark.parametrize(
    ("parents", "annotations", "message"),
    [
        (
            {"a": ["b"]},
            {},
            "The 'parents' parameter of {} must name terms that are keys of 'parents'. Got 'b' at 'a'.",
        ),
        (
            {"a": ["b", "c"], "d": ["e"]},
            {},
            "The 'parents' parameter of {} must name terms that are keys of 'parents'. Got 'b' at 'a', and 2 more.",
        ),
        (
            {"a": []},
            {"g": ["a", "x"]},
            "The 'annotations' parameter of {} must name terms that are keys of 'parents'. Got 'x' at 'g'.",
        ),
        (
            {"a": ["a"]},
            {"g": ["a"]},
            "The 'parents' parameter of {} must be acyclic. Got the cycle 'a' -> 'a'.",
        ),
        (
            {"r": [], "a": ["b"], "b": ["a", "r"]},
            {"g": ["r"]},
            "The 'parents' parameter of {} must be acyclic. Got the cycle 'a' -> 'b' -> 'a'.",
        ),
        (
            {"a": []},
            {"a": ["a"]},
            "The 'annotations' parameter of {} must have names of genes that no term has. Got 'a'.",
        ),
        (
            {"a": []},
            {"g": [], "h": []},
            "The 'annotations' parameter of {} must give at least one gene a term. Got 2 genes and no terms.",
        ),
        ({}, {}, "The 'annotations' parameter of {} must give at least one gene a term. Got 0 genes and no terms."),
        ([("a", [])], {}, "The 'parents' parameter of {} must be a Mapping. Got [('a', [])]."),
        ({}, None, "The 'annotations' parameter of {} must be a Mapping. Got None."),
        ({"a": "bc"}, {}, "The 'parents['a']' parameter of {} must be an iterable of terms. Got 'bc'."),
        ({"a": []}, {"g": 3}, "The 'annotations['g']' parameter of {} must be an iterable of terms. Got 3."),
        ({"a": [[]]}, {}, "The 'parents['a']' parameter of {} must be an iterable of hashable terms. Got [[]]."),
    ],
)
@pytest.mark.parametrize("function", [tg.from_ontology, tg.ontology_layering], ids=["from_ontology", "layering"])
def test_what_is_no_ontology_is_refused(function, parents, annotations, message):
    with pytest.raises(SpecError, match=f"^{re.escape(message.replace('{}', function.__name__))}"):
        function(parents, annotations)
