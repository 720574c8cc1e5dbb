"""GabberGalil: the maps, the merged connections, and the theorems over all sets of small graphs."""

from __future__ import annotations

import math
import re

import networkx as nx
import numpy as np
import pytest

import topogen as tg
from topogen.errors import SpecError

MAPS = {
    5: lambda x, y: [(x, y), (x, x + y), (x, x + y + 1), (x + y, y), (x + y + 1, y)],
    7: lambda x, y: [(x, y), *((x + 2 * y + t, y) for t in range(3)), *((x, y + 2 * x + t) for t in range(3))],
    8: lambda x, y: [
        *((x + 2 * y, y), (x + 2 * y + 1, y), (x, y + 2 * x), (x, y + 2 * x + 1)),
        *((x - 2 * y, y), (x - 2 * y - 1, y), (x, y - 2 * x), (x, y - 2 * x - 1)),
    ],
}


def multigraph(m, maps):
    matrix = np.zeros((m * m, m * m), int)
    for x in range(m):
        for y in range(m):
            for u, v in MAPS[maps](x, y):
                matrix[x * m + y, u % m * m + v % m] += 1
    return matrix


def second(matrix):
    return np.linalg.svd(matrix.astype(float), compute_uv=False)[1]


@pytest.mark.parametrize("maps", [5, 7, 8])
@pytest.mark.parametrize("m", [*range(2, 10), 12, 13])
def test_connections_are_those_of_the_maps_without_doubles(m, maps):
    spec = tg.GabberGalil(m=m, maps=maps)
    net = tg.generate(spec)
    edges = multigraph(m, maps)
    assert (edges.sum(axis=0) == maps).all()
    assert (edges.sum(axis=1) == maps).all()
    np.testing.assert_array_equal(net[0].toarray(), edges > 0)
    assert spec.connections == (edges > 0).sum()
    degrees = (edges > 0).sum(axis=1)
    assert spec.degrees == (degrees.min(), degrees.max())
    assert tg.verify(net).holds is True


@pytest.mark.parametrize(
    ("maps", "values"),
    [(5, (3.587, 4.320, 4.630, 4.777)), (7, (4.00, 4.64, 5.22, 5.87)), (8, (4.61, 5.33, 5.62, 6.01))],
)
def test_published_values_are_those_of_the_multigraphs(maps, values):
    for m, value in zip((3, 5, 8, 13), values, strict=True):
        assert second(multigraph(m, maps)) == pytest.approx(value, abs=5e-4 if maps == 5 else 6e-3)


@pytest.mark.parametrize("m", [2, 3, 5, 6, 9])
def test_eight_maps_are_networkx_margulis_graph(m):
    graph = nx.margulis_gabber_galil_graph(m)
    nodes = [(x, y) for x in range(m) for y in range(m)]
    theirs = nx.to_numpy_array(graph, nodelist=nodes, multigraph_weight=max) > 0
    np.testing.assert_array_equal(tg.generate(tg.GabberGalil(m=m, maps=8))[0].toarray(), theirs)


@pytest.mark.parametrize("m", range(2, 17))
def test_what_the_claim_on_singular_values_rests_on(m):
    edges = multigraph(m, 8)
    assert (edges == edges.T).all()
    assert edges.max() <= 4  # edges that one connection stands for
    assert second(edges) <= 5 * math.sqrt(2)
    degrees = (edges > 0).sum(axis=1)
    normalised = second((edges > 0) / np.sqrt(np.outer(degrees, degrees)))
    assert 1 - normalised >= (1 - second(edges) / 8) / 4  # the comparison itself, where it is sharper
    (claim,) = [claim for claim in tg.GabberGalil(m=m, maps=8).claims() if "singular" in claim.name]
    assert claim.bound == pytest.approx((3 if m == 2 else 1) * (1 - (1 - 5 * math.sqrt(2) / 8) / 4))


@pytest.mark.parametrize("maps", [5, 7, 8])
@pytest.mark.parametrize("m", [2, 3, 4])
def test_every_set_of_inputs_expands_as_the_theorem_says(m, maps):
    n = m * m
    reached = np.zeros(2**n, np.int64)  # bit masks of the outputs that a bit mask of inputs reaches
    for i, row in enumerate(tg.generate(tg.GabberGalil(m=m, maps=maps))[0].toarray()):
        mask = sum(1 << int(j) for j in np.flatnonzero(row))
        reached[1 << i : 2 << i] = reached[: 1 << i] | mask
    sizes, images = (np.bitwise_count(masks).astype(float) for masks in (np.arange(2**n), reached))
    constant = (2 - math.sqrt(3)) / {5: 4, 7: 2, 8: 1}[maps]
    least = 32 * sizes / (25 + 7 * sizes / n) if maps == 8 else (1 + constant * (1 - sizes / n)) * sizes
    assert (images >= least - 1e-9).all()


@pytest.mark.parametrize("m", [1, 0, -3, 2.0, None])
def test_a_torus_has_at_least_two_points_a_side(m):
    sentence = f"The 'm' parameter of GabberGalil must be an int in [2, 2147483647]. Got {m!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.GabberGalil(m=m)


@pytest.mark.parametrize("maps", [6, 9, 5.0, None])
def test_there_are_five_seven_or_eight_maps(maps):
    sentence = f"The 'maps' parameter of GabberGalil must be 5 or 7 or 8. Got {maps!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.GabberGalil(m=5, maps=maps)
