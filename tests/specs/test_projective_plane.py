"""ProjectivePlane: incidence by dot products, and the axioms of a plane."""

from __future__ import annotations

import math
import re
from itertools import product

import networkx as nx
import numpy as np
import pytest

import topogen as tg
from topogen.errors import SpecError
from topogen.measures import _spectral


def incidence(q):
    """Normalised vectors found by trying all, in their order; incident where the dot product is 0."""
    vectors = [v for v in product(range(q), repeat=3) if any(v) and next(filter(None, v)) == 1]
    vectors.sort(key=lambda v: (-v[0], -v[1] if not v[0] else v[1], v[2]))
    table = np.array(vectors)
    return table @ table.T % q == 0


@pytest.mark.parametrize("q", [2, 3, 5, 7, 11])
def test_incidence_axioms_and_singular_values(q):
    net = tg.generate(tg.ProjectivePlane(q=q))
    dense = net[0].toarray()
    np.testing.assert_array_equal(dense, incidence(q))
    n = q * q + q + 1
    shared = dense.astype(int) @ dense.T.astype(int)
    np.testing.assert_array_equal(shared, q * np.eye(n, dtype=int) + 1)  # two points, one line
    np.testing.assert_allclose(np.linalg.svd(dense.astype(float))[1][1:], math.sqrt(q), rtol=0, atol=1e-8)
    assert abs(tg.measures.second_singular_value(net) - math.sqrt(q)) < 1e-8
    assert tg.measures.trace_bound(net) == pytest.approx(math.sqrt(q), abs=1e-12)
    assert tg.measures.is_ramanujan(net, strict=True)
    assert tg.verify(net).holds is True


def test_the_fano_plane_is_the_heawood_graph():
    graph = nx.bipartite.from_biadjacency_matrix(tg.generate(tg.ProjectivePlane(q=2))[0])
    assert nx.is_isomorphic(graph, nx.heawood_graph())


def test_larger_planes_go_through_arpack():
    net = tg.generate(tg.ProjectivePlane(q=29))
    assert net.sizes[0] ** 2 > _spectral._DENSE
    assert abs(tg.measures.second_singular_value(net) - math.sqrt(29)) < 1e-8


def test_planes_of_prime_powers_are_refused():
    sentence = "The 'q' parameter of ProjectivePlane must be a prime. Got 4. The nearest is 3."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.ProjectivePlane(q=4)
