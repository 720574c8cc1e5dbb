"""Permute and Transpose: the same graph under other names, with the promises that do not depend on names."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import _spec
from topogen._claims import DEAD_NEURONS, FAN_IN, FAN_OUT, Claim, Measure
from topogen.errors import SpecError
from topogen.measures import Range
from topogen.testing import seeds, specs

RADIX = tg.RadixNet(systems=[[2, 3], [3, 2]], widths=[1, 2, 1, 1, 2])


def layered_graph(net):
    """The directed graph, every neuron with the layer of nodes it is in."""
    graph = nx.DiGraph()
    for j, size in enumerate(net.sizes):
        graph.add_nodes_from(((j, i) for i in range(size)), layer=j)
    for k, layer in enumerate(net):
        graph.add_edges_from(((k, i), (k + 1, j)) for i, j in zip(*layer.nonzero(), strict=True))
    return graph


@given(specs(tg.Permute), seeds())
def test_permuted_layers_are_those_inside_with_rows_and_columns_in_another_order(spec, seed):
    orders = [tg.stream(seed, "permutation", j).permutation(n) for j, n in enumerate(spec.sizes)]
    if not spec.inputs:
        orders[0] = np.arange(spec.sizes[0])
    if not spec.outputs:
        orders[-1] = np.arange(spec.sizes[-1])
    inside = tg.generate(spec.spec, rng=tg.child(seed, "member", 0))
    for k, layer in enumerate(tg.generate(spec, rng=seed)):
        expected = inside[k].toarray()[np.ix_(orders[k], orders[k + 1])]
        np.testing.assert_array_equal(layer.toarray(), expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(False, False), (True, False), (False, True), (True, True)])
def test_networkx_finds_the_graphs_isomorphic(inputs, outputs):
    small = tg.RadixNet(systems=[[2, 3]], widths=[1, 2, 1])
    net = tg.generate(tg.Permute(small, inputs=inputs, outputs=outputs), rng=0)
    whole = tg.generate(small)
    graphs = layered_graph(net), layered_graph(whole)
    assert nx.vf2pp_is_isomorphic(*graphs, node_label="layer")
    # and none of the layers is what it was
    assert not any(np.array_equal(a.toarray(), b.toarray()) for a, b in zip(net, whole, strict=True))


def test_without_flags_the_ends_keep_their_names():
    """Inputs and outputs are joined by as many paths as before, name by name."""
    spec = tg.Trim(RADIX, [6, 10, 5, 4, 12])  # not symmetric, so that names matter

    def paths(net):
        return np.linalg.multi_dot([layer.toarray().astype(int) for layer in net])

    before = paths(tg.generate(spec))
    assert len(np.unique(before)) > 1
    np.testing.assert_array_equal(paths(tg.generate(tg.Permute(spec), rng=0)), before)
    moved = paths(tg.generate(tg.Permute(spec, inputs=True), rng=0))
    assert (moved != before).any()
    np.testing.assert_array_equal(np.sort(moved, axis=0), np.sort(before, axis=0))


@pytest.mark.parametrize("family", [tg.Permute, tg.Transpose])
def test_promises_are_kept(family):
    seen = set()

    @given(specs(family), seeds())
    def kept(spec, seed):
        assert tg.verify(tg.generate(spec, rng=seed)).holds is True
        seen.update(claim.name for claim in spec.claims())

    kept()
    assert seen >= {"sizes", "connections", "fan-in", "fan-out", "symmetric", "paths per pair"}


@pytest.mark.parametrize("spec", [RADIX, tg.Dense(sizes=[3, 2, 4]), tg.RandomBiregular(sizes=[6, 4, 2], fan_in=[3, 2])])
def test_all_that_is_promised_of_the_graph_is_promised_after_relabelling(spec):
    relabelled = tg.Permute(spec, inputs=True)
    assert relabelled.claims() == spec.claims()
    assert tg.verify(tg.generate(relabelled, rng=0)).holds is True
    backwards = tg.Transpose(spec)
    assert {claim.name for claim in backwards.claims()} == {claim.name for claim in spec.claims()}
    assert tg.verify(tg.generate(backwards, rng=0)).holds is True


class Named(tg.Dense):
    """Promises something about the names of its neurons."""

    __slots__ = ()

    def claims(self):
        first = Measure("first connection", lambda topology: int(topology[0].indices[0]))
        return (
            *super().claims(),
            Claim(measure=first, bound=0, source="its definition"),
            Claim(measure=FAN_IN, bound=(Range(2, 2), Range(9, 9)), relation="<=", probability=0.5, source="a guess"),
        )


del _spec._FAMILIES["Named"]


def test_promises_about_names_are_dropped():
    named = Named(sizes=[2, 3, 4])
    assert "first connection" in {claim.name for claim in named.claims()}
    for spec in (tg.Permute(named), tg.Transpose(named)):
        assert "first connection" not in {claim.name for claim in spec.claims()}


def test_a_guess_is_still_a_guess_from_back_to_front():
    (guess,) = [claim for claim in tg.Transpose(Named(sizes=[2, 3, 4])).claims() if claim.relation != "=="]
    assert (guess.measure, guess.relation, guess.probability) == (FAN_OUT, "<=", 0.5)
    assert guess.bound == (Range(9, 9), Range(2, 2))


@given(specs(tg.Transpose), seeds())
def test_transposed_layers_run_backwards(spec, seed):
    inside = tg.generate(spec.spec, rng=seed)
    net = tg.generate(spec, rng=seed)
    for layer, other in zip(net, reversed(inside), strict=True):
        np.testing.assert_array_equal(layer.toarray(), other.toarray().T)
    assert tg.generate(tg.Transpose(spec), rng=seed) == inside


class Leaky(tg.Dense):
    """The last of three inputs has no connection."""

    __slots__ = ()

    def layer(self, k, seed=None):
        return tg.as_pattern([[1, 1], [1, 1], [0, 0]])

    def claims(self):
        return (Claim(measure=DEAD_NEURONS, bound=(1, 0), source="its definition"),)


del _spec._FAMILIES["Leaky"]


def test_dead_neurons_change_sides():
    spec = tg.Transpose(Leaky(sizes=[3, 2]))
    assert [claim.bound for claim in spec.claims()] == [(0, 1)]
    assert tg.verify(tg.generate(spec)).holds is True


def test_degrees_change_sides():
    claims = {claim.name: claim.bound for claim in tg.Transpose(RADIX).claims()}
    assert [str(degree) for degree in claims["fan-out"]] == [str(r.min) for r in RADIX.claims()[3].bound[::-1]]
    assert claims["sizes"] == (12, 6, 6, 12, 6)
    assert claims["connections"] == (24, 18, 36, 24)
    assert tg.verify(tg.generate(tg.Transpose(RADIX))).holds is True


def test_relabelling_twice_is_two_draws():
    once, twice = tg.Permute(RADIX), tg.Permute(tg.Permute(RADIX))
    seed = np.random.SeedSequence(1)
    inner = tg.generate(once, rng=tg.child(seed, "member", 0))
    assert inner != tg.generate(once, rng=seed)
    order = tg.stream(seed, "permutation", 1).permutation(RADIX.sizes[1])
    np.testing.assert_array_equal(tg.generate(twice, rng=seed)[0].toarray(), inner[0].toarray()[:, order])


def test_one_layer_has_nothing_hidden_to_relabel():
    single = tg.RadixNet(systems=[[4]])
    assert not tg.Permute(single).is_random
    assert tg.generate(tg.Permute(single)) == tg.generate(single)
    assert tg.Permute(single, inputs=True).is_random
    assert not tg.Permute(tg.Dense(sizes=[3, 1, 3])).is_random


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: tg.Permute(5), "The 'spec' parameter of Permute must be an AbstractSpec. Got 5."),
        (lambda: tg.Permute(RADIX, inputs=1), "The 'inputs' parameter of Permute must be False or True. Got 1."),
        (
            lambda: tg.Permute(RADIX, outputs=None),
            "The 'outputs' parameter of Permute must be False or True. Got None.",
        ),
        (lambda: tg.Transpose(None), "The 'spec' parameter of Transpose must be an AbstractSpec. Got None."),
    ],
)
def test_impossible_relabellings_are_refused(make, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        make()
