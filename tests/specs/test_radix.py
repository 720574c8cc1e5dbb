"""RadixNet against its definition, worked out here with rolled identities, and against counts made by brute force."""

from __future__ import annotations

import hashlib
import json
import math
import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen._claims import PATH_CONNECTED, PATHS, SYMMETRIC
from topogen.errors import SpecError
from topogen.testing import specs

GRAPH_CHALLENGE = {"systems": [[2] * 6], "widths": [16] * 7}


def dense_definition(systems, widths=None, shift=-1, order="reference"):
    """The layers as the papers define them: sums of powers of the cyclic shift, expanded by Kronecker products."""
    n = math.prod(systems[0])
    layers = []
    for system in systems:
        place = 1
        for radix in system:
            layers.append(sum(np.roll(np.eye(n, dtype=int), shift * j * place, axis=1) for j in range(radix)))
            place *= radix
    ones = [np.ones(pair, dtype=int) for pair in pairwise(widths or [1] * (len(layers) + 1))]
    if order == "blocks":
        return [np.kron(layer, block) for layer, block in zip(layers, ones, strict=True)]
    return [np.kron(block, layer) for layer, block in zip(layers, ones, strict=True)]


def paths_walked(layers):
    """The number of paths of every pair, each path walked by itself."""
    successors = [[np.flatnonzero(row).tolist() for row in layer.toarray()] for layer in layers]
    counts = np.zeros((layers[0].shape[0], layers[-1].shape[1]), dtype=int)
    for start in range(counts.shape[0]):
        ends = [start]
        for successor in successors:
            ends = [output for neuron in ends for output in successor[neuron]]
        counts[start] = np.bincount(ends, minlength=counts.shape[1])
    return counts


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ({"systems": [[2, 2, 2]]}, 1),
        ({"systems": [[3, 3, 4], [4, 3, 3]]}, 36),
        ({"systems": [[10, 10]], "widths": [8, 3, 1]}, 3),
        ({"systems": [[2, 3, 5], [5, 3, 2], [3]]}, 90),
    ],
)
def test_published_nets_have_the_layers_of_the_definition_and_the_paths_that_are_walked(spec, paths):
    net = tg.generate(tg.RadixNet(**spec))
    for layer, definition in zip(net, dense_definition(**spec), strict=True):
        np.testing.assert_array_equal(layer.toarray().astype(int), definition)
    assert (paths_walked(net.layers) == paths).all()
    assert tg.verify(net)["paths per pair"].measured == measures.PathCounts(paths, paths)
    assert tg.verify(net).holds is True


def test_the_base_layers_of_the_graph_challenge():
    net = tg.generate(tg.RadixNet(**GRAPH_CHALLENGE))
    definition = dense_definition(**GRAPH_CHALLENGE)
    for layer, dense in zip(net, definition, strict=True):
        np.testing.assert_array_equal(layer.toarray().astype(int), dense)
    # no entry exceeds 32^6 = 2^30, the product of the degrees, and float64 is exact up to 2^53
    assert (np.linalg.multi_dot([dense.astype(np.float64) for dense in definition]) == 2.0**20).all()
    report = tg.verify(net)
    assert report.holds is True
    assert report["paths per pair"].measured == measures.PathCounts(2**20, 2**20)


def test_the_official_graph_challenge_files_byte_by_byte(data_dir):
    listed = json.loads((data_dir / "graphchallenge" / "graphchallenge_1024_sha256.json").read_text())
    for k, layer in enumerate(tg.generate(tg.RadixNet(**GRAPH_CHALLENGE)), 1):
        columns = layer.T.tocsr()  # the files run down the columns
        lines = [
            f"{row + 1}\t{column + 1}\t{1 / 16:e}\n"
            for column, (start, stop) in enumerate(pairwise(columns.indptr))
            for row in columns.indices[start:stop]
        ]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        assert digest == listed["official_tsv_sha256"][f"n1024-l{k}.tsv"]


