"""RandomLift: what a 2-lift does to singular values, and that the best of the tries is kept."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.specs import _random_lift
from topogen.testing import seeds, specs


@given(specs(tg.RandomLift), seeds())
def test_degrees_are_exact_and_every_layer_covers_the_base(spec, seed):
    net = tg.generate(spec, rng=seed)
    dense = net[0].toarray().astype(int)
    assert (dense.sum(axis=0) == spec.fan_in).all()
    assert (dense.sum(axis=1) == spec.fan_out).all()
    copies = 2**spec.lifts
    quotient = dense.reshape(copies, spec.fan_in, copies, spec.fan_out).sum(axis=2)
    assert (quotient == 1).all()  # each copy of an input meets each output of the base once
    assert tg.verify(net).holds is True


@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 99))
def test_a_lift_has_the_singular_values_of_the_base_and_of_the_signed_base(n_in, n_out, seed):
    crossed = np.random.default_rng(seed).random((n_in, n_out)) < 0.5
    lifted = _random_lift._two_lift(tg.as_pattern(np.ones((n_in, n_out))), crossed)
    np.testing.assert_array_equal(lifted.toarray(), np.block([[~crossed, crossed], [crossed, ~crossed]]))
    values = np.linalg.svd(lifted.toarray().astype(float), compute_uv=False)
    base, signed = np.ones((n_in, n_out)), np.where(crossed, -1.0, 1.0)
    expected = np.concatenate([np.linalg.svd(part, compute_uv=False) for part in (base, signed)])
    np.testing.assert_allclose(values, np.sort(expected)[::-1], rtol=0, atol=1e-9)


def test_the_best_of_the_tries_is_kept():
    seed = np.random.SeedSequence(4)
    base = tg.as_pattern(np.ones((4, 3)))
    tries = [
        _random_lift._two_lift(base, tg.stream(seed, "layer", 0, "member", 0, "attempt", t).random((4, 3)) < 0.5)
        for t in range(6)
    ]
    values = [np.linalg.svd(lift.toarray().astype(float), compute_uv=False)[1] for lift in tries]
    assert max(values) > min(values) + 0.1
    net = tg.generate(tg.RandomLift(fan_out=3, fan_in=4, lifts=1, tries=6), rng=seed)
    assert tg.measures.second_singular_value(net) == pytest.approx(min(values), abs=1e-9)
    assert net == tg.Topology([tries[int(np.argmin(np.round(values, 9)))]])


def test_the_second_singular_value_never_falls():
    values = [
        tg.measures.second_singular_value(tg.generate(tg.RandomLift(fan_out=4, fan_in=6, lifts=lifts, tries=2), rng=0))
        for lifts in range(1, 5)
    ]
    assert (np.diff(values) >= -1e-9).all()


def test_seed_2026_draws_what_it_always_drew():
    net = tg.generate(tg.RandomLift(fan_out=3, fan_in=5, lifts=3, tries=2), rng=2026)
    assert tg.pattern_hash(net[0], 1)[:16] == "f3659608e8b95256"


@pytest.mark.parametrize(
    ("name", "value", "requirement"),
    [("fan_out", 1, ">= 2"), ("fan_in", 2.0, ">= 2"), ("lifts", 0, "in [1, 30]"), ("tries", 0, ">= 1")],
)
def test_impossible_lifts_are_refused(name, value, requirement):
    sentence = f"The '{name}' parameter of RandomLift must be an int {requirement}. Got {value}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.RandomLift(**{"fan_out": 3, "fan_in": 3, "lifts": 2, name: value})
