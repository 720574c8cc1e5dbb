"""Reachability, dead neurons and components against networkx, on anything that `topologies` draws."""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from topogen import Topology, errors, measures
from topogen._topology import LazyLayers
from topogen.measures import _connectivity, _twins
from topogen.testing import topologies


@pytest.fixture(autouse=True, scope="module", params=[_connectivity._WORTH_MERGING, 0], ids=["carried", "merged"])
def twins(request):
    """All of it both ways: small networks carry their twins, and here merge them as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_connectivity, "_WORTH_MERGING", request.param)
        yield


def radix(systems, widths=None):
    """The layers of a RadiX-Net from the definition: kron(ones, sum over j of P^(-j nu)) as dense integers."""
    eye = np.eye(int(np.prod(systems[0])), dtype=int)
    layers = []
    for system in systems:
        place = 1
        for r in system:
            layers.append(sum(np.roll(eye, -j * place, axis=1) for j in range(r)))
            place *= r
    widths = widths or [1] * (len(layers) + 1)
    return [np.kron(np.ones(shape, int), w) for shape, w in zip(pairwise(widths), layers, strict=True)]


def digraph(net):
    """The layered graph, its vertices (layer of nodes, index)."""
    graph = nx.DiGraph()
    graph.add_nodes_from((k, i) for k, n in enumerate(net.sizes) for i in range(n))
    for k, layer in enumerate(net):
        graph.add_edges_from(((k, int(i)), (k + 1, int(j))) for i, j in zip(*layer.nonzero(), strict=True))
    return graph


def reached_by_networkx(net):
    graph, last = digraph(net), len(net)
    reached = np.zeros((net.sizes[0], net.sizes[-1]), bool)
    for i in range(net.sizes[0]):
        for k, j in nx.descendants(graph, (0, i)):
            if k == last:
                reached[i, j] = True
    return reached


def dead_by_networkx(net):
    graph, last = digraph(net), len(net)
    forward = set().union(*(nx.descendants(graph, (0, i)) | {(0, i)} for i in range(net.sizes[0])))
    backward = set().union(*(nx.ancestors(graph, (last, j)) | {(last, j)} for j in range(net.sizes[-1])))
    return [[i for i in range(n) if (k, i) not in forward & backward] for k, n in enumerate(net.sizes)]


def assert_agrees_with_networkx(net):
    reached = reached_by_networkx(net)
    np.testing.assert_array_equal(measures.reachability(net), reached, strict=True)
    assert measures.is_path_connected(net) is bool(reached.all())
    dead = measures.dead_neurons(net)
    assert [neurons.tolist() for neurons in dead] == dead_by_networkx(net)
    assert {neurons.dtype for neurons in dead} == {np.dtype(np.int64)}
    assert measures.n_components(net) == nx.number_connected_components(digraph(net).to_undirected())


@given(topologies(max_layers=5))
def test_anything_agrees_with_networkx(net):
    assert_agrees_with_networkx(net)


def random_chain(seed):
    """Five layers up to 12 wide with about two connections a neuron, so that some inputs and outputs meet."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 13, 6)
    return Topology([rng.random(shape) < 2.5 / max(shape) for shape in pairwise(sizes)])


@pytest.mark.parametrize("seed", range(30))
def test_chains_that_are_neither_full_nor_cut_agree_with_networkx(seed, monkeypatch):
    net = random_chain(seed)
    assert_agrees_with_networkx(net)
    monkeypatch.setattr(_connectivity, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(_twins, "keys", lambda n: np.zeros(n, np.int64))  # all digests clash
    assert_agrees_with_networkx(net)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129, 200])
def test_words_end_where_inputs_end(n, monkeypatch):
    shift = np.roll(np.eye(n, dtype=bool), 1, axis=1)
    np.testing.assert_array_equal(measures.reachability([shift, shift]), np.roll(shift, 1, axis=1))
    everything = np.ones((n, n), bool)
    assert measures.is_path_connected([shift, everything, shift])
    everything[-1, -1] = False  # of the last input's bit in the last word
    assert not measures.is_path_connected([everything])
    monkeypatch.setattr(_connectivity, "_BLOCK_BYTES", 1)  # one word of inputs at a time
    np.testing.assert_array_equal(measures.reachability([shift, everything]), shift.astype(int) @ everything > 0)


@pytest.mark.parametrize(
    ("systems", "widths"),
    [
        ([[2, 2, 2]], None),
        ([[3, 3, 4], [4, 3, 3]], None),
        ([[10, 10]], [8, 3, 1]),
        ([[2, 3, 5], [5, 3, 2], [3]], None),
        ([[2] * 6], [16] * 7),
    ],
)
def test_radix_nets_are_path_connected_and_lose_it_with_a_layer(systems, widths):
    layers = radix(systems, widths)
    assert measures.is_path_connected(layers)
    assert [dead.size for dead in measures.dead_neurons(layers)] == [0] * (len(layers) + 1)
    if len(systems) == 1:
        assert not measures.is_path_connected(layers[1:])
        assert not measures.is_path_connected(layers[:-1])


