"""The public strategies: what they draw is what they say, and everything that matters comes up."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import topogen as tg
from topogen import _spec, testing
from topogen.errors import SpecError
from topogen.testing import patterns, register_strategy, seeds, specs, topologies


def drawn(strategy, n=400):
    """`n` examples of a strategy."""
    examples = []

    @settings(max_examples=n)
    @given(strategy)
    def collect(example):
        examples.append(example)

    collect()
    return examples


def test_patterns_are_canonical_and_within_their_bounds():
    for pattern in drawn(patterns(max_inputs=4, max_outputs=6)):
        assert pattern.shape <= (4, 6)
        assert pattern.shape[1] <= 6
        assert pattern.dtype == np.bool_
        assert pattern.data.all()
        for row in np.split(pattern.indices, pattern.indptr[1:-1]):
            assert (np.diff(row) > 0).all()


def test_every_kind_of_pattern_comes_up():
    dense = [pattern.toarray() for pattern in drawn(patterns())]
    for kind, is_one in {
        "1 x N": lambda m: m.shape[0] == 1 < m.shape[1],
        "N x 1": lambda m: m.shape[1] == 1 < m.shape[0],
        "wide": lambda m: m.shape[0] < m.shape[1],
        "tall": lambda m: m.shape[0] > m.shape[1],
        "no connection": lambda m: not m.any(),
        "all connections": lambda m: m.all(),
        "an empty row and a full one": lambda m: (~m.any(axis=1)).any() and m.all(axis=1).any(),
        "an empty column beside others": lambda m: (~m.any(axis=0)).any() and m.any(),
        "twin rows, not all equal": lambda m: m.any() and 1 < len(np.unique(m, axis=0)) < len(m),
    }.items():
        assert any(map(is_one, dense)), kind


def test_patterns_of_a_shape_have_it():
    assert {pattern.shape for pattern in drawn(patterns(shape=(3, 5)), n=20)} == {(3, 5)}


def test_topologies_are_chains_within_their_bounds():
    nets = drawn(topologies(max_layers=2, max_width=5))
    assert all(1 <= len(net) <= 2 and max(net.sizes) <= 5 and net.spec is None for net in nets)
    assert {len(net) for net in nets} == {1, 2}
    assert {tg.measures.is_path_connected(net) for net in nets} == {True, False}


def test_seeds_are_seed_sequences_of_every_kind():
    drawn_seeds = drawn(seeds())
    assert all(type(seed) is np.random.SeedSequence for seed in drawn_seeds)
    assert {len(seed.spawn_key) for seed in drawn_seeds} == {0, 1, 2}
    assert any(seed.entropy > 2**64 for seed in drawn_seeds)
    assert any(seed.entropy < 10 for seed in drawn_seeds)


# Families of one number, or of primes: few of them are small.
FEW = {tg.ProjectivePlane, tg.LPS, tg.Paley, tg.GabberGalil, tg.ChordalCycle}


@pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)
def test_specs_of_a_family_are_small_and_of_that_family(family):
    examples = drawn(specs(family), n=100)
    assert {type(spec) for spec in examples} == {family}
    assert max(max(spec.sizes) for spec in examples) <= 128
    assert len(set(examples)) > (1 if family in FEW else 10)


def test_specs_draws_every_family_and_combinators_hold_every_family():
    examples = drawn(specs(), n=1500)
    assert {type(spec) for spec in examples} >= set(tg.ALL_SPECS)
    held = {type(spec.spec) for family in (tg.Trim, tg.Transpose) for spec in drawn(specs(family), n=600)}
    held |= {type(member) for spec in drawn(specs(tg.Chain), n=600) for member in spec.specs}
    assert held >= set(tg.ALL_SPECS)


def test_every_option_of_radix_nets_comes_up():
    nets = drawn(specs(tg.RadixNet))
    assert {(net.shift, net.order) for net in nets} == {(s, o) for s in (-1, 1) for o in ("reference", "blocks")}
    assert {len(net.systems) for net in nets} >= {1, 2, 3}
    assert any(math.prod(net.systems[-1]) < net.modulus for net in nets)
    assert {net.widths is None for net in nets} == {True, False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(tg.AbstractSpec):
    """A family of someone else's."""

    n: int

    @property
    def sizes(self):
        return (self.n, self.n)

    def layer(self, k, seed=None):
        self.shape(k)
        return tg.as_pattern(np.eye(self.n, dtype=bool))

    def claims(self):
        return ()


_spec._FAMILIES.pop("Identity")  # known to its own test alone


def test_a_strategy_can_be_registered(monkeypatch, families):
    families["Identity"] = Identity
    monkeypatch.setattr(testing, "_STRATEGIES", dict(testing._STRATEGIES))
    register_strategy(Identity, st.integers(1, 5).map(lambda n: Identity(n=n)))
    for spec in drawn(specs(Identity), n=10):
        testing.assert_spec_contract(spec)
    assert Identity in {type(spec) for spec in drawn(specs(), n=200)}


def test_a_family_without_a_strategy_is_refused():
    sentence = (
        "The 'family' parameter of specs must be a family with a strategy; register_strategy adds one. "
        f"Got {Identity!r}."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        specs(Identity)


@pytest.mark.parametrize("family", [int, Identity(n=2), None])
def test_only_families_are_registered(family):
    sentence = f"The 'family' parameter of register_strategy must be a subclass of AbstractSpec. Got {family!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        register_strategy(family, st.none())


def test_only_strategies_are_registered():
    sentence = "The 'strategy' parameter of register_strategy must be a hypothesis strategy. Got 5."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        register_strategy(Identity, 5)
