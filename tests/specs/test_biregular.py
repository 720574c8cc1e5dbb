"""RandomBiregular: exact degrees on both sides wherever they exist, and sentences where they do not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import GenerationError, SpecError
from topogen.measures import is_ramanujan, ramanujan_bound, ramanujan_ratios, second_singular_value
from topogen.specs import _stubs
from topogen.testing import seeds, specs


@given(specs(tg.RandomBiregular), seeds())
def test_degrees_are_exact(spec, seed):
    net = tg.generate(spec, rng=seed)
    for layer, fan_in in zip(net, spec.fan_ins, strict=True):
        dense = layer.toarray()
        assert (dense.sum(axis=0) == fan_in).all()
        assert len(set(dense.sum(axis=1).tolist())) == 1
        assert layer.nnz == dense.sum()
    assert tg.verify(net).holds is True


@pytest.mark.parametrize(("sizes", "fan_in"), [([784, 294], 8), ([300, 100], 9), ([512, 512], 256), ([1000, 1000], 6)])
def test_published_sizes(sizes, fan_in):
    report = tg.verify(tg.generate(tg.RandomBiregular(sizes=sizes, fan_in=fan_in), rng=1))
    assert report.holds is True
    assert str(report["fan-in"].measured[0]) == str(fan_in)


def test_one_fan_in_for_all_layers_or_one_a_layer():
    one = tg.RandomBiregular(sizes=[6, 6, 6], fan_in=2)
    each = tg.RandomBiregular(sizes=[6, 6, 6], fan_in=[2, 2])
    assert one.fan_ins == each.fan_ins == (2, 2)
    assert tg.generate(one, rng=3) == tg.generate(each, rng=3)


def refusal(**arguments):
    """The sentence with which RandomBiregular refuses the arguments, or None."""
    try:
        tg.RandomBiregular(**arguments)
    except SpecError as error:
        return str(error)
    return None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_feasible_or_refused_with_a_neighbour_that_is_nearest(n_in, n_out, fan_in):
    fits = [d for d in range(1, n_in + 1) if n_out * d % n_in == 0]
    sentence = refusal(sizes=[n_in, n_out], fan_in=fan_in)
    if fan_in in fits:
        assert sentence is None
    elif fan_in > n_in:
        assert sentence.endswith(f" must be an int in [1, {n_in}]. Got {fan_in}.")
    else:
        nearest = int(re.search(r"; the nearest that fits is (\d+)\.$", sentence)[1])
        assert nearest in fits
        assert abs(nearest - fan_in) == min(abs(d - fan_in) for d in fits)


@pytest.mark.parametrize(
    ("fan_in", "sentence"),
    [
        (900, "The 'fan_in' parameter of RandomBiregular (layer 0, 784 x 300) must be an int in [1, 784]. Got 900."),
        (
            8,
            "The 'fan_in' parameter of RandomBiregular must give every input of layer 0 a whole fan_out: "
            "n_out * fan_in / n_in = 300 * 8 / 784 = 3.06122. Got 8; the nearest that fits is 196.",
        ),
        (
            [196, 7],
            "The 'fan_in[1]' parameter of RandomBiregular must give every input of layer 1 a whole fan_out: "
            "n_out * fan_in / n_in = 100 * 7 / 300 = 2.33333. Got 7; the nearest that fits is 6.",
        ),
        *[
            (fan_in, f"The 'fan_in' parameter of RandomBiregular must be an int >= 1. Got {fan_in!r}.")
            for fan_in in (0, -3, 2.0, float("nan"), True)
        ],
        *[
            (
                fan_in,
                "The 'fan_in' parameter of RandomBiregular must be an int or a sequence of 2 ints, one a layer. Got "
                f"{fan_in!r}.",
            )
            for fan_in in (None, "8", [8], [1, 2, 3])
        ],
        ([196, 6.0], "The 'fan_in[1]' parameter of RandomBiregular must be an int >= 1. Got 6.0."),
    ],
)
def test_impossible_degrees_are_refused(fan_in, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.RandomBiregular(sizes=[784, 300, 100], fan_in=fan_in)


def test_the_bound_on_rounds_is_an_error_with_the_number_left(monkeypatch):
    monkeypatch.setattr(_stubs, "_MAX_ROUNDS", 1)
    with pytest.raises(
        GenerationError, match=r"^No simple graph was found .* \d+ double connections are left after 1 "
    ):
        tg.generate(tg.RandomBiregular(sizes=[40, 40], fan_in=20), rng=0)


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (tg.RandomBiregular(sizes=[20, 30, 10], fan_in=[4, 3]), ["2c1e74ceeaffec98", "86110c49b318a70e"]),
        (tg.RandomBiregular(sizes=[12, 8], fan_in=9), ["4e9d9102fa234094"]),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize("seed", range(8))
def test_asked_to_be_ramanujan_it_is(seed):
    spec = tg.RandomBiregular(sizes=[60, 40, 40], fan_in=[6, 4], within=1)
    net = tg.generate(spec, rng=seed)
    assert is_ramanujan(net)
    report = tg.verify(net)
    assert report.holds is True
    assert report["sigma_2 / Ramanujan bound"].promised == 1


def test_draws_that_miss_are_rejected_and_the_first_that_hits_is_kept():
    """With the bound at the third best of five draws, the first of those three must come back."""
    sizes, fan_in = (30, 20), 6
    places = set()
    for seed in range(8):
        root = np.random.SeedSequence(seed)
        draws = [_stubs.biregular(*sizes, fan_in, tg.stream(root, "layer", 0, "attempt", t)) for t in range(5)]
        ratios = [ramanujan_ratios(draw)[0] for draw in draws]
        limit = sorted(ratios)[2]
        first = next(t for t, ratio in enumerate(ratios) if ratio <= limit)
        kept = tg.generate(tg.RandomBiregular(sizes=sizes, fan_in=fan_in, within=limit), rng=root)
        assert kept == tg.Topology([draws[first]])
        places.add(first)
    assert len(places) > 1


def test_too_few_tries_are_an_error_with_the_best_value_seen():
    spec = tg.RandomBiregular(sizes=[30, 20], fan_in=6, within=0.7, max_tries=5)
    seed = tg.generate(tg.RandomBiregular(sizes=[30, 20], fan_in=6), rng=3).seed
    draws = [_stubs.biregular(30, 20, 6, tg.stream(seed, "layer", 0, "attempt", t)) for t in range(5)]
    best = min(second_singular_value(draw) for draw in draws) / ramanujan_bound(4, 6)
    sentence = (
        "No draw of layer 0 of RandomBiregular, 30 x 20 with fan-in 6, had a second singular value within 0.7 times "
        f"the Ramanujan bound in 5 tries; the best had {best:.6g} times."
    )
    with pytest.raises(GenerationError, match=f"^{re.escape(sentence)}$"):
        tg.generate(spec, rng=3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"within": 0.4},
            "The 'within' parameter of RandomBiregular must be at least 0.5: no layer 0, 7 x 7 with fan-out 3 and "
            "fan-in 3, has a second singular value below 1.414, and the bound is 2.828. Got 0.4.",
        ),
        (
            {"fan_in": 1, "within": 3},
            "The 'within' parameter of RandomBiregular must be None, where fan-in and fan-out are 1: no layer 0, 7 x 7 "
            "with fan-out 1 and fan-in 1, has a second singular value below 1, and the bound is 0. Got 3.",
        ),
        ({"within": 0}, "The 'within' parameter of RandomBiregular must be a finite number in (0, inf). Got 0."),
        ({"within": "1"}, "The 'within' parameter of RandomBiregular must be a finite number in (0, inf). Got '1'."),
        (
            {"within": 1, "max_tries": 0},
            "The 'max_tries' parameter of RandomBiregular must be an int >= 1. Got 0.",
        ),
        ({"max_tries": 9}, "The 'max_tries' parameter of RandomBiregular must be given with 'within' only. Got 9."),
    ],
)
def test_impossible_bounds_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.RandomBiregular(**{"sizes": [7, 7], "fan_in": 3, **arguments})


def test_the_least_bound_is_that_of_a_projective_plane_and_not_refused():
    assert tg.RandomBiregular(sizes=[7, 7], fan_in=3, within=0.5).max_tries == 50


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "fan_in", "n_seeds"), [((784, 294), 8, 100), ((4096, 1024), 32, 20)])
def test_every_draw_is_within_one_percent_of_the_bound(sizes, fan_in, n_seeds):
    spec = tg.RandomBiregular(sizes=sizes, fan_in=fan_in)
    ratios = [ramanujan_ratios(tg.generate(spec, rng=seed))[0] for seed in range(n_seeds)]
    assert max(ratios) <= 1.01


@pytest.mark.slow
def test_all_of_100_seeds_are_ramanujan_when_asked_to_be():
    spec = tg.RandomBiregular(sizes=[784, 294], fan_in=8, within=1, max_tries=50)
    assert all(is_ramanujan(tg.generate(spec, rng=seed)) for seed in range(100))
