"""Claims and reports as data: what keeps a promise, how a value is shown, what is refused."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen._claims import COMPONENTS, CONNECTIONS, DEFAULT_MEASURES, FAN_IN, ReportRow, shown
from topogen.errors import SpecError
from topogen.measures import PathCounts, Range


def claim(bound, relation="==", **others):
    return tg.Claim(measure=CONNECTIONS, bound=bound, relation=relation, source="a theorem", **others)


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_relations_are_those_of_arithmetic(measured, bound):
    kept = {relation: claim(bound, relation).is_kept_by(measured) for relation in ("==", "<=", ">=", "<", ">")}
    assert kept == {
        "==": measured == bound,
        "<=": measured <= bound,
        ">=": measured >= bound,
        "<": measured < bound,
        ">": measured > bound,
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4))
def test_tuples_are_compared_entry_by_entry(pairs):
    measured, bound = (tuple(pair[side] for pair in pairs) for side in (0, 1))
    assert claim(bound, "<=").is_kept_by(measured) is all(m <= b for m, b in pairs)
    assert claim(bound).is_kept_by(measured) is (measured == bound)
    assert claim((*bound, 0), "<=").is_kept_by(measured) is False  # another number of layers


def test_exact_values_are_compared_exactly():
    assert claim(Fraction(1, 3)).is_kept_by(Fraction(2, 6)) is True
    assert claim(Fraction(1, 3)).is_kept_by(Fraction(1, 3) + Fraction(1, 10**40)) is False
    assert claim(PathCounts(2**590, 2**590)).is_kept_by(PathCounts(2**590, 2**590)) is True
    assert claim(PathCounts(2**590, 2**590)).is_kept_by(PathCounts(2**590, 2**590 + 1)) is False
    assert tg.Claim(measure=FAN_IN, bound=(Range(2, 2),), source="").is_kept_by((Range(2, 3),)) is False


SIGMA = tg.Measure("second singular value", tg.measures.second_singular_value)


def test_a_tolerance_covers_rounding_on_the_far_side_of_the_bound_only():
    below = tg.Claim(measure=SIGMA, bound=2.0, relation="<=", tolerance=1e-8, source="a theorem")
    above = tg.Claim(measure=SIGMA, bound=2.0, relation=">=", tolerance=1e-8, source="a theorem")
    assert [below.is_kept_by(2 + off) for off in (-1, 0, 9e-9, 1.1e-8)] == [True, True, True, False]
    assert [above.is_kept_by(2 + off) for off in (1, 0, -9e-9, -1.1e-8)] == [True, True, True, False]
    assert not tg.Claim(measure=SIGMA, bound=2.0, relation="<=", source="a theorem").is_kept_by(2 + 9e-9)


def test_a_tolerance_is_shown():
    below = tg.Claim(measure=SIGMA, bound=1.0, relation="<=", tolerance=1e-8, source="a theorem")
    report = tg.verify([[1, 1], [1, 1]], claims=[below])
    assert report.rows[0].tolerance == report.to_dict()["rows"][0]["tolerance"] == 1e-8
    assert "second singular value  <= 1 (to 1e-08)" in str(report)
    assert report.rows[1].promise == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"bound": 2.0},
            "The 'tolerance' parameter of Claim must be 0 unless a float bound is compared by <= or >= "
            "(second singular value == 2). Got 1e-08.",
        ),
        (
            {"bound": 2, "relation": "<="},
            "The 'tolerance' parameter of Claim must be 0 unless a float bound is compared by <= or >= "
            "(second singular value <= 2). Got 1e-08.",
        ),
        (
            {"bound": 2.0, "relation": "<="} | {"tolerance": 1e-3},
            "The 'tolerance' parameter of Claim must be a finite number in [0, 1e-06]. Got 0.001.",
        ),
    ],
)
def test_exact_promises_take_no_tolerance(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Claim(**{"measure": SIGMA, "tolerance": 1e-8, "source": "a theorem", **arguments})


def test_a_claim_reads_as_a_sentence():
    assert str(claim((2, 2), "<=")) == "connections <= (2, 2)"
    assert claim((2, 2)).name == "connections"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (False, "no"),
        (7, "7"),
        (0.123456789, "0.123457"),
        (Fraction(1, 10), "1/10 = 0.1"),
        (Fraction(1), "1"),
        ((1, 2, 3), "(1, 2, 3)"),
        ((5, 5, 5), "(5, 5, 5)"),
        ((5,) * 120, "(120 times 5)"),
        ((1, *(5,) * 4, 2, 2), "(1, 4 times 5, 2, 2)"),
        (Range(70, 80), "70..80"),
        ((Range(30, 30), Range(70, 80)), "(30, 70..80)"),
        (PathCounts(3, 3), "3"),
        (PathCounts(2, 4), "2..4"),
        ((), "()"),
    ],
)
def test_values_in_a_table(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"measure": "connections"}, "The 'measure' parameter of Claim must be a Measure. Got 'connections'."),
        ({"source": None}, "The 'source' parameter of Claim must be a str. Got None."),
        ({"relation": "="}, "The 'relation' parameter of Claim must be '==' or '<=' or '>=' or '<' or '>'. Got '='."),
        ({"probability": 0}, "The 'probability' parameter of Claim must be a finite number in (0, 1]. Got 0."),
        ({"probability": 1.5}, "The 'probability' parameter of Claim must be a finite number in (0, 1]. Got 1.5."),
        (
            {"probability": float("nan")},
            "The 'probability' parameter of Claim must be a finite number in (0, 1]. Got nan.",
        ),
    ],
)
def test_impossible_claims_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Claim(**{"measure": CONNECTIONS, "bound": (1,), "source": "a theorem", **arguments})


def row(name, holds):
    return ReportRow(name=name, promised=None if holds is None else 1, measured=1, holds=holds)


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        ([], None),
        ([None, None], None),
        ([True, None], True),
        ([True, True], True),
        ([True, False, None], False),
        ([False], False),
    ],
)
def test_a_report_holds_when_all_that_was_promised_does(verdicts, holds):
    report = tg.Report(tuple(row(str(i), verdict) for i, verdict in enumerate(verdicts)))
    assert report.holds is holds


def test_rows_are_found_by_name():
    report = tg.Report((row("a", True), row("b", None)))
    assert report["b"] is report.rows[1]
    assert [r.name for r in report] == ["a", "b"]
    assert len(report) == 2
    with pytest.raises(KeyError, match="'c'"):
        report["c"]


def test_default_measures_have_names_of_their_own():
    names = [measure.name for measure in DEFAULT_MEASURES]
    assert len(set(names)) == len(names)
    assert COMPONENTS in DEFAULT_MEASURES
