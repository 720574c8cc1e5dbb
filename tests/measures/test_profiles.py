"""Degree distributions by counting, mean path counts against products of Python integers."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen.testing import topologies


@given(topologies())
def test_degree_profiles_count_the_dense_rows_and_columns(net):
    profiles = measures.degree_profiles(net)
    assert len(profiles) == len(net)
    for profile, layer in zip(profiles, net, strict=True):
        dense = layer.toarray()
        assert profile.fan_out == Counter(int(row.sum()) for row in dense)
        assert profile.fan_in == Counter(int(column.sum()) for column in dense.T)
        for spread in profile:
            assert list(spread) == sorted(spread)
            assert {type(number) for pair in spread.items() for number in pair} == {int}


def test_a_biregular_layer_has_one_degree_a_side():
    net = tg.generate(tg.RandomBiregular(sizes=[12, 8], fan_in=3), rng=0)
    assert measures.degree_profiles(net) == (({2: 12}, {3: 8}),)


def mean_by_products(net):
    product = reduce(np.dot, [layer.toarray().astype(int).astype(object) for layer in net])
    return Fraction(int(product.sum()), product.size)


@given(topologies(max_layers=5))
def test_mean_path_count_of_anything(net):
    mean = measures.mean_path_count(net)
    assert type(mean) is Fraction
    assert mean == mean_by_products(net)
    counts = measures.path_counts(net)
    assert counts.min <= mean <= counts.max


@pytest.mark.parametrize("depth", [1, 2, 15, 16, 17, 40, 300])
def test_mean_path_counts_of_any_number_of_digits(depth):
    layer = np.ones((9, 9), int)
    layer[0, 0] = layer[3, 5] = layer[3, 6] = 0
    assert measures.mean_path_count([layer] * depth) == mean_by_products(tg.Topology([layer] * depth))


def test_the_mean_of_a_symmetric_network_is_its_count():
    net = tg.generate(tg.RadixNet(systems=[[2, 3, 4], [4, 6]]))
    counts = measures.path_counts(net)
    assert measures.mean_path_count(net) == counts.min == counts.max
