"""CayleyF2: connections by definition, claims against dense decompositions and networkx."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import specs


@given(specs(tg.CayleyF2))
def test_connections_and_spectrum(spec):
    net = tg.generate(spec)
    expected = np.zeros(spec.sizes, bool)
    for x in range(2**spec.n):
        for g in spec.generators:
            expected[x, x ^ g] = True
    np.testing.assert_array_equal(net[0].toarray(), expected)
    claims = {(claim.name, claim.relation): claim.bound for claim in spec.claims()}
    second = np.linalg.svd(expected.astype(float), compute_uv=False)[1]
    assert claims["second singular value", "<="] == claims["second singular value", ">="]
    assert claims["second singular value", "<="] == pytest.approx(second, abs=1e-9)
    pieces = nx.number_connected_components(nx.bipartite.from_biadjacency_matrix(net[0]))
    assert claims["components", "=="] == pieces
    assert tg.verify(net).holds is True


def test_the_hypercube():
    net = tg.generate(tg.CayleyF2(n=4, generators=[1, 2, 4, 8]))
    cube = nx.convert_node_labels_to_integers(nx.hypercube_graph(4), ordering="sorted")
    np.testing.assert_array_equal(net[0].toarray(), nx.to_numpy_array(cube, nodelist=range(16)).astype(bool))


def test_the_order_of_the_generators_does_not_matter():
    assert tg.CayleyF2(n=3, generators=[4, 1, 2]) == tg.CayleyF2(n=3, generators=(1, 2, 4))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0, "generators": [0]}, "The 'n' parameter of CayleyF2 must be an int in [1, 30]. Got 0."),
        ({"n": 31, "generators": [0]}, "The 'n' parameter of CayleyF2 must be an int in [1, 30]. Got 31."),
        ({"n": 2, "generators": [1, 4]}, "The 'generators[1]' parameter of CayleyF2 must be an int in [0, 3]. Got 4."),
        (
            {"n": 2, "generators": []},
            "The 'generators' parameter of CayleyF2 must be a sequence of at least 1 ints in [0, 3]. Got [].",
        ),
        (
            {"n": 2, "generators": [3, 1, 3]},
            "The 'generators' parameter of CayleyF2 must be distinct. Got 3 more than once.",
        ),
    ],
)
def test_impossible_groups_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.CayleyF2(**arguments)
