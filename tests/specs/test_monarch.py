"""Monarch supports against the matrix product that defines them, and against butterflies and RadiX-Nets."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import specs


def transposition(p, q):
    """The permutation matrix that sends index a q + c to c p + a: reads a p x q array by columns."""
    matrix = np.zeros((p * q, p * q), dtype=int)
    for a in range(p):
        for c in range(q):
            matrix[a * q + c, c * p + a] = 1
    return matrix


@pytest.mark.parametrize(("p", "q"), [(2, 2), (3, 3), (2, 5), (4, 3), (6, 2)])
def test_two_radices_are_the_factors_of_a_monarch_matrix(p, q):
    right, left = tg.generate(tg.Monarch(radices=[q, p]))
    np.testing.assert_array_equal(right.toarray(), np.kron(np.eye(p, dtype=int), np.ones((q, q), dtype=int)))
    transpose = transposition(p, q)
    blocks = np.kron(np.eye(q, dtype=int), np.ones((p, p), dtype=int))
    np.testing.assert_array_equal(left.toarray(), transpose @ blocks @ transpose.T)
    assert (right.toarray().astype(int) @ left.toarray().astype(int) == 1).all()


@given(specs(tg.Monarch))
def test_one_path_joins_every_pair(spec):
    product = np.eye(spec.n, dtype=int)
    for layer in tg.generate(spec):
        product = product @ layer.toarray()
    assert (product == 1).all()


@given(specs(tg.Monarch))
def test_layer_k_changes_digit_k_at_most(spec):
    digits = np.array(np.unravel_index(np.arange(spec.n), spec.radices[::-1]))[::-1]  # first digit of place value 1
    differ = digits[:, :, np.newaxis] != digits[:, np.newaxis, :]
    for k, layer in enumerate(tg.generate(spec)):
        np.testing.assert_array_equal(layer.toarray(), ~np.delete(differ, k, axis=0).any(axis=0))


def test_twos_are_the_butterfly():
    monarch, butterfly = tg.generate(tg.Monarch(radices=[2] * 5)), tg.generate(tg.Butterfly(n=32))
    assert [tg.pattern_hash(layer) for layer in monarch] == [tg.pattern_hash(layer) for layer in butterfly]


def test_the_radix_net_of_the_same_radices_promises_the_same():
    monarch, radix = tg.Monarch(radices=[2, 3, 4]).claims(), tg.RadixNet(systems=[[2, 3, 4]]).claims()
    assert {claim.name: claim.bound for claim in monarch} == {claim.name: claim.bound for claim in radix}


@pytest.mark.parametrize(
    ("radices", "sentence"),
    [
        *[
            (r, f"The 'radices' parameter of Monarch must be a sequence of at least 1 ints >= 2. Got {r!r}.")
            for r in ([], 4, "22", None)
        ],
        ([2, 1], "The 'radices[1]' parameter of Monarch must be an int >= 2. Got 1."),
        ([2.0], "The 'radices[0]' parameter of Monarch must be an int >= 2. Got 2.0."),
    ],
)
def test_impossible_radices_are_refused(radices, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Monarch(radices=radices)
