"""The narrow dense baseline: the nearest number of parameters, by trying every factor."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen_torch as tt
from topogen.errors import SpecError


def count(sizes, bias):
    return sum((a + bias) * b for a, b in zip(sizes, sizes[1:], strict=False))


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.booleans(), st.floats(0, 1))
def test_no_factor_comes_nearer(sizes, bias, share):
    """All factors that make a difference, a fine grid of them, in floats."""
    hidden = sizes[1:-1]
    grid = [[max(1, int(k / 5040 * n + 0.5)) for n in hidden] for k in range(0, 5041, 3)]
    counts = {count([sizes[0], *own, sizes[-1]], bias) for own in grid}
    wanted = round(min(counts) + share * (max(counts) - min(counts)))
    found, parameters = tt.narrow_sizes(sizes, parameters=max(1, wanted), bias=bias)
    assert parameters == count(found, bias)
    assert (found[0], found[-1]) == (sizes[0], sizes[-1])
    assert abs(parameters - wanted) == min(abs(c - wanted) for c in counts)


@pytest.mark.parametrize("bias", [False, True])
def test_the_model_has_that_many(bias):
    model = tt.narrow_dense([20, 16, 8, 3], parameters=200, bias=bias, activation=nn.Tanh, dtype=torch.float64)
    sizes, parameters = tt.narrow_sizes([20, 16, 8, 3], parameters=200, bias=bias)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [model[0].in_features, *(layer.out_features for layer in model[::2])] == list(sizes)
    assert model(torch.ones(2, 20, dtype=torch.float64)).shape == (2, 3)


def test_of_two_that_are_as_near_the_smaller():
    assert tt.narrow_sizes([1, 9, 1], parameters=11, bias=False) == ((1, 5, 1), 10)


def test_the_whole_network_is_its_own():
    assert tt.narrow_sizes([784, 300, 100, 10], parameters=266_610)[0] == (784, 300, 100, 10)
    assert tt.narrow_sizes([4, 3], parameters=15)[0] == (4, 3)


REFUSED = {
    "more": (
        lambda: tt.narrow_dense([4, 3, 2], parameters=99),
        "The 'parameters' parameter of narrow_dense must be in [9, 23] for the sizes [4, 3, 2]. Got 99; the nearest is "
        "23.",
    ),
    "fewer": (
        lambda: tt.narrow_dense([4, 3, 2], parameters=3),
        "The 'parameters' parameter of narrow_dense must be in [9, 23] for the sizes [4, 3, 2]. Got 3; the nearest is",
    ),
    "activation": (
        lambda: tt.narrow_dense([4, 3, 2], parameters=9, activation=None),
        "The 'activation' parameter of narrow_dense must be a callable that returns a module. Got None.",
    ),
    "sizes": (lambda: tt.narrow_sizes([4], parameters=9), "The 'sizes' parameter of narrow_dense must "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()
