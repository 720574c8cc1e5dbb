"""Exact path counts against enumerated paths and products of Python integers."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from topogen import Topology, measures
from topogen._topology import LazyLayers
from topogen.measures import PathCounts, _paths, _twins
from topogen.testing import topologies


def radix(systems, widths=None):
    """The layers of a RadiX-Net by index: i -> (i - j * place value) mod N', every block of the widths a copy."""
    n, k, layers = math.prod(systems[0]), 0, []
    widths = widths or [1] * (sum(map(len, systems)) + 1)
    for system in systems:
        place = 1
        for r in system:
            layer = np.zeros((widths[k], n, widths[k + 1], n), bool)
            for i, j in itertools.product(range(n), range(r)):
                layer[:, i, :, (i - j * place) % n] = True
            layers.append(sp.csr_array(layer.reshape(widths[k] * n, widths[k + 1] * n)))
            place, k = place * r, k + 1
    return layers


def counted_by_python(layers):
    """The product of the layers in Python integers."""
    product = None
    for layer in layers:
        dense = (sp.csr_array(layer).toarray() != 0).astype(int).astype(object)
        product = dense if product is None else product @ dense
    return PathCounts(product.min(), product.max())


def enumerated(net):
    """The number of paths of each pair, one path after the other."""
    dense = [layer.toarray() for layer in net]
    counts = np.zeros((net.sizes[0], net.sizes[-1]), int)
    for path in itertools.product(*map(range, net.sizes)):
        counts[path[0], path[-1]] += all(dense[k][path[k], path[k + 1]] for k in range(len(net)))
    return PathCounts(counts.min(), counts.max())


