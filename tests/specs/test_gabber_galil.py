"""GabberGalil: the five maps, the merged connections, and the theorem over all sets of small graphs."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import topogen as tg
from topogen.errors import SpecError


def multigraph(m):
    matrix = np.zeros((m * m, m * m), int)
    for x in range(m):
        for y in range(m):
            for u, v in ((x, y), (x, x + y), (x, x + y + 1), (x + y, y), (x + y + 1, y)):
                matrix[x * m + y, u % m * m + v % m] += 1
    return matrix


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7, 8, 12, 13])
def test_connections_are_those_of_the_maps_without_doubles(m):
    net = tg.generate(tg.GabberGalil(m=m))
    maps = multigraph(m)
    np.testing.assert_array_equal(net[0].toarray(), maps > 0)
    assert maps.sum() - net.nnz == 4 * m
    assert tg.verify(net).holds is True


@pytest.mark.parametrize(("m", "value"), [(3, 3.587), (5, 4.320), (8, 4.630), (13, 4.777)])
def test_published_values_are_those_of_the_multigraph(m, value):
    assert np.linalg.svd(multigraph(m).astype(float), compute_uv=False)[1] == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_every_set_of_inputs_expands_as_the_theorem_says(m):
    n = m * m
    reached = np.zeros(2**n, np.int64)  # bit masks of the outputs that a bit mask of inputs reaches
    for i, row in enumerate(tg.generate(tg.GabberGalil(m=m))[0].toarray()):
        mask = sum(1 << int(j) for j in np.flatnonzero(row))
        reached[1 << i : 2 << i] = reached[: 1 << i] | mask
    sizes, images = (np.bitwise_count(masks).astype(float) for masks in (np.arange(2**n), reached))
    constant = (2 - math.sqrt(3)) / 4
    assert (images >= (1 + constant * (1 - sizes / n)) * sizes - 1e-9).all()


@pytest.mark.parametrize("m", [1, 0, -3, 2.0, None])
def test_a_torus_has_at_least_two_points_a_side(m):
    sentence = f"The 'm' parameter of GabberGalil must be an int in [2, 2147483647]. Got {m!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.GabberGalil(m=m)
