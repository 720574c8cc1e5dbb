"""Power-law fits against trying out every exponent, and on samples whose law is known since numpy drew them."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import special

import topogen as tg
from topogen import measures
from topogen.measures import _tail


def layer_of(fan_outs):
    """A layer whose inputs have these fan-outs."""
    fan_outs = np.asarray(fan_outs)
    indptr = np.concatenate(([0], np.cumsum(fan_outs)))
    indices = np.concatenate([np.arange(n) for n in fan_outs])
    return sp.csr_array((np.ones(len(indices), bool), indices, indptr), shape=(len(fan_outs), fan_outs.max()))


def power_law_from(minimum, exponent, n, rng):
    """n numbers of the power law from `minimum` on: numpy's draws of that from 1 on, the smaller ones left out."""
    drawn = rng.zipf(exponent, 400 * n if minimum > 1 else n)
    return drawn[drawn >= minimum][:n]


def tail_of(fan_outs, **options):
    return measures.degree_tail(layer_of(fan_outs), of="fan_out", **{"rng": 0, "samples": 1, **options})


def zeta_by_adding(alpha, start):
    """The Hurwitz zeta function: 2000 terms and the integral of the rest, right to 1e-8."""
    end = start + 2000
    return sum(d**-alpha for d in range(start, end)) + (end - 0.5) ** (1 - alpha) / (alpha - 1)


def fit_by_trying(values, exponents):
    """The law of CSN's recipe, by a loop over all exponents and all integers: (distance, minimum, exponent)."""
    values, best = np.sort(values), (math.inf, 0, 0.0)
    for minimum in np.unique(values)[:-1].tolist():
        tail = values[values >= minimum]
        alpha = exponents[np.argmin(np.log(zeta_by_adding(exponents, minimum)) + exponents * np.log(tail).mean())]
        law, whole, distance = 0.0, zeta_by_adding(alpha, minimum), 0.0
        for d in range(minimum, int(tail[-1]) + 1):
            law += d**-alpha / whole
            distance = max(distance, abs(np.mean(tail <= d) - law))
        best = min(best, (distance, minimum, alpha))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_the_best_of_all_that_are_tried(seed):
    rng = np.random.default_rng(seed)
    values = np.minimum(rng.zipf(2.6, 60) + rng.integers(0, 3, 60), 60)
    distance, minimum, exponent = fit_by_trying(values, np.arange(1.02, 25, 0.002))
    found = tail_of(values)
    assert found.minimum == minimum
    assert found.exponent == pytest.approx(exponent, abs=0.0011)  # the grid's half width
    assert found.distance == pytest.approx(distance, abs=0.001)
    assert found.n_tail == np.count_nonzero(values >= minimum)
    assert [type(number) for number in found] == [float, int, float, int, float]


@pytest.mark.parametrize("exponent", [2.2, 2.5, 3.0, 3.5])
@pytest.mark.parametrize("seed", range(3))
def test_known_exponents_are_recovered(exponent, seed):
    found = tail_of(power_law_from(1, exponent, 10_000, np.random.default_rng(seed)))
    # the standard error of the exponent is (alpha - 1) / sqrt(n_tail) (Clauset, Shalizi, Newman: equation 3.2)
    assert found.exponent == pytest.approx(exponent, abs=4 * (exponent - 1) / math.sqrt(found.n_tail))
    assert found.minimum <= 3


@pytest.mark.parametrize("seed", range(3))
def test_a_known_minimum_is_recovered(seed):
    rng = np.random.default_rng(seed)
    tail = power_law_from(10, 2.5, 3000, rng)
    assert len(tail) == 3000
    found = tail_of(np.concatenate([tail, rng.integers(1, 10, 3000)]))
    assert 9 <= found.minimum <= 20  # behind the true one the law is as true
    assert found.exponent == pytest.approx(2.5, abs=4 * 1.5 / math.sqrt(found.n_tail))


def test_p_values_of_true_power_laws_are_spread():
    rng = np.random.default_rng(7)
    found = [tail_of(power_law_from(1, 2.5, 300, rng), rng=i, samples=40).p_value for i in range(20)]
    assert 0.3 < np.mean(found) < 0.75
    assert min(found) < 0.3
    assert max(found) > 0.7


@pytest.mark.parametrize("highest", [4, 12, 30])
def test_even_degrees_are_ruled_out(highest):
    values = np.random.default_rng(highest).integers(1, highest, 2000, endpoint=True)
    assert tail_of(values, samples=40).p_value == 0


@pytest.mark.parametrize("seed", range(8))
def test_geometric_degrees_are_ruled_out_or_fitted_in_their_far_tail_only(seed):
    found = tail_of(np.random.default_rng(seed).geometric(0.1, 2000), samples=20)
    assert found.p_value <= 0.1 or found.n_tail < 0.2 * 2000
    true = tail_of(power_law_from(1, 2.5, 2000, np.random.default_rng(seed)))
    assert true.n_tail > 0.2 * 2000


