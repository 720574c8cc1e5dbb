"""Primes against a sieve, and the sentence with the nearest."""

from __future__ import annotations

import re

import numpy as np
import pytest

from topogen.errors import SpecError
from topogen.specs import _primes


def sieve(limit):
    flags = np.ones(limit, bool)
    flags[:2] = False
    for n in range(2, int(limit**0.5) + 1):
        flags[n * n :: n] = False
    return flags


def test_primes_are_those_of_the_sieve():
    assert [_primes.is_prime(n) for n in range(5000)] == sieve(5000).tolist()
    assert _primes.is_prime(2**31 - 1)
    assert not _primes.is_prime(46_337**2)  # a square of a prime


@pytest.mark.parametrize("p", [2, 3, 5, 7, 101])
def test_inverses(p):
    inverses = _primes.inverses(p)
    assert inverses[0] == 0
    assert (np.arange(1, p) * inverses[1:] % p == 1).all()


@pytest.mark.parametrize("number", [4, 9, 90, 1000, 2**31 - 2])
def test_what_is_no_prime_is_refused_with_the_nearest(number):
    flags = sieve(1100)
    primes = np.flatnonzero(flags) if number < 1100 else np.array([2**31 - 1])
    nearest = min(primes.tolist(), key=lambda p: (abs(p - number), p))
    sentence = f"The 'q' parameter of Family must be a prime. Got {number}. The nearest is {nearest}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        _primes.prime(number, "q", "Family")


@pytest.mark.parametrize("value", [1, 0, -7, 2.0, "7", None, True, 2**31])
def test_what_is_no_int_from_two_is_refused(value):
    sentence = f"The 'q' parameter of Family must be an int in [2, 2147483647]. Got {value!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        _primes.prime(value, "q", "Family")


def test_a_condition_that_nothing_near_meets_has_no_nearest():
    with pytest.raises(SpecError, match=r"^The 'q' parameter of Family must be an odd even prime\. Got 7\.$"):
        _primes.prime(7, "q", "Family", kind="an odd even prime", fits=lambda _: False)