def random_chain(seed, *, width, layers, density):
    """Matrices of zeros and ones; every third neuron is a copy of its neighbour, and one in each layer is alone."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(width // 2, width + 1, layers + 1)
    chain = [rng.random(shape) < density for shape in itertools.pairwise(sizes)]
    for layer in chain:
        rows, columns = layer[1::3], layer[:, 1::3]
        rows[:] = layer[::3][: len(rows)]
        columns[:] = layer[:, ::3][:, : columns.shape[1]]
    for layer in chain[1:-1:2]:
        layer[rng.integers(layer.shape[0])] = False
    return chain


@given(topologies(max_layers=3, max_width=6))
def test_counts_are_those_of_enumerated_paths(net):
    assert measures.path_counts(net) == enumerated(net)


@given(topologies(max_layers=6))
def test_counts_are_those_of_python_integers_and_agree_with_reachability(net):
    counts = measures.path_counts(net)
    assert counts == counted_by_python(net)
    assert {type(counts.min), type(counts.max)} == {int}
    assert measures.is_symmetric(net) is (counts.min == counts.max)
    assert measures.is_path_connected(net) is (counts.min > 0)


@pytest.mark.parametrize(
    ("systems", "widths", "paths"),
    [
        ([[2, 2, 2]], None, 1),
        ([[3, 3, 4], [4, 3, 3]], None, 36),
        ([[10, 10]], [8, 3, 1], 3),
        ([[2, 3, 5], [5, 3, 2], [3]], None, 90),
        ([[2] * 6], [16] * 7, 2**20),
    ],
)
def test_published_radix_nets(systems, widths, paths):
    layers = radix(systems, widths)
    assert measures.path_counts(layers) == PathCounts(paths, paths)
    assert measures.is_symmetric(layers)


def test_every_removed_and_every_moved_connection_of_a_radix_net_is_seen_by_paths_or_degrees():
    layers = [layer.toarray() for layer in radix([[3, 4], [4, 3]])]
    paths, fan_in = measures.path_counts(layers), measures.fan_in(layers)
    assert paths == PathCounts(12, 12)
    seen = []
    for layer in layers:
        moves = []
        for i, j in zip(*layer.nonzero(), strict=True):
            there = np.flatnonzero(~layer[i])[0]
            layer[i, j] = False
            assert measures.path_counts(layers) == counted_by_python(layers) != paths
            layer[i, there] = True
            moved = measures.path_counts(layers)
            assert moved == counted_by_python(layers)
            assert measures.fan_in(layers) != fan_in
            moves.append(moved != paths)
            layer[i, there], layer[i, j] = False, True
        seen.append(np.mean(moves))
    # the second system leads from each of its inputs to all outputs by one path: where a connection before it ends, the
    # counts cannot tell, only the degrees can
    assert seen[:2] == [0, 0]
    assert seen[3] == 1
    assert measures.path_counts(layers) == paths


def test_sixty_dense_layers_pass_int64_by_far():
    counts = measures.path_counts([np.ones((16, 16))] * 60)
    assert counts == PathCounts(16**59, 16**59)
    assert str(counts) == "2^236"


@pytest.mark.parametrize("seed", range(6))
def test_irregular_chains_of_hundreds_of_bits(seed):
    chain = random_chain(seed, width=24, layers=50, density=(0.4, 0.6, 0.9)[seed % 3])
    expected = counted_by_python(chain)
    assert expected.max > 2**100
    assert measures.path_counts(chain) == expected


@pytest.mark.parametrize("block", [1, 200, 3000])
def test_rows_that_are_carried_in_turns_count_alike(block, monkeypatch):
    chains = [random_chain(seed, width=14, layers=30, density=0.5) for seed in range(3)]
    chains += [radix([[2, 3], [3, 2]], [2, 3, 1, 2, 2]), [np.ones((9, 1)), np.ones((1, 13))]]
    expected = [counted_by_python(chain) for chain in chains]
    monkeypatch.setattr(_paths, "_BLOCK_BYTES", block)
    assert [measures.path_counts(chain) for chain in chains] == expected


@pytest.mark.parametrize("seed", range(20))
def test_clashing_digests_change_nothing(seed, monkeypatch):
    chain = random_chain(seed, width=9, layers=5, density=0.6)
    expected = counted_by_python(chain)
    assert measures.path_counts(chain) == expected
    for module in (_twins, _paths):
        monkeypatch.setattr(module, "keys", lambda n: np.zeros(n, np.int64))
        assert measures.path_counts(chain) == expected


def graph_challenge(blocks):
    """A Graph Challenge network of 1024 neurons: six base layers, their rows permuted anew in every block."""
    base = radix([[2] * 6], [16] * 7)
    rng = np.random.default_rng(0)
    return [layer[order] for order in [np.arange(1024), *map(rng.permutation, [1024] * (blocks - 1))] for layer in base]


def test_graph_challenge_1024_neurons_120_layers():
    layers = graph_challenge(20)
    counts = measures.path_counts(layers)
    assert counts == PathCounts(2**590, 2**590)
    assert str(counts) == "2^590"
    for k in (0, 60, 119):
        removed = layers[k].tolil()
        removed[7, removed.rows[7][0]] = False
        assert not measures.is_symmetric([*layers[:k], removed, *layers[k + 1 :]])


def test_the_official_graph_challenge_network(data_dir):
    row_classes = np.load(data_dir / "graphchallenge" / "graphchallenge_1024_l120.npz", allow_pickle=False)["rowclass"]
    base = radix([[2] * 6], [16] * 7)
    net = [layer[classes.astype(int)] for classes in row_classes for layer in base]
    assert measures.path_counts(net) == PathCounts(2**590, 2**590)
    assert measures.path_counts(net[6:12]) == PathCounts(1_045_517, 1_051_691)
    assert measures.path_counts(net[12:18]) == PathCounts(1_044_951, 1_051_718)


@given(topologies(max_layers=3), st.sampled_from([-2.5, 0.5, 256, True]))
def test_weights_and_lazy_layers_count_as_connections(net, weight):
    expected = measures.path_counts(net)
    weights = [layer * weight for layer in net]
    before = [layer.copy() for layer in weights]
    assert measures.path_counts(weights) == expected
    assert measures.path_counts(Topology(LazyLayers(net.sizes, lambda k: net[k]))) == expected
    assert all((now != then).nnz == 0 and now.nnz == then.nnz for now, then in zip(weights, before, strict=True))


def test_no_path_anywhere_is_symmetric_but_not_connected():
    nothing = [np.zeros((2, 3)), np.ones((3, 4))]
    assert measures.path_counts(nothing) == PathCounts(0, 0)
    assert measures.is_symmetric(nothing)
    assert not measures.is_path_connected(nothing)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0, 0, "0"),
        (36, 36, "36"),
        (3, 36, "3..36"),
        (2**20, 2**20, "1048576"),
        (10**15 - 1, 10**15, "999999999999999..1.00e15 (16 digits)"),
        (2**590, 2**590, "2^590"),
        (0, 3**100, "0..5.15e47 (48 digits)"),
        (10**20, 10**20 + 7, "1.00e20 (21 digits) + 0..7"),
        (2**590, 2**590 + 2**60, "2^590..4.05e177 (178 digits)"),
        (9_999_999 * 10**20, 9_999_999 * 10**20, "1.00e27 (27 digits)"),
    ],
)
def test_counts_print_short(low, high, shown):
    counts = PathCounts(low, high)
    assert str(counts) == shown
    assert repr(counts).startswith("PathCounts(min=")
    assert (counts.min, counts.max) == (low, high)


def test_counts_that_python_refuses_to_print_print_too():
    counts = PathCounts(0, 7 * 10**9000)
    assert str(counts) == "0..7.00e9000 (9001 digits)"
    assert repr(counts) == "PathCounts(min=0, max=7.00e9000 (9001 digits))"


def test_counts_are_values():
    assert PathCounts(1, 2) == PathCounts(1, 2) != PathCounts(1, 3)
    assert len({PathCounts(1, 2), PathCounts(1, 2)}) == 1
    with pytest.raises(AttributeError):
        PathCounts(1, 2).min = 5
