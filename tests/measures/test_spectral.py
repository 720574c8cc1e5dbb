"""Second singular values and Ramanujan's bound against dense decompositions, from small graphs to published figures."""

from __future__ import annotations

import math
import re

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen.errors import SpecError, TopogenError
from topogen.measures import _deflated, _spectral
from topogen.testing import patterns, seeds, specs

RING = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]  # of three inputs and three outputs
FANO = [[int((line - point) % 7 in (1, 2, 4)) for line in range(7)] for point in range(7)]
CROOKED = [[1, 1], [0, 1]]


def by_definition(pattern):
    """The second singular value, by numpy on the dense matrix, normalised where degrees differ."""
    dense = pattern.toarray().astype(float)
    fan_out, fan_in = dense.sum(axis=1), dense.sum(axis=0)
    if not dense.any():
        return 0.0
    if len({*fan_out}) > 1 or len({*fan_in}) > 1:
        dense = dense[fan_out > 0][:, fan_in > 0]
        dense = dense / np.sqrt(np.outer(dense.sum(axis=1), dense.sum(axis=0)))
    values = np.linalg.svd(dense, compute_uv=False)
    return values[1] if len(values) > 1 else 0.0


@given(patterns())
def test_any_layer_agrees_with_numpy(pattern):
    assert measures.second_singular_value(pattern) == pytest.approx(by_definition(pattern), abs=1e-10)


@given(specs(tg.RandomBiregular), seeds())
def test_biregular_layers_agree_with_numpy(spec, seed):
    net = tg.generate(spec, rng=seed)
    expected = [by_definition(layer) for layer in net]
    assert measures.second_singular_values(net) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("family", ["biregular", "irregular", "in two pieces", "with dead neurons"])
def test_arpack_agrees_with_numpy(shape, family, monkeypatch):
    rng = np.random.default_rng(5)
    if family == "biregular":
        pattern = tg.generate(tg.RandomBiregular(sizes=shape, fan_in=shape[0] // 10), rng=1)[0]
    else:
        dense = rng.random(shape) < 0.15
        if family == "in two pieces":
            dense[:20, 25:] = dense[20:, :25] = False
        if family == "with dead neurons":
            dense[3] = False
            dense[:, 7] = False
        pattern = tg.as_pattern(dense)
    monkeypatch.setattr(_spectral, "_DENSE", 0)
    first = measures.second_singular_value(pattern)
    assert first == pytest.approx(by_definition(pattern), abs=1e-12)
    assert measures.second_singular_value(pattern) == first  # bit for bit


@pytest.mark.parametrize("dense", [2**14, 0])
def test_repeated_singular_values_are_not_missed(dense, monkeypatch):
    """Two pieces have sigma_1 twice; iterative solvers see it once."""
    monkeypatch.setattr(_spectral, "_DENSE", dense)
    one = tg.generate(tg.RandomBiregular(sizes=[60, 60], fan_in=5), rng=0)[0]
    assert measures.second_singular_value(one) < 4.5
    assert measures.second_singular_value(sp.block_diag([one, one])) == 5.0
    assert measures.second_singular_value(np.ones((70, 30))) == 0.0


def test_one_float_for_one_layer_and_one_a_layer_for_a_chain():
    value = measures.second_singular_value(FANO)
    assert type(value) is float
    assert value == pytest.approx(math.sqrt(2), abs=1e-12)
    net = tg.Topology([FANO, np.eye(7)])
    assert measures.second_singular_values(net) == (value, 1.0)
    with pytest.raises(
        SpecError,
        match=r"^The 'x' parameter of second_singular_value must be one layer \(second_singular_values takes a chain\)"
        r"\. Got \(7, 7, 7\)\.$",
    ):
        measures.second_singular_value(net)


@given(patterns())
def test_all_singular_values_are_numpys(pattern):
    expected = np.linalg.svd(pattern.toarray().astype(float), compute_uv=False)
    np.testing.assert_allclose(measures.singular_values(pattern), expected, rtol=0, atol=1e-12, strict=True)


def test_what_arpack_does_not_find_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(_deflated, "_KRYLOV", ((10, 1), (20, 1)))
    monkeypatch.setattr(_spectral, "_DENSE", 0)
    ring = sp.eye_array(3000, format="csr") + sp.csr_array(sp.eye_array(3000, k=1)) + sp.eye_array(3000, k=-2999)
    with pytest.raises(
        TopogenError, match=r"^The second singular value of a 3000 x 3000 layer was not found in 1 .*which is dense\.$"
    ):
        measures.second_singular_value(ring)


def test_what_few_vectors_do_not_find_more_of_them_do(monkeypatch):
    monkeypatch.setattr(_deflated, "_KRYLOV", ((10, 1), (60, 100)))
    ring = tg.generate(tg.WattsStrogatz(n=500, neighbours=1, rewire=0.0))
    assert measures.second_singular_value(ring) == pytest.approx(1 + 2 * math.cos(2 * math.pi / 500), abs=1e-10)


@given(patterns())
def test_biregular_is_what_it_says(pattern):
    dense = pattern.toarray()
    sums = [set(dense.sum(axis=axis).tolist()) for axis in (0, 1)]
    assert measures.is_biregular(pattern) is (all(len(found) == 1 for found in sums) and bool(dense.any()))


def test_the_bound_is_that_of_the_two_degrees():
    assert measures.ramanujan_bound(6, 6) == pytest.approx(2 * math.sqrt(5))
    assert measures.ramanujan_bound(3, 8) == pytest.approx(4.0600, abs=1e-4)
    assert measures.ramanujan_bound(1, 1) == 0


@pytest.mark.parametrize(
    ("graph", "weak"),
    [
        (nx.petersen_graph(), True),  # 3, 1, -2
        (nx.complete_graph(5), True),  # 4, -1
        (nx.hypercube_graph(6), True),  # |-6| = 6: as a layer, in two pieces
        (nx.circular_ladder_graph(30), False),
    ],
)
def test_ramanujan_graphs_of_the_textbooks(graph, weak):
    adjacency = nx.to_scipy_sparse_array(graph)
    weak = weak and not nx.is_bipartite(graph)  # the adjacency of a bipartite graph is a layer in two pieces
    assert measures.is_ramanujan(adjacency) is weak
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(adjacency.toarray().astype(float))))[::-1]
    d = int(adjacency.sum(axis=0).max())
    assert (eigenvalues[1] <= 2 * math.sqrt(d - 1)) is np.bool_(weak)


