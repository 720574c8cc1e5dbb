"""The contract over every family: a family that is added is held to it, and one without a strategy fails here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.testing import assert_spec_contract, seeds, specs


@pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)
@given(st.data(), seeds())
def test_contract(family, data, seed):
    spec = data.draw(specs(family))
    assert type(spec) is family
    assert_spec_contract(spec, rng=seed)


@pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)
def test_a_family_is_public_and_documented(family):
    assert getattr(tg, family.__name__) is family
    assert ">>> " in family.__doc__
    for section in ("Parameters", "Raises", "Notes", "Examples"):
        assert f"\n    {section}\n    ---" in family.__doc__, section
