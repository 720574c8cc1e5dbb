"""Dense: all connections, and what follows from it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given

import topogen as tg
from topogen import checks
from topogen.errors import SpecError
from topogen.testing import specs


@given(specs(tg.Dense))
def test_every_connection_is_there(spec):
    net = tg.generate(spec)
    assert all(layer.toarray().all() for layer in net)
    assert net.density == 1
    assert tg.verify(net).holds is True


def test_paths_are_the_product_of_the_hidden_sizes():
    report = tg.verify(tg.generate(tg.Dense(sizes=[5, 4, 3, 2])))
    assert report["paths per pair"].promised == report["paths per pair"].measured == tg.measures.PathCounts(12, 12)
    assert report["components"].holds is True


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        *[
            (sizes, f"The 'sizes' parameter of Dense must be a sequence of at least 2 ints >= 1. Got {sizes!r}.")
            for sizes in (3, "34", None, [3], [], {3: 4})
        ],
        ([3, -4], "The 'sizes[1]' parameter of Dense must be an int >= 1. Got -4."),
        ([0, 4], "The 'sizes[0]' parameter of Dense must be an int >= 1. Got 0."),
        ([3, 4.0], "The 'sizes[1]' parameter of Dense must be an int >= 1. Got 4.0."),
        ([3, float("nan")], "The 'sizes[1]' parameter of Dense must be an int >= 1. Got nan."),
    ],
)
def test_impossible_sizes_are_refused(sizes, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Dense(sizes=sizes)


def test_what_does_not_fit_in_memory_is_refused_before_anything_is_built(monkeypatch):
    spec = tg.Dense(sizes=[10**6, 10**6])
    monkeypatch.setattr(checks, "_available_bytes", lambda: 2**36)
    # 10^12 connections of 8 + 1 bytes (int32 does not reach that far), 10^6 + 1 row pointers of 8
    with pytest.raises(SpecError, match=r"needs 9,000,008,000,008 bytes and 68,719,476,736 are available\.$"):
        tg.generate(spec)
