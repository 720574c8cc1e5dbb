"""LPS: the group by brute force, both cases of the Legendre symbol, published values, when it is simple."""

from __future__ import annotations

import math
import re
from itertools import product

import networkx as nx
import pytest

import topogen as tg
from topogen.errors import SpecError
from topogen.specs import _lps


def quadruples(p):
    span = range(-math.isqrt(p), math.isqrt(p) + 1)
    return {
        v for v in product(span, repeat=4)
        if sum(x * x for x in v) == p and v[0] > 0 and v[0] % 2 and not any(x % 2 for x in v[1:])
    }  # fmt: skip


def normalised(matrix, q):
    first = next(x for x in matrix if x % q)
    return tuple(x * pow(first, -1, q) % q for x in matrix)


def generators(p, q):
    i = next(x for x in range(q) if x * x % q == q - 1)
    return [normalised((a + i * b, c + i * d, -c + i * d, a - i * b), q) for a, b, c, d in quadruples(p)]


def cayley_graph(p, q):
    """The multigraph X^{p,q} grown from the identity, as {vertex: neighbours}."""
    found, edges = {(1, 0, 0, 1)}, {}
    queue = list(found)
    for g in queue:
        edges[g] = [
            normalised((g[0] * s[0] + g[1] * s[2], g[0] * s[1] + g[1] * s[3],
                        g[2] * s[0] + g[3] * s[2], g[2] * s[1] + g[3] * s[3]), q)
            for s in generators(p, q)
        ]  # fmt: skip
        queue += [h for h in dict.fromkeys(edges[g]) if h not in found]
        found.update(edges[g])
    return edges


@pytest.mark.parametrize("p", [5, 13, 17, 29, 37, 101])
def test_jacobis_quadruples(p):
    found = [tuple(row) for row in _lps._four_squares(p).tolist()]
    assert len(found) == len(set(found)) == p + 1
    assert set(found) == quadruples(p)


@pytest.mark.parametrize(
    ("p", "q", "bipartite"),
    [(13, 5, True), (17, 5, True), (5, 13, True), (17, 13, False)],
)
def test_the_layer_is_the_cayley_graph(p, q, bipartite):
    edges = cayley_graph(p, q)
    graph = nx.Graph([(g, h) for g, neighbours in edges.items() for h in neighbours])
    n = q * (q * q - 1) // 2
    assert len(graph) == (2 * n if bipartite else n)
    assert nx.is_bipartite(graph) is bipartite
    assert {degree for _, degree in graph.degree} == {p + 1}
    net = tg.generate(tg.LPS(p=p, q=q))
    assert net.sizes == (n, n)
    if bipartite:  # inputs and outputs are the halves: row by row in ascending order of the normalised matrices
        half = {g for g in edges if pow(g[0] * g[3] - g[1] * g[2], (q - 1) // 2, q) == 1}
        other = set(edges) - half
    else:
        half = other = set(edges)
    rows, columns = (sorted(side, key=lambda g: (-g[0], *g[1:])) for side in (half, other))
    place = {h: j for j, h in enumerate(columns)}
    expected = [sorted(place[h] for h in edges[g]) for g in rows]
    assert net[0].indices.reshape(n, p + 1).tolist() == expected
    assert tg.verify(net).holds is True


@pytest.mark.parametrize(
    ("p", "q", "value"), [(5, 13, 4.2497), (5, 17, 4.3089), (13, 17, 7.0902), (13, 5, 4.0), (17, 5, 6.0)]
)
def test_published_second_singular_values(p, q, value):
    net = tg.generate(tg.LPS(p=p, q=q))
    measured = tg.measures.second_singular_value(net)
    assert measured == pytest.approx(value, abs=5e-5)
    assert measured <= 2 * math.sqrt(p)
    assert tg.measures.is_ramanujan(net)


@pytest.mark.slow
def test_the_largest_published_graph():
    report = tg.verify(tg.generate(tg.LPS(p=5, q=29)))
    assert report.holds is True
    assert report["second singular value"].measured == pytest.approx(4.4420, abs=5e-5)


def test_adjacency_of_a_bipartite_graph_would_be_no_expander():
    edges = cayley_graph(13, 5)
    graph = nx.Graph([(g, h) for g, neighbours in edges.items() for h in neighbours])
    assert tg.measures.second_singular_value(nx.to_scipy_sparse_array(graph)) == 14


PRIMES = [5, 13, 17, 29, 37, 41, 53, 61, 73, 89, 97]


@pytest.mark.parametrize("q", [5, 13])
def test_simple_exactly_where_the_generators_differ(q):
    for p in PRIMES:
        if p == q:
            continue
        elements = generators(p, q)
        simple = len(set(elements)) == p + 1 and (1, 0, 0, 1) not in elements
        assert simple or q * q < 4 * p
        try:
            tg.LPS(p=p, q=q)
        except SpecError as error:
            assert not simple
            enough = int(re.search(r"; (\d+) would do\.$", str(error))[1])
            tg.LPS(p=p, q=enough)
        else:
            assert simple


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"p": 29, "q": 5},
            "The 'q' parameter of LPS must keep the p + 1 = 30 matrices distinct and none the identity, up to scalars "
            "mod q, as every q > 2 sqrt p = 10.77 does. Got 5; 13 would do.",
        ),
        ({"p": 7, "q": 13}, "The 'p' parameter of LPS must be a prime that is 1 mod 4. Got 7. The nearest is 5."),
        ({"p": 5, "q": 9}, "The 'q' parameter of LPS must be a prime that is 1 mod 4. Got 9. The nearest is 5."),
        ({"p": 5, "q": 5}, "The parameters 'p' and 'q' of LPS must be two different primes. Got 5 twice."),
    ],
)
def test_impossible_graphs_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.LPS(**arguments)


def test_more_generators_than_vertices_are_refused_without_listing_them():
    with pytest.raises(SpecError, match=r"must keep the p \+ 1 = 1000000010 matrices distinct"):
        tg.LPS(p=1_000_000_009, q=5)
