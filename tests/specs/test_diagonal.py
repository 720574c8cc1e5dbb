"""Diagonal and Banded against their definitions entry by entry, networkx, and the RadiX-Nets among them."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import specs


@given(specs(tg.Diagonal))
def test_entries_are_those_of_the_published_layout(spec):
    for layer, offsets in zip(tg.generate(spec), spec.offsets, strict=True):
        n_in, n_out = layer.shape
        rows, columns = n_out, n_in  # the published matrix has outputs as rows
        weight = np.zeros((rows, columns), dtype=int)
        for d in offsets:
            for i in range(min(rows, columns)):
                weight[((i + d) % rows, i) if rows >= columns else (i, (i + d) % columns)] += 1
        np.testing.assert_array_equal(layer.toarray().T.astype(int), weight)


@given(specs(tg.RadixNet), st.data())
def test_a_radix_net_without_widths_is_circulant(spec, data):
    shift = data.draw(st.sampled_from([-1, 1]))
    radix = tg.RadixNet(systems=spec.systems, shift=shift)
    offsets = [[shift * j * nu for j in range(r)] for r, nu in zip(radix.radices, radix.place_values, strict=True)]
    diagonal = tg.Diagonal(sizes=radix.sizes, offsets=offsets)
    twins = [[tg.pattern_hash(layer) for layer in tg.generate(net)] for net in (radix, diagonal)]
    assert twins[0] == twins[1]


@given(st.integers(1, 24), st.lists(st.sets(st.integers(-30, 30), min_size=1, max_size=4), min_size=1, max_size=3))
def test_components_of_a_circulant_network_are_those_that_networkx_counts(n, offsets):
    distinct = [sorted({t % n for t in row}) for row in offsets]
    spec = tg.Diagonal(sizes=[n] * (len(distinct) + 1), offsets=distinct)
    graph = nx.Graph()
    for k, row in enumerate(distinct):
        graph.add_edges_from(((k, i), (k + 1, (i + t) % n)) for i in range(n) for t in row)
    claimed = {claim.name: claim.bound for claim in spec.claims()}
    assert claimed["components"] == nx.number_connected_components(graph)


def test_claims_cost_nothing_where_the_layer_would_not_fit():
    spec = tg.Diagonal(sizes=[10**12, 10**13], offsets=[[0, 1, 10**13 - 1]])
    claimed = {claim.name: claim.bound for claim in spec.claims()}
    assert claimed["fan-out"] == (tg.measures.Range(3, 3),)
    assert claimed["fan-in"] == (tg.measures.Range(0, 3),)


def test_equal_diagonals_are_equal_specs():
    assert tg.Diagonal(sizes=[6, 6], offsets=[[-1, 0, 8]]) == tg.Diagonal(sizes=[6, 6], offsets=[[0, 2, 5]])


@pytest.mark.parametrize(
    ("offsets", "sentence"),
    [
        *[
            (
                o,
                "The 'offsets' parameter of Diagonal must be a sequence of 2 sequences of ints, the offsets of each "
                f"layer. Got {o!r}.",
            )
            for o in (None, 3, [[0]], [[0], [1], [2]])
        ],
        (
            [[0], []],
            "The 'offsets[1]' parameter of Diagonal must be a sequence of at least 1 ints. Got [].",
        ),
        ([[0], 1], "The 'offsets[1]' parameter of Diagonal must be a sequence of at least 1 ints. Got 1."),
        ([[0, 1.0], [1]], "The 'offsets[0][1]' parameter of Diagonal must be an int. Got 1.0."),
        (
            [[0, 1], [1, -5]],
            "The 'offsets[1]' parameter of Diagonal must be distinct modulo 6, the larger size. Got [1, -5].",
        ),
    ],
)
def test_impossible_offsets_are_refused(offsets, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Diagonal(sizes=[4, 6, 3], offsets=offsets)


@given(specs(tg.Banded))
def test_a_band_is_what_numpy_cuts_out(spec):
    expected = np.tril(np.triu(np.ones((spec.n, spec.n), dtype=bool), -spec.lower), spec.upper)
    product = np.eye(spec.n, dtype=int)
    for layer in tg.generate(spec):
        np.testing.assert_array_equal(layer.toarray(), expected)
        product = np.minimum(product @ expected, 1)
    claimed = {claim.name: claim.bound for claim in spec.claims()}
    assert claimed["path-connected"] is bool(product.all())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0, "lower": 0, "upper": 0}, "The 'n' parameter of Banded must be an int >= 1. Got 0."),
        ({"n": 4, "lower": 4, "upper": 0}, "The 'lower' parameter of Banded (n = 4) must be an int in [0, 3]. Got 4."),
        (
            {"n": 4, "lower": 0, "upper": -1},
            "The 'upper' parameter of Banded (n = 4) must be an int in [0, 3]. Got -1.",
        ),
        ({"n": 4, "lower": 0, "upper": 1, "layers": 0}, "The 'layers' parameter of Banded must be an int >= 1. Got 0."),
    ],
)
def test_impossible_bands_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Banded(**arguments)
