"""Butterflies against their recursive definition, exclusive ors, the hypercube and the RadiX-Net beside them."""

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


def dense_product(net):
    """Exact path counts of a small network, by dense products of Python ints."""
    product = np.eye(net.sizes[0], dtype=object)
    for layer in net:
        product = product @ layer.toarray().astype(int).astype(object)
    return product


def factor(n):
    """The support of the last butterfly factor of size n: [[D, D], [D, D]] with diagonal D."""
    return np.kron(np.ones((2, 2), dtype=int), np.eye(n // 2, dtype=int))


@pytest.mark.parametrize("digits", range(1, 7))
def test_layers_are_the_factors_of_the_recursive_definition(digits):
    n = 2**digits
    net = tg.generate(tg.Butterfly(n=n))
    assert len(net) == digits
    for k, layer in enumerate(net):
        size = 2 ** (k + 1)
        np.testing.assert_array_equal(layer.toarray(), np.kron(np.eye(n // size, dtype=int), factor(size)))


@pytest.mark.parametrize("strides", ["increasing", "decreasing"])
def test_one_path_joins_every_pair(strides):
    for digits in range(1, 6):
        net = tg.generate(tg.Butterfly(n=2**digits, strides=strides))
        assert (dense_product(net) == 1).all()


def test_decreasing_strides_are_the_same_layers_backwards():
    up, down = (tg.generate(tg.Butterfly(n=32, strides=order)).layers for order in ("increasing", "decreasing"))
    for layer, twin in zip(up, reversed(down), strict=True):
        np.testing.assert_array_equal(layer.toarray(), twin.toarray())


def test_the_radix_two_net_is_the_cousin_and_not_the_same():
    butterfly, radix = tg.generate(tg.Butterfly(n=8)), tg.generate(tg.RadixNet(systems=[[2, 2, 2]]))
    assert butterfly.sizes == radix.sizes
    assert tg.measures.path_counts(butterfly) == tg.measures.path_counts(radix)
    assert [tg.measures.n_components(layer) for layer in butterfly] == [4, 4, 4]
    assert [tg.measures.n_components(layer) for layer in radix] == [1, 2, 4]


@given(specs(tg.FlatButterfly))
def test_flat_layers_are_the_union_of_the_strides(spec):
    i, j = np.indices((spec.n, spec.n))
    expected = np.isin(i ^ j, [0, *(2**k for k in range(spec.strides))])
    for layer in tg.generate(spec):
        np.testing.assert_array_equal(layer.toarray(), expected)


@given(st.integers(1, 5))
def test_all_strides_are_the_hypercube_with_loops(digits):
    (layer,) = tg.generate(tg.FlatButterfly(n=2**digits, strides=digits))
    cube = nx.hypercube_graph(digits)
    adjacency = nx.to_numpy_array(cube, nodelist=sorted(cube))
    np.testing.assert_array_equal(layer.toarray().astype(int), adjacency + np.eye(2**digits))


@given(specs(tg.FlatButterfly))
def test_flat_path_counts_are_those_of_the_dense_product(spec):
    net = tg.generate(spec)
    product = dense_product(net)
    claimed = {claim.name: claim.bound for claim in spec.claims()}
    assert claimed["paths per pair"] == tg.measures.PathCounts(product.min(), product.max())
    assert claimed["path-connected"] is bool((product > 0).all())


@pytest.mark.parametrize("family", [tg.Butterfly, lambda n: tg.FlatButterfly(n=n, strides=1)])
@pytest.mark.parametrize(("n", "nearest"), [(3, 2), (5, 4), (7, 8), (12, 8), (13, 16), (1000, 1024)])
def test_other_sizes_are_refused_with_the_nearest(family, n, nearest):
    sentence = rf"^The 'n' parameter of \w+ must be a power of 2\. Got {n}\. The nearest is {nearest}\.$"
    with pytest.raises(SpecError, match=sentence):
        family(n=n)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        *[
            (lambda n=n: tg.Butterfly(n=n), f"The 'n' parameter of Butterfly must be an int >= 2. Got {n!r}.")
            for n in (1, 0, -4, 8.0, True, "8", None)
        ],
        (
            lambda: tg.Butterfly(n=8, strides="random"),
            "The 'strides' parameter of Butterfly must be 'increasing' or 'decreasing'. Got 'random'.",
        ),
        (
            lambda: tg.FlatButterfly(n=8, strides=4),
            "The 'strides' parameter of FlatButterfly (n = 8) must be an int in [1, 3]. Got 4.",
        ),
        (
            lambda: tg.FlatButterfly(n=8, strides=3, layers=0),
            "The 'layers' parameter of FlatButterfly must be an int >= 1. Got 0.",
        ),
    ],
)
def test_impossible_values_are_refused(build, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        build()
