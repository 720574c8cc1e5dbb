"""Primes, and the sentence that refuses what is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from topogen import checks

__all__ = ["inverses", "is_prime", "prime"]

LARGEST = 2**31 - 1  # products of two residues fit in an int64


def is_prime(n: int) -> bool:
    """Whether `n` is prime, by trial division: at most 23,000 steps up to `LARGEST`."""
    if n < 4:
        return n >= 2
    return n % 2 == 1 and all(n % d for d in range(3, int(n**0.5) + 1, 2))


def prime(
    value: Any, name: str, owner: str, *, kind: str = "a prime", fits: Callable[[int], bool] = lambda _: True
) -> int:
    """Return `value`, a prime up to `LARGEST` that `fits`; the error has the nearest one, the smaller of two."""
    number = checks.integer(value, name, owner, low=2, high=LARGEST)
    if is_prime(number) and fits(number):
        return number
    candidates = (n for off in range(1, number + 100_000) for n in (number - off, number + off) if 2 <= n <= LARGEST)
    nearest = next((n for n in candidates if is_prime(n) and fits(n)), None)
    return checks.refuse(name, owner, kind, number, hint="" if nearest is None else f"The nearest is {nearest}.")


def inverses(p: int) -> npt.NDArray[np.int64]:
    """Return the inverse of every residue modulo the prime p, that of 0 being 0."""
    return np.array([0, *(pow(residue, -1, p) for residue in range(1, p))])
