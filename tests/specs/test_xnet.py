"""XNet by both rules and ConstantFanIn: the degrees each promises, and nothing that it does not."""

from __future__ import annotations

import re
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen.errors import SpecError
from topogen.specs import _xnet
from topogen.testing import seeds, specs


def degrees(layer):
    """Fan-outs and fan-ins of a layer, counted on the dense matrix."""
    dense = layer.toarray()
    return dense.sum(axis=1), dense.sum(axis=0)


@pytest.mark.parametrize(("n_in", "n_out"), list(product(range(1, 8), repeat=2)))
def test_the_papers_rule_fixes_the_outputs_and_evens_the_inputs(n_in, n_out):
    for degree in range(1, n_in + 1):
        (layer,) = tg.generate(tg.XNet(sizes=[n_in, n_out], degree=degree), rng=degree)
        fan_out, fan_in = degrees(layer)
        assert (fan_in == degree).all()
        assert fan_out.max() - fan_out.min() <= 1
        assert layer.nnz == layer.toarray().sum() == degree * n_out


def test_a_square_layer_of_the_paper_is_regular_on_both_sides():
    (layer,) = tg.generate(tg.XNet(sizes=[40, 40], degree=7), rng=0)
    assert all((side == 7).all() for side in degrees(layer))


@given(specs(tg.XNet), seeds())
def test_the_programs_rule_fixes_the_smaller_side(spec, seed):
    for layer, degree in zip(tg.generate(spec, rng=seed), spec.degrees, strict=True):
        fan_out, fan_in = degrees(layer)
        if spec.rule == "code":
            assert ((fan_in if layer.shape[1] < layer.shape[0] else fan_out) == degree).all()


def test_the_programs_rule_leaves_the_other_side_free():
    narrow, wide = tg.generate(tg.XNet(sizes=[60, 40, 60], degree=5, rule="code"), rng=0)
    assert len(set(degrees(narrow)[0].tolist())) > 3
    assert len(set(degrees(wide)[1].tolist())) > 3


def test_each_rule_has_its_own_limits():
    assert tg.XNet(sizes=[4, 6], degree=6, rule="code").degrees == (6,)
    assert tg.XNet(sizes=[6, 4], degree=6, rule="code").degrees == (6,)
    with pytest.raises(SpecError, match=r"must be an int in \[1, 4\]\. Got 6\.$"):
        tg.XNet(sizes=[4, 6], degree=6)


def test_the_claim_about_the_smaller_side_sees_one_moved_connection():
    spec = tg.XNet(sizes=[6, 4, 5], degree=2, rule="code")
    layers = [layer.toarray() for layer in tg.generate(spec, rng=0)]
    row, column = np.argwhere(layers[0])[0]
    layers[0][row, column] = False
    layers[0][np.argwhere(~layers[0][:, (column + 1) % 4])[0][0], (column + 1) % 4] = True
    report = tg.verify(layers, claims=spec.claims())
    assert report["connections"].holds is True
    assert report["degree on the smaller side"].holds is False


def test_inputs_with_one_connection_more_are_drawn():
    fan_outs = [tuple(degrees(_xnet._balanced(5, 4, 2, np.random.default_rng(s)))[0].tolist()) for s in range(200)]
    assert {sum(fan_out) for fan_out in fan_outs} == {8}
    assert len(set(fan_outs)) == 10  # which three of the five have two


def test_dead_neurons_are_promised_where_there_are_connections_enough():
    def names(**arguments):
        return {claim.name for claim in tg.XNet(**arguments).claims()}

    assert "dead neurons" in names(sizes=[6, 3], degree=2)
    assert "dead neurons" not in names(sizes=[6, 3], degree=1)
    assert "dead neurons" not in names(sizes=[3, 6], degree=2, rule="code")


@given(specs(tg.ConstantFanIn), seeds())
def test_constant_fan_in(spec, seed):
    for layer, fan_in in zip(tg.generate(spec, rng=seed), spec.fan_ins, strict=True):
        assert (degrees(layer)[1] == fan_in).all()


def test_fan_outs_of_constant_fan_in_are_binomial():
    (layer,) = tg.generate(tg.ConstantFanIn(sizes=[200, 4000], fan_in=20), rng=0)
    fan_out, _ = degrees(layer)
    assert fan_out.mean() == 400
    assert 0.7 < fan_out.var() / (4000 * 0.1 * 0.9) < 1.3  # each output takes an input with probability 1/10


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (tg.XNet(sizes=[20, 30, 10], degree=[4, 3]), ["2c1e74ceeaffec98", "86110c49b318a70e"]),
        (tg.XNet(sizes=[20, 30, 10], degree=[4, 3], rule="code"), ["c11a8d17ae3aca8b", "e733c27266b73bd9"]),
        (tg.XNet(sizes=[9, 7], degree=6), ["c93e76d6b4ac03ec"]),
        (tg.ConstantFanIn(sizes=[20, 30, 10], fan_in=[4, 25]), ["1457dbabe282d6a3", "98b715de1c3e360f"]),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize(("family", "name"), [(tg.XNet, "degree"), (tg.ConstantFanIn, "fan_in")])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (9, "The '{name}' parameter of {family} (layer 1, 8 x 3) must be an int in [1, 8]. Got 9."),
        ([4, 9], "The '{name}[1]' parameter of {family} (layer 1, 8 x 3) must be an int in [1, 8]. Got 9."),
        *[(v, f"The '{{name}}' parameter of {{family}} must be an int >= 1. Got {v!r}.") for v in (0, -1, 2.0, True)],
        *[
            (
                v,
                "The '{name}' parameter of {family} must be an int or a sequence of 2 ints, one a layer. "
                f"Got {v!r}.",
            )
            for v in (None, "8", [4], [1, 2, 3])
        ],
        ([1, 0], "The '{name}[1]' parameter of {family} must be an int >= 1. Got 0."),
    ],
)
def test_impossible_degrees_are_refused(family, name, value, sentence):
    expected = sentence.format(name=name, family=family.__name__)
    with pytest.raises(SpecError, match=f"^{re.escape(expected)}$"):
        family(sizes=[10, 8, 3], **{name: value})


def test_an_unknown_rule_is_refused():
    with pytest.raises(SpecError, match=r"^The 'rule' parameter of XNet must be 'paper' or 'code'\. Got 'mine'\.$"):
        tg.XNet(sizes=[4, 4], degree=2, rule="mine")


def test_published_expanders_connect_a_chain():
    # degree 8 on 64 neurons: three layers reach every output from every input (the theorem says O(log n))
    net = tg.generate(tg.XNet(sizes=[64] * 4, degree=8), rng=1)
    assert tg.measures.is_path_connected(net)
    assert [tg.measures.n_components(layer) for layer in net] == [1, 1, 1]
    assert all(a == b == 64 for a, b in pairwise(net.sizes))