@pytest.mark.parametrize(("alpha", "minimum"), [(1.5, 1), (2.5, 1), (2.5, 10), (4.0, 3)])
def test_synthetic_values_follow_the_law(alpha, minimum):
    n = 200_000
    drawn = _tail._power_law(alpha, minimum, n, np.random.default_rng(1))
    assert drawn.min() == minimum
    assert (drawn == np.floor(drawn)).all()
    whole = zeta_by_adding(alpha, minimum)
    for d in [minimum, minimum + 1, minimum + 2, minimum + 9, 16_383, 16_384, 20_000, 10**6]:
        share = zeta_by_adding(alpha, d) / whole  # of the values that are at least d
        assert np.mean(drawn >= d) == pytest.approx(share, abs=5 * math.sqrt(share / n) + 1e-9)


def test_synthetic_samples_mix_the_law_with_what_lies_below_it():
    values = np.repeat([1.0, 2.0, 5.0, 6.0, 9.0], [600, 200, 120, 60, 20])
    fit = _tail.DegreeTail(2.5, 5, 0.0, 200, math.nan)
    drawn = np.concatenate([_tail._synthetic(values, fit, np.random.default_rng(i)) for i in range(50)])
    assert len(drawn) == 50_000
    at_least_6 = zeta_by_adding(2.5, 6) / zeta_by_adding(2.5, 5)
    for chosen, share in ((drawn == 1, 0.6), (drawn == 2, 0.2), (drawn == 5, 0.2 * (1 - at_least_6)), (drawn > 1e9, 0)):
        assert np.mean(chosen) == pytest.approx(share, abs=5 * math.sqrt(share / 50_000))
    assert not ((drawn == 3) | (drawn == 4)).any()


@pytest.mark.parametrize("alpha", [1.01, 1.5, 2.5, 10.0, 50.0])
def test_the_integral_takes_over_from_the_zeta_function_without_a_step(alpha):
    d = np.array([1.0, 100.0, 16_383.0, 16_384.0, 20_000.0, 1e5])
    np.testing.assert_allclose(_tail._log_zeta(alpha, d), np.log(special.zeta(alpha, d)), rtol=0, atol=4e-7)


def test_laws_that_reach_beyond_all_integers_are_drawn_and_fitted():
    drawn = _tail._power_law(1.01, 1, 2000, np.random.default_rng(0))
    assert np.isfinite(drawn).all()
    assert drawn.max() > 1e100
    assert _tail._fit(drawn[:200]).exponent < 1.1


def test_degrees_are_those_of_the_undirected_graph_or_of_one_side():
    net = tg.generate(tg.ErdosRenyi(sizes=[20, 30, 25], density=0.2), rng=0)
    graph = nx.Graph(
        ((k, int(i)), (k + 1, int(j))) for k, layer in enumerate(net) for i, j in zip(*layer.nonzero(), strict=True)
    )
    assert sorted(_tail._degrees(net, "degree").tolist()) == sorted(d for _, d in graph.degree)
    ends = [layer.nonzero() for layer in net]
    for of, sizes, side in (("fan_out", net.sizes[:-1], 0), ("fan_in", net.sizes[1:], 1)):
        expected = np.concatenate([np.bincount(end[side], minlength=n) for end, n in zip(ends, sizes, strict=True)])
        np.testing.assert_array_equal(_tail._degrees(net, of), expected)


def test_neurons_without_connections_are_left_out():
    values = np.random.default_rng(0).zipf(2.5, 200)
    layer = sp.vstack([layer_of(values), sp.csr_array((50, int(values.max())))])
    assert measures.degree_tail(layer, rng=0, of="fan_out", samples=5) == tail_of(values, samples=5)


def test_the_same_seed_gives_the_same_p_value_and_a_generator_moves_on():
    values = np.random.default_rng(1).zipf(2.2, 300)
    expected = tail_of(values, rng=5, samples=30)
    assert tail_of(values, rng=np.random.SeedSequence(5), samples=30) == expected
    generator = np.random.default_rng(5)
    results = [tail_of(values, rng=generator, samples=30) for _ in range(6)]
    assert results[0] == expected
    assert len({result.p_value for result in results}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rng": rng},
            "The 'rng' parameter of degree_tail must be an int >= 0, a numpy SeedSequence or a numpy Generator. "
            f"Got {rng!r}.",
        )
        for rng in (None, True, -1, 0.5, "0")
    ]
    + [
        (
            {"of": "degrees"},
            "The 'of' parameter of degree_tail must be 'degree' or 'fan_in' or 'fan_out'. Got 'degrees'.",
        ),
        ({"samples": 0}, "The 'samples' parameter of degree_tail must be an int >= 1. Got 0."),
        (
            {"x": np.eye(3)},
            "The 'x' parameter of degree_tail must have at least two different positive degrees. "
            "Got 1: a regular network has no tail.",
        ),
        (
            {"x": np.zeros((3, 4))},
            "The 'x' parameter of degree_tail must have at least two different positive degrees. "
            "Got 0: a regular network has no tail.",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, message):
    with pytest.raises(tg.errors.SpecError) as raised:
        measures.degree_tail(**{"x": [[1, 1], [1, 0]], "rng": 0, **options})
    assert str(raised.value) == message
