"""GraphChallenge against the challenge's definition, worked out here with dense matrices, and its official network."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen._claims import PATH_CONNECTED, PATHS, SYMMETRIC
from topogen.errors import SpecError
from topogen.testing import seeds, specs

PAIRS = {PATH_CONNECTED, SYMMETRIC, PATHS}


def base_layers(neurons):
    """The dense base layers: i is joined to i and to i - 2^j modulo N / 16, and that 16 x 16 times side by side."""
    n = neurons // 16
    small = [np.eye(n, dtype=int) + np.roll(np.eye(n, dtype=int), -(2**j), axis=1) for j in range(n.bit_length() - 1)]
    return [np.kron(np.ones((16, 16), dtype=int), layer) for layer in small]


def product(layers):
    total = np.eye(layers[0].shape[0], dtype=object)
    for layer in layers:
        total = total @ layer.astype(object)
    return total


@given(specs(tg.GraphChallenge), seeds())
def test_the_rows_of_a_block_are_those_of_the_base_layers_in_one_order(spec, seed):
    net, base = tg.generate(spec, rng=seed), base_layers(spec.neurons)
    assert len(net) == spec.layers
    for start in range(0, spec.layers, len(base)):
        dense = [layer.toarray().astype(int) for layer in net.layers[start : start + len(base)]]
        if spec.row_classes is not None:
            order = list(spec.row_classes[start // len(base)])
            for layer, expected in zip(dense, base, strict=True):
                np.testing.assert_array_equal(layer, expected[order])
        # drawn or given: side by side, the rows of all layers of the block are those of the base, each as often
        ours, theirs = (sorted(map(tuple, np.hstack(layers).tolist())) for layers in (dense, base))
        assert ours == theirs


def test_a_drawn_network_begins_with_the_base_and_goes_on_in_another_order_for_each_block():
    net, base = tg.generate(tg.GraphChallenge(neurons=64, layers=8), rng=0), base_layers(64)
    for k in (0, 1):
        np.testing.assert_array_equal(net[k].toarray().astype(int), base[k])
    assert len({tg.pattern_hash(net[k]) for k in range(0, 8, 2)}) == 4


@given(specs(tg.GraphChallenge), seeds())
def test_paths_are_promised_where_a_block_is_in_order_and_never_wrongly(spec, seed):
    net = tg.generate(spec, rng=seed)
    counts = product([layer.toarray() for layer in net])
    promised = {claim.measure: claim.bound for claim in spec.claims() if claim.measure in PAIRS}
    in_order = tuple(np.arange(spec.neurons) % spec.base_size)
    if spec.row_classes is None or in_order in spec.row_classes:
        expected = 16 ** (spec.block_depth - 1) * 32 ** (spec.layers - spec.block_depth)
        assert (counts == expected).all()
        assert promised == {PATH_CONNECTED: True, SYMMETRIC: True, PATHS: measures.PathCounts(expected, expected)}
    else:
        assert promised == {}
    assert tg.verify(net).holds is True


def test_a_network_with_no_block_in_order_is_not_symmetric():
    order = np.random.default_rng(0).permutation(np.arange(128) % 8)
    net = tg.generate(tg.GraphChallenge(neurons=128, layers=3, row_classes=[order]))
    assert not measures.is_symmetric(net)


def test_a_block_in_order_in_any_place_is_enough():
    rng = np.random.default_rng(0)
    in_order = np.arange(64) % 4
    classes = [rng.permutation(in_order), in_order, rng.permutation(in_order)]
    report = tg.verify(tg.generate(tg.GraphChallenge(neurons=64, layers=6, row_classes=classes)))
    assert report.holds is True
    assert report["paths per pair"].promised == measures.PathCounts(16 * 32**4, 16 * 32**4)


@pytest.mark.parametrize(("neurons", "depth"), [(1024, 6), (4096, 8), (16384, 10), (65536, 12)])
def test_the_sizes_of_the_challenge(neurons, depth):
    spec = tg.GraphChallenge(neurons=neurons, layers=120)
    assert spec.block_depth == depth
    claims = {claim.name: claim.bound for claim in spec.claims()}
    assert sum(claims["connections"]) == 32 * neurons * 120
    assert claims["paths per pair"].min == 2 ** (4 * (depth - 1) + 5 * (120 - depth))
    layer = spec.layer(depth - 1)
    assert set(np.diff(layer.indptr)) == set(np.bincount(layer.indices)) == {32}


def test_one_block_is_the_radix_net_and_is_not_random():
    spec = tg.GraphChallenge(neurons=1024, layers=6)
    assert not spec.is_random
    assert tg.generate(spec) == tg.generate(tg.RadixNet(systems=[[2] * 6], widths=[16] * 7))


def test_the_official_network_has_2_to_the_590_paths_for_every_pair(data_dir):
    packed = np.load(data_dir / "graphchallenge" / "graphchallenge_1024_l120.npz", allow_pickle=False)
    spec = tg.GraphChallenge(neurons=1024, layers=120, row_classes=packed["rowclass"])
    report = tg.verify(tg.generate(spec))
    assert report.holds is True
    assert report["symmetric"].measured is True
    assert report["paths per pair"].measured == measures.PathCounts(2**590, 2**590)
    moved = tg.generate(spec).layers[:]
    moved[77] = tg.as_pattern(np.roll(moved[77].toarray(), 1, axis=1) | moved[77].toarray())
    assert tg.verify(moved, claims=spec.claims()).holds is False


IN_ORDER = [i % 2 for i in range(32)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"neurons": 1000, "layers": 6},
            "The 'neurons' parameter of GraphChallenge must be 16 * 2^d with d >= 1. Got 1000. The nearest is 1024.",
        ),
        (
            {"neurons": 16, "layers": 6},
            "The 'neurons' parameter of GraphChallenge must be 16 * 2^d with d >= 1. Got 16. The nearest is 32.",
        ),
        (
            {"neurons": 5000, "layers": 6},
            "The 'neurons' parameter of GraphChallenge must be 16 * 2^d with d >= 1. Got 5000. The nearest is 4096.",
        ),
        ({"neurons": 64.0, "layers": 6}, "The 'neurons' parameter of GraphChallenge must be an int >= 1. Got 64.0."),
        ({"neurons": 1024, "layers": 0}, "The 'layers' parameter of GraphChallenge must be an int >= 1. Got 0."),
        (
            {"neurons": 1024, "layers": 100},
            "The 'layers' parameter of GraphChallenge must be a multiple of 6, the depth of the base network of 1024 "
            "neurons. Got 100. The nearest is 102.",
        ),
        (
            {"neurons": 1024, "layers": 2},
            "The 'layers' parameter of GraphChallenge must be a multiple of 6, the depth of the base network of 1024 "
            "neurons. Got 2. The nearest is 6.",
        ),
        (
            {"neurons": 32, "layers": 2, "row_classes": [IN_ORDER]},
            "The 'row_classes' parameter of GraphChallenge must be ints of shape (2, 32), a row for each block of 1 "
            "layers. Got an array of shape (1, 32) and dtype int64.",
        ),
        (
            {"neurons": 32, "layers": 1, "row_classes": [[0.0, 1.0] * 16]},
            "The 'row_classes' parameter of GraphChallenge must be ints of shape (1, 32), a row for each block of 1 "
            "layers. Got an array of shape (1, 32) and dtype float64.",
        ),
        (
            {"neurons": 32, "layers": 2, "row_classes": [IN_ORDER, IN_ORDER[1:]]},
            "The 'row_classes' parameter of GraphChallenge must be ints of shape (2, 32), a row for each block of 1 "
            "layers. Got rows of different lengths or no array.",
        ),
        (
            {"neurons": 32, "layers": 1, "row_classes": [[2, *IN_ORDER[1:]]]},
            "The 'row_classes[0][0]' parameter of GraphChallenge must be an int in [0, 1]. Got 2.",
        ),
        (
            {"neurons": 32, "layers": 2, "row_classes": [IN_ORDER, [-1, *IN_ORDER[1:]]]},
            "The 'row_classes[1][0]' parameter of GraphChallenge must be an int in [0, 1]. Got -1.",
        ),
        (
            {"neurons": 32, "layers": 2, "row_classes": [IN_ORDER, [1, *IN_ORDER[1:]]]},
            "The 'row_classes' parameter of GraphChallenge must hold every class 16 times in every block. Got class 0 "
            "15 times in row_classes[1].",
        ),
    ],
)
def test_impossible_networks_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.GraphChallenge(**arguments)


def test_row_classes_are_kept_as_nested_tuples_of_ints():
    array = np.tile(np.arange(4, dtype=np.uint8), (2, 16))
    spec = tg.GraphChallenge(neurons=64, layers=4, row_classes=array)
    assert spec == tg.GraphChallenge(neurons=64, layers=4, row_classes=[[0, 1, 2, 3] * 16] * 2)
    assert type(spec.row_classes[0]) is tuple
    assert type(spec.row_classes[0][0]) is int
    assert tg.spec_from_text(repr(spec)) == spec


def test_a_network_larger_than_memory_is_described_and_refused_before_it_is_built():
    spec = tg.GraphChallenge(neurons=2**44, layers=40)
    assert len(spec.claims()) == 8
    with pytest.raises(SpecError, match="must describe something that fits in memory"):
        tg.generate(spec, rng=0, lazy=True)[0]
