"""Kron and Block against numpy's Kronecker product and against each other; what they promise multiplies."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen import _spec, measures
from topogen._claims import CONNECTIONS, DEAD_NEURONS, PATH_CONNECTED, PATHS, SYMMETRIC, Claim
from topogen.errors import SpecError
from topogen.specs._kron import kron
from topogen.testing import patterns, seeds, specs

ORDERS = st.sampled_from(["reference", "blocks"])


class Fixed(tg.Dense):
    """One layer, as given, which promises all that was measured of it."""

    __slots__ = ("rows",)

    def __init__(self, rows):
        object.__setattr__(self, "rows", rows)
        super().__init__(sizes=(len(rows), len(rows[0])))

    def layer(self, k, seed=None):
        return tg.as_pattern(np.array(self.rows))

    def claims(self):
        report = tg.verify([np.array(self.rows)])
        measured = (CONNECTIONS, PATH_CONNECTED, SYMMETRIC, PATHS, DEAD_NEURONS)
        return tuple(Claim(measure=m, bound=report[m.name].measured, source="measured") for m in measured)


del _spec._FAMILIES["Fixed"]


def fixed(pattern):
    return Fixed(tuple(map(tuple, pattern.toarray().tolist())))


def first_layers(spec, depth):
    return tg.Chain(*(fixed(spec.layer(k)) for k in range(depth)))


def bounds(spec):
    return {claim.measure: claim.bound for claim in spec.claims()}


def is_canonical(pattern):
    rows = np.split(pattern.indices, pattern.indptr[1:-1])
    return pattern.dtype == bool and pattern.data.all() and all((np.diff(row) > 0).all() for row in rows)


@given(patterns(), patterns())
def test_kron_of_patterns_is_numpys(left, right):
    product = kron(left, right)
    np.testing.assert_array_equal(product.toarray(), np.kron(left.toarray(), right.toarray()))
    assert product.nnz == left.nnz * right.nnz
    assert is_canonical(product)


def test_half_full_factors_store_no_zeros():
    """scipy's product, without a format, stores a zero for every one of the 16 connections that are missing here."""
    half = tg.RadixNet(systems=[[2, 2]])
    net = tg.generate(tg.Kron(tg.RadixNet(systems=[[2, 2]]), half))
    assert [layer.nnz for layer in net] == [64, 64]
    assert all(layer.data.all() for layer in net)


@given(specs(tg.Kron), seeds())
def test_kron_is_numpys_kron_of_every_layer(spec, seed):
    if isinstance(spec.widths, tg.AbstractSpec):
        small = tg.generate(spec.spec, rng=tg.child(seed, "member", 0))
        factor = [layer.toarray() for layer in tg.generate(spec.widths, rng=tg.child(seed, "member", 1))]
    else:
        small = tg.generate(spec.spec, rng=seed)
        factor = [np.ones(pair, dtype=bool) for pair in zip(spec.widths[:-1], spec.widths[1:], strict=True)]
    for layer, inner, outer in zip(tg.generate(spec, rng=seed), small, factor, strict=True):
        pair = (outer, inner.toarray()) if spec.order == "reference" else (inner.toarray(), outer)
        np.testing.assert_array_equal(layer.toarray(), np.kron(*pair))


@given(specs(tg.RadixNet), st.data())
def test_radix_nets_kron_and_block_build_and_promise_the_same(spec, data):
    """Widths inside a RadiX-Net, around one, as a dense topology, and as blocks."""
    bare = tg.RadixNet(systems=spec.systems, shift=spec.shift, order=spec.order)
    assert tg.generate(tg.Kron(bare, spec.dense_widths, order=spec.order)) == tg.generate(spec)
    dense = tg.Kron(bare, tg.Dense(sizes=spec.dense_widths), order=spec.order)
    assert tg.generate(dense) == tg.generate(spec)
    block = data.draw(st.integers(1, 3))
    radix = tg.RadixNet(systems=spec.systems, widths=(block,) * len(spec.sizes), shift=spec.shift, order="blocks")
    assert tg.generate(tg.Block(bare, block)) == tg.generate(radix)
    for combined, plain in ((dense, spec), (tg.Block(bare, block), radix)):
        assert bounds(combined) == bounds(plain)


@given(specs(tg.Block), seeds())
def test_block_is_kron_in_blocks_and_every_block_is_full_or_empty(spec, seed):
    b = spec.block
    net = tg.generate(spec, rng=seed)
    assert net == tg.generate(tg.Kron(spec.spec, [b] * len(spec.sizes), order="blocks"), rng=seed)
    for layer, layout in zip(net, tg.generate(spec.spec, rng=seed), strict=True):
        n_in, n_out = layout.shape
        blocks = layer.toarray().reshape(n_in, b, n_out, b)
        np.testing.assert_array_equal(blocks.all(axis=(1, 3)), layout.toarray())
        np.testing.assert_array_equal(blocks.any(axis=(1, 3)), layout.toarray())


