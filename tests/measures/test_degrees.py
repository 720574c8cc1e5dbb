"""Connections, density and degrees against dense sums, on matrices of every kind."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given

from topogen import Topology, measures
from topogen._topology import LazyLayers
from topogen.measures import Range
from topogen.testing import topologies


def lenet_masks():
    """RadiX-Net [[10, 10]], widths [8, 3, 1], its first 16 rows dropped: the two masks of LeNet-300-100."""
    eye = np.eye(100, dtype=int)
    units = sum(np.roll(eye, -j, axis=1) for j in range(10))
    tens = sum(np.roll(eye, -10 * j, axis=1) for j in range(10))
    return [np.kron(np.ones((8, 3)), units)[16:], np.kron(np.ones((3, 1)), tens)]


@given(topologies())
def test_every_measure_agrees_with_dense_sums(net):
    dense = [layer.toarray() for layer in net]
    assert measures.connections(net) == tuple(layer.sum() for layer in dense)
    assert measures.exact_density(net) == Fraction(
        int(sum(layer.sum() for layer in dense)), sum(layer.size for layer in dense)
    )
    for layer, found in zip(dense, measures.degrees(net), strict=True):
        np.testing.assert_array_equal(found.fan_out, layer.sum(axis=1), strict=True)
        np.testing.assert_array_equal(found.fan_in, layer.sum(axis=0), strict=True)
    assert measures.fan_out(net) == tuple((layer.sum(axis=1).min(), layer.sum(axis=1).max()) for layer in dense)
    assert measures.fan_in(net) == tuple((layer.sum(axis=0).min(), layer.sum(axis=0).max()) for layer in dense)


def test_lenet_masks_have_the_published_numbers():
    masks = lenet_masks()
    assert measures.connections(masks) == (23520, 3000)
    assert measures.exact_density(masks) == Fraction(1, 10)
    assert measures.density(masks) == 0.1
    assert [str(r) for r in measures.fan_out(masks)] == ["30", "10"]
    assert [str(r) for r in measures.fan_in(masks)] == ["70..80", "30"]


def test_one_moved_connection_is_seen():
    masks = lenet_masks()
    row = masks[1][5]
    here, there = np.flatnonzero(row)[0], np.flatnonzero(row == 0)[0]
    row[here], row[there] = 0, 1
    assert measures.connections(masks) == (23520, 3000)
    assert str(measures.fan_out(masks)[1]) == "10"
    assert str(measures.fan_in(masks)[1]) == "29..31"


@pytest.mark.parametrize("n", range(2, 60))
def test_density_is_the_nearest_float(n):
    row = np.zeros((1, n))
    row[0, 0] = 1
    assert measures.density(row) == 1 / n
    assert measures.density(1 - row) == (n - 1) / n


@pytest.mark.parametrize(
    "form", [np.asarray, sp.coo_array, sp.csc_matrix, lambda x: x.tolist(), lambda x: Topology([x]), lambda x: [x]]
)
def test_all_forms_of_one_matrix_measure_alike(form):
    weights = np.array([[0.5, 0.0, -2.0], [0.0, 0.0, 1e-30]])
    x = form(weights)
    assert measures.connections(x) == (3,)
    assert measures.density(x) == 0.5
    assert measures.fan_out(x) == (Range(1, 2),)
    assert measures.fan_in(x) == (Range(0, 2),)


def test_lazy_layers_are_built_once_a_measure_and_never_kept():
    built = []

    def build(k):
        built.append(k)
        return sp.csr_array(np.ones((k + 1, k + 2)))

    net = Topology(LazyLayers((1, 2, 3, 4), build))
    assert measures.connections(net) == (2, 6, 12)
    assert measures.fan_in(net) == (Range(1, 1), Range(2, 2), Range(3, 3))
    assert built == [0, 1, 2] * 2


def test_a_range_prints_short():
    assert str(Range(30, 30)) == "30"
    assert str(Range(70, 80)) == "70..80"
    assert Range(30, 30) == (30, 30)
