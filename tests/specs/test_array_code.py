"""ArrayCode: its blocks by definition, its singular values by numpy."""

from __future__ import annotations

import math
import re

import networkx as nx
import numpy as np
import pytest

import topogen as tg
from topogen.errors import SpecError


def blocks(q, l):  # noqa: E741
    cyclic = np.zeros((q, q), int)
    for a in range(q):
        cyclic[a, (a + 1) % q] = 1
    return np.block([[np.linalg.matrix_power(cyclic, i * j) for j in range(q)] for i in range(l)])


@pytest.mark.parametrize(("q", "l"), [(2, 2), (3, 2), (3, 3), (5, 2), (5, 3), (5, 5), (7, 3), (11, 4)])
def test_blocks_singular_values_and_girth(q, l):  # noqa: E741
    net = tg.generate(tg.ArrayCode(q=q, l=l))
    dense = net[0].toarray().astype(int)
    np.testing.assert_array_equal(dense, blocks(q, l))
    assert net.sizes == (l * q, q * q)
    values = np.linalg.svd(dense.astype(float), compute_uv=False)
    expected = [math.sqrt(l * q)] + [math.sqrt(q)] * (l * (q - 1)) + [0] * (l - 1)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-8)
    assert abs(tg.measures.second_singular_value(net) - math.sqrt(q)) < 1e-8
    assert tg.measures.girth(net) == nx.girth(nx.bipartite.from_biadjacency_matrix(net[0]))
    assert tg.measures.is_ramanujan(net)
    assert tg.measures.is_ramanujan(net, strict=True) is (l == q)
    assert tg.verify(net).holds is True


def test_a_moved_connection_is_found_by_the_spectrum_alone():
    net = tg.generate(tg.ArrayCode(q=7, l=3))
    layer = net[0].toarray()
    # swap the ends of two connections: all degrees stay
    (a, b), (c, d) = next(
        ((a, b), (c, d))
        for a, b in np.argwhere(layer)
        for c, d in np.argwhere(layer)
        if not layer[a, d] and not layer[c, b]
    )
    layer[a, b] = layer[c, d] = False
    layer[a, d] = layer[c, b] = True
    report = tg.verify(tg.Topology([layer], spec=net.spec))
    assert report["fan-in"].holds is report["fan-out"].holds is True
    assert report["second singular value"].holds is False


def test_a_q_that_is_no_prime_would_break_the_theorem():
    assert np.linalg.svd(blocks(4, 3).astype(float), compute_uv=False)[1] == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"q": 4, "l": 3}, "The 'q' parameter of ArrayCode must be a prime. Got 4. The nearest is 3."),
        ({"q": 5, "l": 6}, "The 'l' parameter of ArrayCode must be an int in [2, 5]. Got 6."),
        ({"q": 5, "l": 1}, "The 'l' parameter of ArrayCode must be an int in [2, 5]. Got 1."),
        ({"q": 5.0, "l": 2}, "The 'q' parameter of ArrayCode must be an int in [2, 2147483647]. Got 5.0."),
    ],
)
def test_impossible_codes_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.ArrayCode(**arguments)