def test_the_strict_sense_excludes_zeros_where_degrees_differ():
    assert measures.is_ramanujan(FANO)
    assert measures.is_ramanujan(FANO, strict=True)
    # B(3, 2) by definition: blocks P^(ij) of the cyclic P; singular values sqrt 6, sqrt 3 four times, 0
    blocks = [[np.roll(np.eye(3), i * j, axis=1) for j in range(3)] for i in range(2)]
    lift = np.block(blocks)
    assert np.linalg.svd(lift)[1].round(9).tolist() == pytest.approx([math.sqrt(6), *[math.sqrt(3)] * 4, 0], abs=1e-9)
    assert measures.is_ramanujan(lift)
    assert not measures.is_ramanujan(lift, strict=True)


@given(specs(tg.RandomBiregular), seeds())
def test_ramanujan_by_definition(spec, seed):
    for layer in tg.generate(spec, rng=seed):
        dense = layer.toarray().astype(float)
        d_l, d_r = dense.sum(axis=1)[0], dense.sum(axis=0)[0]
        others = np.linalg.svd(dense, compute_uv=False)[1:]
        graph = nx.bipartite.from_biadjacency_matrix(layer)
        low, high = abs(math.sqrt(d_l - 1) - math.sqrt(d_r - 1)), math.sqrt(d_l - 1) + math.sqrt(d_r - 1)
        weak = nx.is_connected(graph) and bool((others <= high + 1e-9).all())
        assert measures.is_ramanujan(layer) is weak
        assert measures.is_ramanujan(layer, strict=True) is (weak and bool((others >= low - 1e-9).all()))


def test_a_layer_in_pieces_is_not_ramanujan_even_where_the_bound_holds():
    """Two rings of four: sigma_2 = sigma_1 = 2, and the bound for degree 2 is 2."""
    pieces = np.kron(np.eye(2), np.ones((2, 2)))
    assert measures.second_singular_value(pieces) == measures.ramanujan_bound(2, 2) == 2
    assert not measures.is_ramanujan(pieces)


def test_a_chain_is_ramanujan_if_every_layer_is():
    matching = np.eye(7)
    assert measures.is_ramanujan([FANO, FANO])
    assert not measures.is_ramanujan([FANO, matching])
    assert measures.ramanujan_ratios([FANO, matching]) == pytest.approx((0.5, math.inf))
    assert measures.ramanujan_ratios([[1]]) == (0.0,)


@given(specs(tg.RandomBiregular), seeds())
def test_the_trace_bound_is_never_exceeded(spec, seed):
    for layer in tg.generate(spec, rng=seed):
        assert measures.trace_bound(layer) <= measures.second_singular_value(layer) + 1e-9


def test_the_trace_bound_is_attained_by_the_fano_plane_and_feng_lis_line_is_no_bound():
    assert measures.trace_bound(FANO) == pytest.approx(measures.second_singular_value(FANO), abs=1e-12)
    assert measures.second_singular_value(FANO) < measures.ramanujan_bound(3, 3)


@pytest.mark.parametrize("function", ["is_ramanujan", "ramanujan_ratios", "trace_bound"])
def test_what_holds_for_biregular_layers_only_is_refused_elsewhere(function):
    with pytest.raises(
        SpecError,
        match=f"^{re.escape(f'''The 'x' parameter of {function} must have biregular layers, one fan-out and one fan-in >= 1. Got layer 0 with fan-out 1..2 and fan-in 1..2.''')}$",  # noqa: E501
    ):
        getattr(measures, function)(CROOKED)
    with pytest.raises(SpecError, match=r"Got layer 0 with fan-out 0\.\.0 and fan-in 0\.\.0\.$"):
        getattr(measures, function)(np.zeros((2, 2)))


@pytest.mark.parametrize("function", ["singular_values", "trace_bound"])
def test_what_is_about_one_layer_refuses_two(function):
    with pytest.raises(SpecError, match=rf"^The 'x' parameter of {function} must be one layer\. Got \(3, 3, 3\)\.$"):
        getattr(measures, function)([RING, RING])


def test_singular_values_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(tg.checks, "_available_bytes", lambda: 2**20)
    with pytest.raises(SpecError, match=r"^The 'x' parameter of singular_values .* needs 24,000,000 bytes"):
        measures.singular_values(sp.eye_array(1000, format="csr"))


@pytest.mark.parametrize(("fan_out", "fan_in", "name", "value"), [(0, 3, "fan_out", 0), (3, 2.0, "fan_in", 2.0)])
def test_degrees_are_ints_from_one(fan_out, fan_in, name, value):
    with pytest.raises(
        SpecError, match=rf"^The '{name}' parameter of ramanujan_bound must be an int >= 1\. Got {value}\.$"
    ):
        measures.ramanujan_bound(fan_out, fan_in)
