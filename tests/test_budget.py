"""The Erdos-Renyi-kernel rule: published densities, the equation that defines it, and exact totals."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError

LENET = [(300, 784), (100, 300), (10, 100)]
LENET5 = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]

shapes = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6)
densities = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1)


@pytest.mark.parametrize(
    ("layers", "density", "expected"),
    [
        (LENET, 0.1, [0.079568, 0.230189, 1.0]),
        (LENET, 0.01, [0.007697, 0.022267, 0.183701]),
        (LENET5, 0.1, [1.0, 0.087072, 0.088433, 1.0]),
        (LENET5, 0.05, [0.726116, 0.037477, 0.038063, 1.0]),
        (LENET5, 0.01, [0.138943, 0.007171, 0.007283, 0.228584]),
    ],
)
def test_published_densities(layers, density, expected):
    assert tg.erdos_renyi_kernel(layers, density=density) == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.5, [102100, 30000, 1000]),
        (0.2, [38159, 14081, 1000]),
        (0.1, [18714, 6906, 1000]),
        (0.05, [9051, 3340, 919]),
        (0.02, [3621, 1336, 367]),
        (0.01, [1810, 668, 184]),
    ],
)
def test_counts_worked_out_by_hand(density, expected):
    assert tg.erdos_renyi_kernel_counts(LENET, density=density) == expected
    assert sum(expected) == round(density * 266200)


def test_convolutions_count_their_kernel():
    # the rule without the kernel, (out + in) / (out in), would give 1, 0.41, 0.02, 0.60
    linear = [shape[:2] for shape in LENET5]
    assert tg.erdos_renyi_kernel(LENET5, density=0.05) != pytest.approx(
        tg.erdos_renyi_kernel(linear, density=0.05), abs=0.1
    )


@given(shapes, densities)
def test_the_densities_solve_the_rules_equation(layers, density):
    found = np.array(tg.erdos_renyi_kernel(layers, density=density))
    sizes = np.array([math.prod(shape) for shape in layers], dtype=float)
    raw = np.array([sum(shape) for shape in layers]) / sizes
    assert ((found >= 0) & (found <= 1)).all()
    assert found @ sizes == pytest.approx(density * sizes.sum(), rel=1e-12, abs=1e-12)
    # one epsilon for all layers that are not full, and a full layer would exceed 1 with it
    open_layers = found < 1
    if open_layers.any():
        epsilon = (found / raw)[open_layers]
        np.testing.assert_allclose(epsilon, epsilon[0], rtol=1e-9)
        assert (raw[~open_layers] * epsilon[0] >= 1 - 1e-9).all()


@given(shapes, densities)
def test_counts_add_up_and_stay_within_one_of_their_share(layers, density):
    counts = tg.erdos_renyi_kernel_counts(layers, density=density)
    sizes = [math.prod(shape) for shape in layers]
    assert sum(counts) == round(Fraction(str(density)) * sum(sizes))
    for count, size, share in zip(counts, sizes, tg.erdos_renyi_kernel(layers, density=density), strict=True):
        assert 0 <= count <= size
        assert abs(count - share * size) < 1 + 1e-9


def test_a_spec_takes_the_densities():
    spec = tg.ErdosRenyi(sizes=[784, 300, 100, 10], density=tg.erdos_renyi_kernel(LENET, density=0.1))
    assert spec.connections == (18714, 6906, 1000)


def test_the_order_within_a_shape_and_of_the_shapes_does_not_matter():
    turned = [shape[::-1] for shape in reversed(LENET5)]
    assert tg.erdos_renyi_kernel(turned, density=0.05) == tg.erdos_renyi_kernel(LENET5, density=0.05)[::-1]


@pytest.mark.parametrize("function", [tg.erdos_renyi_kernel, tg.erdos_renyi_kernel_counts, tg.connection_counts])
@pytest.mark.parametrize(
    ("layers", "density", "sentence"),
    [
        *[
            (
                bad,
                0.1,
                "The 'shapes' parameter of {} must be a sequence of at least one weight shape, (out, in) or "
                f"(out, in, kernel...), for example [(300, 784)]. Got {bad!r}.",
            )
            for bad in ([], 5, "34", None)
        ],
        ([(3,)], 0.1, "The 'shapes[0]' parameter of {} must be a sequence of at least 2 ints >= 1. Got (3,)."),
        ([(3, 4), 5], 0.1, "The 'shapes[1]' parameter of {} must be a sequence of at least 2 ints >= 1. Got 5."),
        ([(3, 0)], 0.1, "The 'shapes[0][1]' parameter of {} must be an int >= 1. Got 0."),
        ([(3, 4.0)], 0.1, "The 'shapes[0][1]' parameter of {} must be an int >= 1. Got 4.0."),
        *[
            ([(3, 4)], d, f"The 'density' parameter of {{}} must be a finite number in [0, 1]. Got {d!r}.")
            for d in (-0.1, 1.5, float("nan"), "0.1", None, True)
        ],
    ],
)
def test_impossible_requests_are_refused(function, layers, density, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence.format(function.__name__))}$"):
        function(layers, density=density)


def by_hand(layers, density, distribution):
    """The densities by bisection on epsilon, in floats: another way to the same numbers."""
    sizes = np.array([math.prod(shape) for shape in layers], dtype=float)
    raw = np.array(
        [
            {"uniform": 1.0, "er": sum(shape[:2]) / math.prod(shape[:2]), "erk": sum(shape) / math.prod(shape)}[
                distribution
            ]
            for shape in layers
        ]
    )
    low, high = 0.0, 1 / raw.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * raw) @ sizes < density * sizes.sum() else (low, middle)
    return np.minimum(1, high * raw) * sizes


@given(shapes, densities, st.sampled_from(["uniform", "er", "erk"]))
def test_counts_of_every_distribution_follow_its_rule_and_add_up(layers, density, distribution):
    counts = tg.connection_counts(layers, density=density, distribution=distribution)
    sizes = [math.prod(shape) for shape in layers]
    assert sum(counts) == round(Fraction(repr(density)) * sum(sizes))
    for count, size, share in zip(counts, sizes, by_hand(layers, density, distribution), strict=True):
        assert 0 <= count <= size
        assert abs(count - share) < 1 + 1e-6 * size


def test_er_reads_two_dimensions_and_erk_all():
    er, erk = (tg.connection_counts(LENET5, density=0.05, distribution=name) for name in ("er", "erk"))
    assert er == [500, 10335, 7678, 3012]  # 500 is full; 70/1000, 1300/400000 and 510/5000 share what is left
    assert erk == tg.erdos_renyi_kernel_counts(LENET5, density=0.05) == [363, 937, 15225, 5000]


def test_an_unknown_distribution_is_refused():
    sentence = "The 'distribution' parameter of connection_counts must be 'uniform' or 'er' or 'erk'. Got 'erks'."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.connection_counts(LENET, density=0.1, distribution="erks")
