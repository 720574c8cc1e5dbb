"""ChordalCycle against networkx, and which primes have a simple one."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pytest

import topogen as tg
from topogen.errors import SpecError

SIMPLE = [3, 7, 13, 17, 23, 37, 43, 47, 53, 67, 73, 83, 97]
DOUBLE = [2, 5, 11, 19, 29, 31, 41, 59, 61, 71, 79, 89]


@pytest.mark.parametrize("p", SIMPLE)
def test_it_is_networkxs_graph_without_its_doubles(p):
    net = tg.generate(tg.ChordalCycle(p=p))
    graph = nx.Graph(nx.chordal_cycle_graph(p))
    np.testing.assert_array_equal(net[0].toarray(), nx.to_numpy_array(graph, nodelist=range(p)) > 0)
    assert tg.verify(net).holds is True


@pytest.mark.parametrize("p", DOUBLE)
def test_primes_with_a_double_connection_are_refused(p):
    rows = [{(x - 1) % p, (x + 1) % p, pow(x, -1, p) if x else 0} for x in range(p)]
    assert min(map(len, rows)) < 3
    nearest = min(SIMPLE, key=lambda other: (abs(other - p), other))
    sentence = (
        "The 'p' parameter of ChordalCycle must be a prime that is 2 or 3 mod 5, so that no inverse is a neighbour on "
        f"the ring. Got {p}. The nearest is {nearest}."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.ChordalCycle(p=p)


def test_published_value_of_the_multigraph():
    p = 101  # 1 mod 5: not offered
    matrix = np.zeros((p, p))
    for x in range(p):
        for y in ((x - 1) % p, (x + 1) % p, pow(x, -1, p) if x else 0):
            matrix[x, y] += 1
    assert np.linalg.svd(matrix, compute_uv=False)[1] == pytest.approx(2.892, abs=5e-4)