@given(specs(tg.RadixNet))
def test_any_net_is_its_definition(spec):
    definition = dense_definition(spec.systems, spec.widths, spec.shift, spec.order)
    for layer, dense in zip(tg.generate(spec), definition, strict=True):
        np.testing.assert_array_equal(layer.toarray().astype(int), dense)


@given(specs(tg.RadixNet))
def test_everything_a_net_claims_is_counted(spec):
    layers = [layer.toarray().astype(object) for layer in tg.generate(spec)]
    product = np.linalg.multi_dot(layers) if len(layers) > 1 else layers[0]
    claimed = {claim.measure: claim.bound for claim in spec.claims()}
    assert claimed[PATHS] == measures.PathCounts(int(product.min()), int(product.max()))
    assert claimed[PATH_CONNECTED] is True
    assert claimed[SYMMETRIC] is True
    stored, possible = sum(layer.sum() for layer in layers), sum(layer.size for layer in layers)
    report = tg.verify(tg.generate(spec))
    assert report["density"].promised == Fraction(int(stored), possible)
    assert report.holds is True


def test_density_is_the_published_formula():
    spec = tg.RadixNet(systems=[[2, 3, 5], [5, 3, 2], [3]], widths=[1, 2, 3, 1, 2, 1, 1, 4])
    weights = [a * b for a, b in pairwise(spec.widths)]
    formula = Fraction(sum(r * w for r, w in zip(spec.radices, weights, strict=True)), 30 * sum(weights))
    assert measures.exact_density(tg.generate(spec)) == formula


def test_a_layer_alone_has_as_many_components_as_its_place_value():
    net = tg.generate(tg.RadixNet(systems=[[2] * 6]))
    assert [measures.n_components(layer) for layer in net] == [1, 2, 4, 8, 16, 32]


@given(specs(tg.RadixNet))
def test_the_two_shifts_are_one_graph_under_i_to_minus_i(spec):
    n = spec.modulus
    other = tg.RadixNet(systems=spec.systems, widths=spec.widths, shift=-spec.shift)
    mirrored = [np.concatenate([-np.arange(n) % n + copy * n for copy in range(width)]) for width in spec.dense_widths]
    net = tg.generate(tg.RadixNet(systems=spec.systems, widths=spec.widths, shift=spec.shift))
    for k, layer in enumerate(net):
        relabelled = layer.toarray()[np.ix_(mirrored[k], mirrored[k + 1])]
        np.testing.assert_array_equal(tg.generate(other)[k].toarray(), relabelled)


@given(specs(tg.RadixNet))
def test_the_two_orders_are_one_graph_under_relabelling(spec):
    reference, blocks = (
        tg.generate(tg.RadixNet(systems=spec.systems, widths=spec.widths, shift=spec.shift, order=order))
        for order in ("reference", "blocks")
    )
    # neuron i B + b of "blocks" is neuron b N' + i of "reference"
    names = [np.arange(width * spec.modulus).reshape(width, -1).T.ravel() for width in spec.dense_widths]
    for k in range(spec.depth):
        relabelled = reference[k].toarray()[np.ix_(names[k], names[k + 1])]
        np.testing.assert_array_equal(blocks[k].toarray(), relabelled)


def test_order_blocks_has_contiguous_dense_blocks():
    layer = tg.generate(tg.RadixNet(systems=[[2, 3]], widths=[4, 5, 1], order="blocks"))[0]
    blocks = layer.toarray().reshape(6, 4, 6, 5).transpose(0, 2, 1, 3).reshape(36, 20)
    assert np.all(blocks.all(axis=1) == blocks.any(axis=1))
    assert blocks.any(axis=1).sum() == 12


