"""ErdosRenyi: exact counts, as written, and the same draws for ever."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import seeds, specs


def counts(**arguments):
    net = tg.generate(tg.ErdosRenyi(**arguments), rng=0)
    for layer in net:
        assert layer.nnz == layer.toarray().sum()  # no connection is stored twice
    return [layer.nnz for layer in net]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"sizes": [784, 300, 100, 10], "density": 0.1}, [23520, 3000, 100]),
        ({"sizes": [10, 10], "density": 0.0}, [0]),
        ({"sizes": [10, 10], "density": 1.0}, [100]),
        ({"sizes": [10, 10], "density": 1}, [100]),
        ({"sizes": [10, 10], "density": 0.93}, [93]),
        ({"sizes": [7, 3, 5], "density": [0.5, 0.2]}, [10, 3]),  # 10.5 rounds to the even 10
        ({"sizes": [3, 5], "density": 0.1}, [2]),  # 1.5 rounds to the even 2
        ({"sizes": [10, 30, 10], "density": (0.0, 0.9)}, [0, 270]),
        # SET: epsilon (n_in + n_out), not its square root or its product; a layer it would overfill is dense
        ({"sizes": [784, 1000], "epsilon": 13}, [23192]),
        ({"sizes": [784, 1000, 1000, 1000, 10], "epsilon": 20}, [35680, 40000, 40000, 10000]),
        ({"sizes": [784, 1000], "epsilon": 0}, [0]),
        ({"sizes": [4, 5], "epsilon": 0.5}, [4]),  # 4.5 rounds to the even 4
        ({"sizes": [4, 5], "epsilon": 1e300}, [20]),
    ],
)
def test_published_and_extreme_counts(arguments, expected):
    assert counts(**arguments) == expected


@pytest.mark.parametrize("density", [0.1, 0.3, 0.7, 0.8, 0.9])
def test_a_density_is_the_decimal_that_was_written(density):
    # in floats 0.7 * 45 is 31.499999999999996, and rounds down
    for n in range(1, 200):
        spec = tg.ErdosRenyi(sizes=[n, 45], density=density)
        assert spec.connections == (int((Decimal(str(density)) * n * 45).to_integral_value(ROUND_HALF_EVEN)),)


@given(specs(tg.ErdosRenyi), seeds())
def test_the_count_is_exact(spec, seed):
    net = tg.generate(spec, rng=seed)
    assert tuple(int(layer.toarray().sum()) for layer in net) == spec.connections
    assert tg.verify(net).holds is True


@given(st.floats(0, 1))
def test_any_density_keeps_within_half_a_connection(density):
    (count,) = tg.ErdosRenyi(sizes=[13, 17], density=density).connections
    assert abs(count - density * 221) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("spec", "digests"),
    [
        (tg.ErdosRenyi(sizes=[20, 30, 10], density=0.1), ["bd46bebf3961d6b9", "99e206d9f407b851"]),
        (tg.ErdosRenyi(sizes=[20, 30], density=0.7), ["f55adca299228d9c"]),
        (tg.ErdosRenyi(sizes=[20, 30], epsilon=3.5), ["94994b902adf2c6e"]),
    ],
)
def test_seed_2026_draws_what_it_always_drew(spec, digests):
    assert [tg.pattern_hash(layer, 1)[:16] for layer in tg.generate(spec, rng=2026)] == digests


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "ErdosRenyi takes either 'density' or 'epsilon'. Got density=None, epsilon=None."),
        (
            {"density": 0.5, "epsilon": 1.0},
            "ErdosRenyi takes either 'density' or 'epsilon'. Got density=0.5, epsilon=1.0.",
        ),
        *[
            ({"density": d}, f"The 'density' parameter of ErdosRenyi must be a finite number in [0, 1]. Got {d!r}.")
            for d in (-0.1, 1.1, float("nan"), float("inf"), True)
        ],
        *[
            (
                {"density": d},
                "The 'density' parameter of ErdosRenyi must be a number in [0, 1] or a sequence of 2 of them, one a "
                f"layer. Got {d!r}.",
            )
            for d in ("0.1", [0.1], [0.1, 0.2, 0.3], {}, np.array(0.5))
        ],
        (
            {"density": [0.1, float("nan")]},
            "The 'density[1]' parameter of ErdosRenyi must be a finite number in [0, 1]. Got nan.",
        ),
        *[
            ({"epsilon": e}, f"The 'epsilon' parameter of ErdosRenyi must be a finite number in [0, inf). Got {e!r}.")
            for e in (-1, float("nan"), float("inf"), "1", True, [1.0])
        ],
    ],
)
def test_impossible_densities_are_refused(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.ErdosRenyi(sizes=[4, 5, 6], **arguments)


@pytest.mark.parametrize("name", ["density", "epsilon"])
def test_a_number_past_all_floats_is_refused(name):
    with pytest.raises(SpecError, match=rf"^The '{name}' parameter of ErdosRenyi must be .*\. Got 10+\.\.\.\.$"):
        tg.ErdosRenyi(sizes=[4, 5], **{name: 10**400})
