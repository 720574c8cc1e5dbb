"""Trim, Chain, Repeat: slices and rows of what they hold; what they promise is true, and is all that it should be."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import _spec, measures
from topogen._claims import CONNECTIONS, FAN_IN, FAN_OUT, PATH_CONNECTED, PATHS, SIZES, SYMMETRIC, Claim
from topogen.errors import SpecError
from topogen.testing import seeds, specs

RADIX = tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1])


def promised(spec):
    return {claim.name for claim in spec.claims()}


@given(specs(tg.Trim), seeds())
def test_trim_is_a_slice_of_every_layer(spec, seed):
    whole, cut = tg.generate(spec.spec, rng=seed), tg.generate(spec, rng=seed)
    for k, layer in enumerate(cut):
        n_in, n_out = spec.sizes[k : k + 2]
        full = whole[k].toarray()
        expected = (
            full[:n_in, :n_out] if spec.keep == "first" else full[full.shape[0] - n_in :, full.shape[1] - n_out :]
        )
        np.testing.assert_array_equal(layer.toarray(), expected)


@given(specs(tg.Chain), seeds())
def test_chain_is_its_members_in_a_row(spec, seed):
    layers = iter(tg.generate(spec, rng=seed))
    for i, member in enumerate(spec.specs):
        alone = tg.generate(member, rng=_spec.child(seed, "member", i))
        for expected in alone:
            np.testing.assert_array_equal(next(layers).toarray(), expected.toarray())
    assert next(layers, None) is None


@pytest.mark.parametrize("family", [tg.Trim, tg.Chain, tg.Repeat])
def test_all_that_is_promised_holds(family):
    seen: set[str] = set()

    @given(specs(family), seeds())
    def holds(spec, seed):
        report = tg.verify(tg.generate(spec, rng=seed))
        assert report.holds is True
        seen.update(promised(spec))

    holds()
    # the examples are worth something: every kind of promise came up
    assert seen >= {"sizes", "connections", "density", "fan-out", "fan-in", "path-connected", "symmetric"}


@given(specs(tg.Repeat), seeds())
def test_repeat_is_a_chain_of_equal_members(spec, seed):
    chain = tg.Chain(*[spec.spec] * spec.times)
    assert spec.sizes == chain.sizes
    assert spec.layer_bytes() == chain.layer_bytes()
    assert tg.generate(spec, rng=seed) == tg.generate(chain, rng=seed)
    bounds = [{claim.measure: claim.bound for claim in each.claims()} for each in (spec, chain)]
    assert bounds[0] == bounds[1]


def test_repetitions_of_a_random_spec_are_draws_of_their_own():
    net = tg.generate(tg.Repeat(tg.RandomBiregular(sizes=[16, 16], fan_in=4), 3), rng=0)
    assert len({tg.pattern_hash(layer) for layer in net}) == 3


def test_a_long_row_promises_at_once():
    """One way through the members, however long the row: a quadratic one would take a minute."""
    spec = tg.Repeat(tg.Chain(tg.RandomBiregular(sizes=[4, 4], fan_in=2), tg.RadixNet(systems=[[2, 2]])), 20_000)
    claims = {claim.name: claim.bound for claim in spec.claims()}
    assert claims["paths per pair"].min == 2**1 * (2 * 4) ** 19_999
    assert len(claims["fan-in"]) == 60_000


def test_lenet_300_100_of_the_radix_paper():
    net = tg.generate(tg.Trim(RADIX, [784, 300, 100], keep="last"))
    first, second = (layer.toarray() for layer in net)
    assert (first.sum(), second.sum()) == (23520, 3000)
    assert set(first.sum(axis=1).tolist()) == {30}
    assert (first.sum(axis=0).min(), first.sum(axis=0).max()) == (70, 80)
    assert set(second.sum(axis=1).tolist()) == {10}
    assert set(second.sum(axis=0).tolist()) == {30}
    assert set((first.astype(int) @ second.astype(int)).ravel().tolist()) == {3}
    np.testing.assert_array_equal(first, tg.generate(RADIX)[0].toarray()[16:])
    report = tg.verify(net)
    assert report.holds is True
    # all that the cut leaves standing is still promised
    assert promised(net.spec) == {
        "sizes", "connections", "density", "fan-out", "path-connected", "symmetric", "paths per pair",
    }  # fmt: skip


def test_trimming_the_last_layer_strands_hidden_neurons():
    """Kwak et al. cut the last 100 x 100 layer to 10 columns; 81 of its inputs then lead nowhere."""
    spec = tg.Trim(tg.RadixNet(systems=[[10, 10], [10]], widths=[8, 3, 1, 1]), [784, 300, 100, 10])
    net = tg.generate(spec)
    assert net.density == 0.1
    assert int((net[2].toarray().sum(axis=1) == 0).sum()) == 81
    report = tg.verify(net)
    assert report["dead neurons"].measured == (0, 0, 81, 0)
    assert report.holds is True


def test_cutting_hidden_neurons_takes_the_promises_about_pairs_away():
    cut = tg.Trim(RADIX, [800, 299, 100])
    assert not promised(cut) & {"path-connected", "symmetric", "paths per pair"}
    # and rightly: it breaks them
    assert not measures.is_symmetric(tg.generate(cut))


def test_degrees_are_promised_on_the_side_whose_partners_are_kept():
    inputs, outputs = tg.Trim(RADIX, [784, 300, 100]), tg.Trim(RADIX, [800, 300, 90])
    assert "fan-out" in promised(inputs)
    assert "fan-in" not in promised(inputs)
    assert "fan-in" in promised(outputs)
    assert "fan-out" not in promised(outputs)


class Lopsided(tg.Dense):
    """Promises what is true of it and does not survive a cut: not connected, and unequally many paths."""

    __slots__ = ()

    def layer(self, k, seed=None):
        return tg.as_pattern(np.array([[True, True], [True, False]]))

    def claims(self):
        return (
            Claim(measure=PATH_CONNECTED, bound=False, source="its definition"),
            Claim(measure=SYMMETRIC, bound=False, source="its definition"),
            Claim(measure=PATHS, bound=measures.PathCounts(0, 1), source="its definition"),
        )


class Likely(tg.Dense):
    """Promises its connections with some probability only."""

    __slots__ = ()

    def claims(self):
        return (
            Claim(measure=CONNECTIONS, bound=(4,), probability=0.5, source="its definition"),
            Claim(measure=PATH_CONNECTED, bound=True, probability=0.5, source="its definition"),
        )


del _spec._FAMILIES["Lopsided"], _spec._FAMILIES["Likely"]


def test_what_is_likely_is_not_promised_for_certain():
    likely = Likely(sizes=[2, 2])
    assert promised(tg.Chain(likely, tg.ErdosRenyi(sizes=[2, 2], density=0.5))) == {"sizes"}
    assert {(claim.name, claim.probability) for claim in tg.Trim(likely, [1, 2]).claims()} == {
        ("sizes", 1.0),
        ("path-connected", 0.5),
    }


def test_only_what_is_promised_of_all_pairs_survives_a_cut():
    assert tg.verify(tg.generate(Lopsided(sizes=[2, 2]))).holds is True
    cut = tg.Trim(Lopsided(sizes=[2, 2]), [1, 2])
    assert promised(cut) == {"sizes"}
    assert tg.verify(tg.generate(cut)).holds is True


def test_a_chain_promises_what_follows_from_its_members():
    chain = tg.Chain(RADIX, tg.Dense(sizes=[100, 10]))
    claims = {claim.measure: claim.bound for claim in chain.claims()}
    assert claims[SIZES] == (800, 300, 100, 10)
    assert claims[CONNECTIONS] == (24000, 3000, 1000)
    assert [str(degrees) for degrees in claims[FAN_OUT]] == ["30", "10", "10"]
    assert [str(degrees) for degrees in claims[FAN_IN]] == ["80", "30", "100"]
    assert claims[PATH_CONNECTED] is True
    assert claims[PATHS] == measures.PathCounts(300, 300)
    assert tg.verify(tg.generate(chain)).holds is True


def test_one_connected_member_connects_a_chain_of_neurons_with_a_way_on():
    biregular = tg.RandomBiregular(sizes=[12, 100], fan_in=3)
    chain = tg.Chain(biregular, tg.RadixNet(systems=[[10, 10]]), tg.RandomBiregular(sizes=[100, 20], fan_in=5))
    claims = {claim.name: claim.bound for claim in chain.claims()}
    assert claims["path-connected"] is True
    assert claims["paths per pair"] == measures.PathCounts(25 * 5, 25 * 5)
    assert tg.verify(tg.generate(chain, rng=0)).holds is True


def test_a_chain_with_a_member_that_may_lead_nowhere_promises_no_connection():
    radix = tg.RadixNet(systems=[[10, 10]])
    for chain in (
        tg.Chain(tg.ErdosRenyi(sizes=[10, 100], density=0.01), radix),
        tg.Chain(radix, tg.ErdosRenyi(sizes=[100, 10], density=0.01)),
    ):
        assert promised(chain) == {"sizes", "connections", "density"}
        assert not measures.is_path_connected(tg.generate(chain, rng=0))


def test_equal_members_of_a_chain_differ():
    random = tg.ErdosRenyi(sizes=[20, 20], density=0.5)
    first, second = tg.generate(tg.Chain(random, random), rng=0)
    assert (first != second).nnz > 0


def test_the_promises_of_nested_combinators_are_asked_for_once_a_level():
    asked = []

    class Counting(tg.Dense):
        __slots__ = ()

        def claims(self):
            asked.append(self)
            return tg.Dense(sizes=self.sizes).claims()

    _spec._FAMILIES.pop("Counting")
    spec = Counting(sizes=[2, 2])
    for _ in range(12):
        spec = tg.Trim(tg.Chain(spec), spec.sizes)
    spec.claims()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((5, [6]), "The 'spec' parameter of Trim must be an AbstractSpec. Got 5."),
        (
            (RADIX, [784, 300]),
            "The 'sizes' parameter of Trim must be a sequence of 3 ints, as many as [800, 300, 100]. Got [784, 300].",
        ),
        ((RADIX, [801, 300, 100]), "The 'sizes[0]' parameter of Trim must be an int in [1, 800]. Got 801."),
        ((RADIX, [784, 0, 100]), "The 'sizes[1]' parameter of Trim must be an int >= 1. Got 0."),
        ((RADIX, [784, 300.0, 100]), "The 'sizes[1]' parameter of Trim must be an int >= 1. Got 300.0."),
        ((RADIX, 784), "The 'sizes' parameter of Trim must be a sequence of ints >= 1. Got 784."),
    ],
)
def test_impossible_cuts_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Trim(*arguments)


def test_an_end_to_keep_is_the_first_or_the_last():
    with pytest.raises(SpecError, match=r"^The 'keep' parameter of Trim must be 'first' or 'last'\. Got 'middle'\.$"):
        tg.Trim(RADIX, RADIX.sizes, keep="middle")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((5, 2), "The 'spec' parameter of Repeat must be an AbstractSpec. Got 5."),
        (
            (RADIX, 2),
            "The 'spec' parameter of Repeat must have as many outputs as inputs. Got 800 inputs and 100 outputs.",
        ),
        ((tg.Dense(sizes=[4, 4]), 0), "The 'times' parameter of Repeat must be an int >= 1. Got 0."),
        ((tg.Dense(sizes=[4, 4]), 2.0), "The 'times' parameter of Repeat must be an int >= 1. Got 2.0."),
    ],
)
def test_impossible_repetitions_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Repeat(*arguments)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ((), "The 'specs' parameter of Chain must be at least one spec. Got ()."),
        ((RADIX, 5), "The 'specs[1]' parameter of Chain must be an AbstractSpec. Got 5."),
        (
            (RADIX, tg.Dense(sizes=[99, 10])),
            "The 'specs' parameter of Chain must be specs whose widths match. Got 100 outputs of specs[0] and 99 "
            "inputs of specs[1].",
        ),
    ],
)
def test_chains_that_do_not_fit_are_refused(members, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Chain(*members)
