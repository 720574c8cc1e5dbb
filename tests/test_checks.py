"""The one error sentence, value by value."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from topogen import checks
from topogen.errors import SpecError, TopogenError


def refused(check, *arguments, **options):
    with pytest.raises(SpecError) as caught:
        check(*arguments, "x", "Owner", **options)
    return str(caught.value)


def test_a_refusal_is_a_value_error_of_topogens():
    assert issubclass(SpecError, TopogenError)
    assert issubclass(SpecError, ValueError)
    with pytest.raises(SpecError, match=r"^The 'x' parameter of Owner must be even\. Got 3\. Try 4\.$"):
        checks.refuse("x", "Owner", "even", 3, hint="Try 4.")


def test_a_long_value_is_cut():
    with pytest.raises(SpecError) as caught:
        checks.refuse("x", "Owner", "short", list(range(100)))
    shown = re.search(r"Got (.*)\.$", str(caught.value))[1]
    assert len(shown) == 120
    assert shown.endswith("...")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_come_back_as_int(value):
    number = checks.integer(value, "x", "Owner", low=3, high=3)
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize(
    ("bounds", "requirement"),
    [
        ({}, "an int"),
        ({"low": 1}, "an int >= 1"),
        ({"high": 5}, "an int <= 5"),
        ({"low": 1, "high": 5}, "an int in [1, 5]"),
    ],
)
@pytest.mark.parametrize("value", [2.0, "2", True, np.True_, None, float("nan")])
def test_what_is_no_int(value, bounds, requirement):
    assert (
        refused(checks.integer, value, **bounds) == f"The 'x' parameter of Owner must be {requirement}. Got {value!r}."
    )


@pytest.mark.parametrize("value", [0, 6, -(10**30)])
def test_ints_out_of_range(value):
    assert refused(checks.integer, value, low=1, high=5).endswith(f"must be an int in [1, 5]. Got {value}.")


@pytest.mark.parametrize("value", [[1, 2], (1, 2), np.array([1, 2]), (i for i in (1, 2)), range(1, 3)])
def test_rows_of_integers(value):
    assert checks.integers(value, "x", "Owner", low=1, at_least=2) == (1, 2)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (5, "5"),
        ("12", "'12'"),
        (b"12", "b'12'"),
        ({1: 2}, "{1: 2}"),
        ({1, 2}, "{1, 2}"),
        (None, "None"),
        (np.array(5), "array(5)"),
        ([1], "[1]"),
    ],
)
def test_what_is_no_row(value, got):
    sentence = f"The 'x' parameter of Owner must be a sequence of at least 2 ints >= 1. Got {got}."
    assert refused(checks.integers, value, low=1, at_least=2) == sentence


def test_the_entry_at_fault_is_named():
    assert refused(checks.integers, [1, 2, 0.5], low=1) == "The 'x[2]' parameter of Owner must be an int >= 1. Got 0.5."


@pytest.mark.parametrize("value", [0.5, Fraction(1, 2), np.float32(0.5)])
def test_reals_come_back_as_float(value):
    number = checks.real(value, "x", "Owner", high=1.0)
    assert number == 0.5
    assert type(number) is float


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan"), float("inf"), True, np.True_, "0.5", None, 1j, [0.5]])
def test_what_is_no_real(value):
    sentence = f"The 'x' parameter of Owner must be a finite number in [0, 1]. Got {value!r}."
    assert refused(checks.real, value, high=1.0) == sentence


def test_open_and_unbounded_intervals():
    assert refused(checks.real, 0, open_low=True).endswith("must be a finite number in (0, inf). Got 0.")
    assert refused(checks.real, 10**400).startswith(
        "The 'x' parameter of Owner must be a finite number in [0, inf). Got 1"
    )
    assert checks.real(0, "x", "Owner") == 0


def test_one_of():
    assert checks.one_of("first", "x", "Owner", ("first", "last")) == "first"
    assert refused(checks.one_of, "middle", choices=("first", "last")) == (
        "The 'x' parameter of Owner must be 'first' or 'last'. Got 'middle'."
    )


@pytest.mark.parametrize("value", [True, 1.0])
def test_one_of_takes_no_look_alike(value):
    assert refused(checks.one_of, value, choices=(1, 2)).endswith(f"must be 1 or 2. Got {value!r}.")


def test_instance():
    assert checks.instance(5, "x", "Owner", int, "an") == 5
    assert (
        refused(checks.instance, "5", kind=int, article="an") == "The 'x' parameter of Owner must be an int. Got '5'."
    )


def test_memory_is_compared_with_what_is_available(monkeypatch):
    monkeypatch.setattr(checks, "_available_bytes", lambda: 1000)
    checks.fits_in_memory(1000, "x", "Owner")
    assert refused(checks.fits_in_memory, 1001) == (
        "The 'x' parameter of Owner must describe something that fits in memory. "
        "It needs 1,001 bytes and 1,000 are available."
    )
    monkeypatch.setattr(checks, "_available_bytes", lambda: None)  # a machine that does not tell
    checks.fits_in_memory(10**30, "x", "Owner")


def test_available_memory_is_read_from_the_system():
    available = checks._available_bytes()
    assert 2**20 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: much\n"])
def test_a_system_without_available_memory_tells_the_physical(monkeypatch, text):
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert checks._available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_system_that_tells_nothing(monkeypatch):
    def absent(*arguments):
        raise OSError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(os, "sysconf", absent)
    assert checks._available_bytes() is None
