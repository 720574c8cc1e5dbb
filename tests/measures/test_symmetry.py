"""Shift-invariance against trying out every shift on the dense matrix."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen import measures
from topogen.testing import topologies


def shifts_by_trying_all(layer):
    """The set of all (a, b) with 0 <= a < n_in, 0 <= b < n_out that leave the dense layer as it is."""
    n_in, n_out = layer.shape
    return {
        (a, b)
        for a in range(n_in)
        for b in range(n_out)
        if np.array_equal(np.roll(np.roll(layer, a, axis=0), b, axis=1), layer)
    }


def assert_is_what_trying_all_finds(layer):
    n_in, n_out = layer.shape
    unchanged = shifts_by_trying_all(layer)
    (found,) = measures.shift_invariance(layer)
    assert {type(number) for number in (*found, found.both)} == {int}
    assert found.inputs == min([a for a, _ in unchanged if a], default=n_in)
    assert found.alone == min([b for a, b in unchanged if a == 0 and b], default=n_out)
    assert 0 <= found.outputs < found.alone
    spanned = {
        (s * found.inputs % n_in, (s * found.outputs + r * found.alone) % n_out)
        for s in range(n_in // found.inputs)
        for r in range(n_out // found.alone)
    }
    assert spanned == unchanged
    assert found.both == next(t for t in range(1, n_in * n_out + 1) if (t % n_in, t % n_out) in unchanged)
    assert measures.is_circulant(layer) is ((1 % n_in, 1 % n_out) in unchanged)


@given(topologies(max_layers=1))
def test_anything_agrees_with_trying_all(net):
    assert_is_what_trying_all_finds(net[0].toarray())


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_layers_made_to_be_invariant_agree_with_trying_all(n_in, n_out, data):
    a, b = data.draw(st.integers(0, n_in - 1)), data.draw(st.integers(0, n_out - 1))
    layer = np.zeros((n_in, n_out), bool)
    for i, j in data.draw(st.lists(st.tuples(st.integers(0, n_in - 1), st.integers(0, n_out - 1)), max_size=3)):
        for s in range(n_in * n_out):
            layer[(i + s * a) % n_in, (j + s * b) % n_out] = True
    assert (a, b) in shifts_by_trying_all(layer)
    assert_is_what_trying_all_finds(layer)


@pytest.mark.parametrize("b", range(6))
def test_rows_that_match_in_many_ways(b):
    layer = np.zeros((4, 6), bool)
    for i in range(4):
        layer[i, (b * i + np.array([0, 3])) % 6] = True  # each row repeats itself after 3
    layer[3, 0] |= b == 5
    assert_is_what_trying_all_finds(layer)


@pytest.mark.parametrize("b", [1, 5])
def test_the_shortest_row_may_match_in_ways_in_which_others_do_not(b):
    layer = np.zeros((12, 6), bool)
    for s in range(6):
        layer[2 * s, (b * s + np.array([0, 3])) % 6] = True  # repeats itself after 3
        layer[2 * s + 1, (b * s + np.array([0, 1, 2])) % 6] = True  # does not
    assert measures.shift_invariance(layer) == ((2, b, 6),)
    assert_is_what_trying_all_finds(layer)


@pytest.mark.parametrize("n", [1, 7, 8, 12, 30])
def test_circulant_layers(n):
    layer = sum(np.roll(np.eye(n, dtype=int), t, axis=1) for t in (0, 1, 5))
    assert measures.is_circulant(layer)
    assert measures.shift_invariance(layer)[0].both == 1
    if n > 5:
        layer[2, 3] = 0
        assert not measures.is_circulant(layer)
        assert measures.shift_invariance(layer) == ((n, 0, n),)


def test_a_convolution_tells_its_stride():
    n_out, stride = 12, 3
    layer = np.zeros((n_out * stride, n_out))
    for j in range(n_out):
        layer[(stride * j + np.arange(5)) % len(layer), j] = 1
    assert measures.shift_invariance(layer) == ((stride, 1, n_out),)


def test_radix_nets_are_circulant_and_one_changed_layer_is_noticed():
    spec = tg.RadixNet(systems=[[2, 3, 4], [4, 6]], widths=[1, 2, 3, 1, 2, 1])
    net = tg.generate(spec)
    assert measures.is_circulant(net)
    assert [shifts.both for shifts in measures.shift_invariance(net)] == [1] * 5
    blocks = tg.generate(tg.RadixNet(systems=[[2, 3, 4], [4, 6]], widths=[1, 2, 3, 1, 2, 1], order="blocks"))
    assert not measures.is_circulant(blocks)
    found = measures.shift_invariance(blocks)
    assert [shifts.inputs for shifts in found[:-1]] == [width for width, _ in pairwise(spec.widths)][:-1]
    layers = [layer.toarray() for layer in net]
    layers[3][0, 0] ^= True
    assert not measures.is_circulant(layers)


def test_nothing_and_everything_are_left_by_every_shift():
    for layer in (np.zeros((4, 6)), np.ones((4, 6))):
        assert measures.shift_invariance(layer) == ((1, 0, 1),)
        assert measures.is_circulant(layer)
