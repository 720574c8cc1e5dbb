"""What a family says of itself: every one of them says everything, and it is true."""

from __future__ import annotations

import inspect
import re

import pytest

import topogen as tg
from topogen._catalogue import entry_of, family_named
from topogen.errors import SpecError

FAMILIES = pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)


@FAMILIES
def test_every_family_says_what_it_takes_and_what_it_refuses(family):
    entry = entry_of(family)
    assert entry.call.startswith(f"{family.__name__}(")
    assert entry.summary == " ".join(re.sub(":math:|`", "", family.__doc__.split(".\n")[0]).split()) + "."
    assert entry.refused.startswith("Refused if ")
    assert entry.refused.endswith(".")
    assert not any(mark in line for mark in ("`", ":math:") for line in (str(entry), entry.parameters))
    assert str(entry).count("\n") == 3


@FAMILIES
def test_every_parameter_has_its_place(family):
    entry = entry_of(family)
    named = {name.strip() for item in entry.takes.split("; ") for name in item.partition(": ")[0].split(",")}
    assert set(inspect.signature(family).parameters) <= named


@FAMILIES
def test_the_example_is_a_spec_of_the_family_that_promises_something(family):
    example = entry_of(family).example
    assert type(example) is family
    assert all(claim.source for claim in example.claims())
    assert len(example.claims()) > 0


class _Silent:
    pass


class _Halting:
    """Has a summary, and

    goes on.

    Raises
    ------
    ValueError
        If it rains.
    SpecError
        If `a` is not
        :math:`2^b`.
    GenerationError
        If it fails.

    Examples
    --------
    >>> from topogen import Dense
    >>> small = [4, 2]
    >>> tg.Trim(tg.Dense(sizes=small), sizes).shape
    >>> spec = _Halting(Dense(small))
    """


def test_what_is_not_said_stays_empty():
    entry = entry_of(_Silent)
    assert str(entry) == "_Silent()"
    assert entry.example is None


def test_the_sections_are_told_apart():
    entry = entry_of(type("Halting", (), {"__doc__": _Halting.__doc__}))
    assert entry.summary == "Has a summary, and"
    assert entry.refused == "Refused if a is not 2^b."
    assert entry.example is None  # it has examples, but none of this family


def test_an_example_is_read_with_its_names_replaced():
    documented = type("Trim", (), {"__doc__": 'T.\n\nExamples\n--------\n>>> n = 3\n>>> d = tg.Dense(sizes=[n, 2])\n>>> tg.generate(tg.Trim(d, [n, 1], keep="last")).nnz\n3\n'})  # fmt: skip # noqa: E501
    assert entry_of(documented).example == tg.Trim(tg.Dense(sizes=[3, 2]), [3, 1], keep="last")


def test_a_family_is_found_by_its_name():
    assert family_named("RadixNet") is tg.RadixNet
    with pytest.raises(
        SpecError, match=r"^The argument of list must be a family \(the nearest is RadixNet\)\. Got 'Radixnet'\.$"
    ):
        family_named("Radixnet")