def test_every_removed_and_most_moved_connections_of_a_radix_net_disconnect_it():
    layers = radix([[2, 2, 2]])  # one path a pair: all connections are needed
    disconnected = []
    for layer in layers:
        for i, j in zip(*layer.nonzero(), strict=True):
            there = np.flatnonzero(layer[i] == 0)
            layer[i, j] = 0
            assert not measures.is_path_connected(layers)
            for other in there:
                layer[i, other] = 1
                assert measures.is_path_connected(layers) is bool((layers[0] @ layers[1] @ layers[2]).all())
                disconnected.append(not measures.is_path_connected(layers))
                layer[i, other] = 0
            layer[i, j] = 1
    assert 0.7 < np.mean(disconnected) < 1  # the others lead to a neuron with the same future as before
    assert measures.is_path_connected(layers)


@pytest.mark.parametrize("widths", [[1] * 7, [16] * 7, [2, 1, 3, 1, 1, 2, 1]])
def test_a_radix_layer_has_as_many_components_as_its_place_value(widths):
    layers = radix([[2] * 6], widths)
    assert [measures.n_components(layer) for layer in layers] == [1, 2, 4, 8, 16, 32]
    assert measures.n_components(layers) == 1
    assert measures.n_components(layers[1:]) == 2
    assert measures.n_components(layers[3:]) == 8


def test_components_count_neurons_without_connections():
    assert measures.n_components(np.zeros((3, 4))) == 7
    assert measures.n_components([np.zeros((3, 4)), np.ones((4, 2)), np.zeros((2, 1))]) == 3 + 1 + 1


def test_components_that_join_late_are_one():
    two = sp.block_diag([np.ones((2, 3)), np.ones((2, 3))])
    assert measures.n_components(two) == 2
    assert measures.n_components([two, np.ones((6, 1))]) == 1
    assert measures.n_components([np.ones((1, 4)), two]) == 1


def test_trimming_the_last_layer_strands_81_hidden_neurons():
    layers = radix([[10, 10], [10]])
    cut = layers[2][:, :10]
    dead = measures.dead_neurons([*layers[:2], cut])
    assert [neurons.size for neurons in dead] == [0, 0, 81, 0]
    assert dead[2].tolist() == np.flatnonzero(cut.sum(axis=1) == 0).tolist()


def test_a_dead_end_kills_what_leads_only_there():
    chain = [np.eye(3), np.eye(3), np.diag([1, 0, 1])]
    assert [dead.tolist() for dead in measures.dead_neurons(chain)] == [[1], [1], [1], [1]]


@pytest.mark.parametrize("fan", [255, 256, 257, 512, 65536])
def test_as_many_connections_as_a_byte_counts_to_are_not_none(fan):
    chain = [np.ones((1, fan)), np.ones((fan, 1))]
    assert [dead.size for dead in measures.dead_neurons(chain)] == [0, 0, 0]
    assert measures.is_path_connected(chain)


@given(topologies(max_layers=3), st.randoms(use_true_random=False))
def test_weights_lazy_layers_and_other_formats_measure_alike_and_stay_as_they_are(net, random):
    weights = [layer.astype(float).tocoo() * random.choice([-2.5, 0.5, 3]) for layer in net]
    before = [(layer.row.copy(), layer.col.copy(), layer.data.copy()) for layer in weights]
    lazy = Topology(LazyLayers(net.sizes, lambda k: weights[k].tocsr()))
    for x in (weights, lazy):
        np.testing.assert_array_equal(measures.reachability(x), measures.reachability(net))
        assert measures.is_path_connected(x) == measures.is_path_connected(net)
        assert measures.n_components(x) == measures.n_components(net)
        assert [d.tolist() for d in measures.dead_neurons(x)] == [d.tolist() for d in measures.dead_neurons(net)]
    for layer, parts in zip(weights, before, strict=True):
        for now, then in zip((layer.row, layer.col, layer.data), parts, strict=True):
            np.testing.assert_array_equal(now, then)


def test_reachability_that_does_not_fit_is_refused_before_a_layer_is_built():
    def build(k):
        raise AssertionError(f"layer {k} was built")

    net = Topology(LazyLayers((10**8, 3, 10**8), build))
    message = (
        r"The 'x' parameter of reachability must describe something that fits in memory\. "
        r"It needs 20,000,000,000,000,000 bytes and [\d,]+ are available\."
    )
    with pytest.raises(errors.SpecError, match=message):
        measures.reachability(net)