def test_widths_of_one_are_no_widths():
    assert tg.RadixNet(systems=[[2, 2]], widths=[1, 1, 1]) == tg.RadixNet(systems=[[2, 2]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"systems": [[2, 3], [4]]},
            "The product of systems[1], the last one, must divide N', the product of systems[0]: 2 * 3 = 6, 4, and "
            "6 mod 4 = 2. Got [[2, 3], [4]].",
        ),
        (
            {"systems": [[2, 3], [2, 2], [3]]},
            "The product of systems[1] must equal N', the product of systems[0] (only the last system may have a "
            "divisor of it): 2 * 3 = 6, 2 * 2 = 4. Got [[2, 3], [2, 2], [3]].",
        ),
        (
            {"systems": [[2, 3], [3], [6]]},  # a divisor, but not in the last place
            "The product of systems[1] must equal N', the product of systems[0] (only the last system may have a "
            "divisor of it): 2 * 3 = 6, 3. Got [[2, 3], [3], [6]].",
        ),
        ({"systems": [[1, 2]]}, "The 'systems[0][0]' parameter of RadixNet must be an int >= 2. Got 1."),
        ({"systems": [[6], [2, -3]]}, "The 'systems[1][1]' parameter of RadixNet must be an int >= 2. Got -3."),
        ({"systems": [[2.0, 3]]}, "The 'systems[0][0]' parameter of RadixNet must be an int >= 2. Got 2.0."),
        ({"systems": [["2", 3]]}, "The 'systems[0][0]' parameter of RadixNet must be an int >= 2. Got '2'."),
        ({"systems": [[True, 3]]}, "The 'systems[0][0]' parameter of RadixNet must be an int >= 2. Got True."),
        (
            {"systems": [2, 3]},
            "The 'systems[0]' parameter of RadixNet must be a sequence of at least 1 ints >= 2. Got 2.",
        ),
        (
            {"systems": [[]]},
            "The 'systems[0]' parameter of RadixNet must be a sequence of at least 1 ints >= 2. Got [].",
        ),
        *[
            (
                {"systems": systems},
                "The 'systems' parameter of RadixNet must be a sequence of systems, each a sequence of ints >= 2, for "
                f"example [[2, 3], [3, 2]]. Got {systems!r}.",
            )
            for systems in ([], None, 6, "23", {2: 3})
        ],
        (
            {"systems": [[2, 3]], "widths": [1, 1]},
            "The 'widths' parameter of RadixNet must be a sequence of 3 ints, one more than the 2 radices. Got [1, 1].",
        ),
        (
            {"systems": [[2, 3]], "widths": []},
            "The 'widths' parameter of RadixNet must be a sequence of 3 ints, one more than the 2 radices. Got [].",
        ),
        ({"systems": [[2]], "widths": [1, 0]}, "The 'widths[1]' parameter of RadixNet must be an int >= 1. Got 0."),
        ({"systems": [[2]], "widths": [1, 2.0]}, "The 'widths[1]' parameter of RadixNet must be an int >= 1. Got 2.0."),
        ({"systems": [[2]], "widths": 2}, "The 'widths' parameter of RadixNet must be a sequence of ints >= 1. Got 2."),
        ({"systems": [[2]], "shift": 0}, "The 'shift' parameter of RadixNet must be -1 or +1. Got 0."),
        (
            {"systems": [[2]], "order": "W"},
            "The 'order' parameter of RadixNet must be 'reference' or 'blocks'. Got 'W'.",
        ),
    ],
)
def test_impossible_nets_are_refused_with_the_equation(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.RadixNet(**arguments)


@pytest.mark.parametrize("shift", [2, "1", 1.0, True, None])
def test_a_shift_is_an_int(shift):
    with pytest.raises(SpecError, match=rf"^The 'shift' parameter of RadixNet must be .*\. Got {shift!r}\.$"):
        tg.RadixNet(systems=[[2]], shift=shift)


def test_numpy_integers_are_ints():
    spec = tg.RadixNet(systems=np.array([[2, 3]]), widths=np.array([1, 2, 1]), shift=np.int8(1))
    assert spec == tg.RadixNet(systems=[[2, 3]], widths=[1, 2, 1], shift=1)
    assert {type(x) for x in (*spec.systems[0], *spec.widths, spec.shift)} == {int}


def test_a_layer_out_of_range_is_an_index_error():
    with pytest.raises(IndexError, match=r"^RadixNet has layers 0\.\.1\. Got 2\.$"):
        tg.RadixNet(systems=[[2, 3]]).layer(2, None)


REDUCED = tg.RadixNet.from_degrees


def test_the_published_example_of_the_reduced_format():
    spec = REDUCED(sizes=[1000, 2000, 3000, 2000, 1000], fan_out=[20, 30, 20, 10])
    assert spec == tg.RadixNet(systems=[[10, 10, 10], [10]], widths=[1, 2, 3, 2, 1])


@given(specs(tg.RadixNet))
def test_sizes_fan_outs_and_modulus_tell_a_net(spec):
    fan_out = next(claim.bound for claim in spec.claims() if claim.name == "fan-out")
    degrees = [each.min for each in fan_out]
    twin = REDUCED(sizes=spec.sizes, fan_out=degrees, modulus=spec.modulus, shift=spec.shift, order=spec.order)
    assert twin == spec


def test_one_fan_out_stands_for_all_layers():
    base = tg.RadixNet(**GRAPH_CHALLENGE)
    assert REDUCED(sizes=[1024] * 7, fan_out=np.int64(32), modulus=64) == base
    assert REDUCED(sizes=[1024] * 7, fan_out=32) == tg.RadixNet(systems=[[32, 32]] * 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"sizes": [7, 9], "fan_out": 2},
            "The 'sizes' parameter of RadixNet.from_degrees must be a sequence of ints with a common divisor of 2 or "
            "more, which is N'. Got [7, 9].",
        ),
        (
            {"sizes": [8], "fan_out": 2},
            "The 'sizes' parameter of RadixNet.from_degrees must be a sequence of at least 2 ints >= 1. Got [8].",
        ),
        (
            {"sizes": [8, 8], "fan_out": [2, 2]},
            "The 'fan_out' parameter of RadixNet.from_degrees must be an int, or a sequence of 1 ints, one a layer. "
            "Got [2, 2].",
        ),
        (
            {"sizes": [8, 8], "fan_out": True},
            "The 'fan_out[0]' parameter of RadixNet.from_degrees must be an int >= 1. Got True.",
        ),
        (
            {"sizes": [8, 8], "fan_out": 8, "modulus": 3},
            "The 'modulus' parameter of RadixNet.from_degrees must be a divisor of 8, the greatest common divisor of "
            "the sizes. Got 3.",
        ),
        (
            {"sizes": [8, 8], "fan_out": 8, "modulus": 1},
            "The 'modulus' parameter of RadixNet.from_degrees must be an int >= 2. Got 1.",
        ),
        (
            {"sizes": [8, 16], "fan_out": 17},
            "The 'fan_out[0]' parameter of RadixNet.from_degrees must be 2, the width of the neurons that it leads "
            "to, times a radix >= 2 that divides N' = 8: 17 / 2 = 8.5. Got 17; the nearest that fits is 16.",
        ),
        (
            {"sizes": [8, 16], "fan_out": 2},
            "The 'fan_out[0]' parameter of RadixNet.from_degrees must be 2, the width of the neurons that it leads "
            "to, times a radix >= 2 that divides N' = 8: 2 / 2 = 1. Got 2; the nearest that fits is 4.",
        ),
        (
            {"sizes": [12, 12], "fan_out": [5]},
            "The 'fan_out[0]' parameter of RadixNet.from_degrees must be 1, the width of the neurons that it leads "
            "to, times a radix >= 2 that divides N' = 12: 5 / 1 = 5. Got 5; the nearest that fits is 4.",
        ),
        (
            {"sizes": [8, 8, 8], "fan_out": 4},
            "The radices, fan-outs over widths, must come to a product of exactly N' = 8 before a system ends. Got "
            "4 * 4 = 16 with layer 1.",
        ),
        (
            {"sizes": [8, 8], "fan_out": 2},
            "The radices, fan-outs over widths, must come to a product of N' = 8 at least once. Got 2.",
        ),
        (
            {"sizes": [12] * 5, "fan_out": [12, 2, 2, 2]},
            "The radices of the last system, fan-outs over widths, must have a product that divides N' = 12. Got "
            "2 * 2 * 2 = 8, and 12 mod 8 = 4.",
        ),
    ],
)
def test_sizes_and_fan_outs_of_no_net_are_refused_with_the_condition(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        REDUCED(**arguments)