@given(specs(tg.RadixNet), specs(tg.Butterfly), ORDERS)
def test_counts_of_paths_multiply(radix, butterfly, order):
    depth = min(radix.depth, butterfly.depth)
    first, second = first_layers(radix, depth), first_layers(butterfly, depth)
    net = tg.generate(tg.Kron(first, second, order=order))
    product = np.linalg.multi_dot([np.eye(net.sizes[0]), *(layer.toarray().astype(float) for layer in net)])
    counts = [measures.path_counts(tg.generate(each)) for each in (first, second)]
    assert (product.min(), product.max()) == (counts[0].min * counts[1].min, counts[0].max * counts[1].max)


@given(patterns(max_inputs=5, max_outputs=5), patterns(max_inputs=5, max_outputs=5), ORDERS)
def test_what_is_promised_of_any_two_layers_is_true(left, right, order):
    product = tg.Kron(fixed(left), fixed(right), order=order)
    assert {CONNECTIONS, PATHS, DEAD_NEURONS} <= set(bounds(product))
    assert tg.verify(tg.generate(product)).holds is True


def test_ranges_of_degrees_multiply():
    sparse = tg.Trim(tg.RadixNet(systems=[[2, 2]]), [4, 3, 4])
    assert "fan-out" not in {claim.name for claim in tg.Kron(sparse, sparse).claims()}
    product = tg.Kron(tg.RadixNet(systems=[[2, 2]]), tg.RadixNet(systems=[[3, 3]], widths=[1, 2, 1]))
    claims = {claim.name: claim.bound for claim in product.claims()}
    assert [str(degree) for degree in claims["fan-out"]] == ["12", "6"]
    assert [str(degree) for degree in claims["fan-in"]] == ["6", "12"]
    assert claims["paths per pair"] == measures.PathCounts(2, 2)


def test_random_factors_are_separate_draws():
    random = tg.ErdosRenyi(sizes=[6, 6], density=0.5)
    net = tg.generate(tg.Kron(random, random, order="blocks"), rng=3)
    blocks = net[0].toarray().reshape(6, 6, 6, 6)
    outer, inner = blocks.any(axis=(1, 3)), blocks.any(axis=(0, 2))
    assert (outer.sum(), inner.sum()) == (18, 18)
    assert (outer != inner).any()


def test_a_random_layout_is_the_one_that_is_drawn_alone():
    layout = tg.RandomBiregular(sizes=[8, 8], fan_in=2)
    blocks = tg.generate(tg.Block(layout, 4), rng=5)[0].toarray()
    np.testing.assert_array_equal(blocks[::4, ::4], tg.generate(layout, rng=5)[0].toarray())


RADIX = tg.RadixNet(systems=[[2, 2]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((5, [1, 1]), "The 'spec' parameter of Kron must be an AbstractSpec. Got 5."),
        (
            (RADIX, [2, 2]),
            "The 'widths' parameter of Kron must be a sequence of 3 ints, as many as [4, 4, 4]. Got [2, 2].",
        ),
        ((RADIX, [2, 0, 2]), "The 'widths[1]' parameter of Kron must be an int >= 1. Got 0."),
        ((RADIX, 4), "The 'widths' parameter of Kron must be a sequence of ints >= 1. Got 4."),
        (
            (RADIX, tg.Dense(sizes=[2, 2])),
            "The 'widths' parameter of Kron must be a topology as deep as the first. Got 1 layers, and 2 in the first.",
        ),
    ],
)
def test_products_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Kron(*arguments)


def test_an_order_is_reference_or_blocks():
    with pytest.raises(SpecError, match=r"^The 'order' parameter of Kron must be 'reference' or 'blocks'\. Got 'W'\.$"):
        tg.Kron(RADIX, [1, 2, 1], order="W")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((5, 2), "The 'spec' parameter of Block must be an AbstractSpec. Got 5."),
        ((RADIX, 0), "The 'block' parameter of Block must be an int >= 1. Got 0."),
        ((RADIX, 2.0), "The 'block' parameter of Block must be an int >= 1. Got 2.0."),
    ],
)
def test_impossible_blocks_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Block(*arguments)


def test_what_is_too_large_is_refused_before_it_is_built():
    for spec in (tg.Kron(RADIX, [2**25] * 3), tg.Block(RADIX, 2**25)):
        with pytest.raises(SpecError, match="must describe something that fits in memory"):
            tg.generate(spec)
