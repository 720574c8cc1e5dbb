"""Structural rank against random weights, effective density against removing what is on no path."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import measures
from topogen.testing import topologies

PRIME = 2_147_483_647


def rank_modulo_a_prime(matrix):
    """The rank of a matrix of Python ints over the field of PRIME elements, by elimination."""
    rows, rank = [list(map(int, row)) for row in matrix], 0
    for column in range(len(rows[0])):
        pivot = next((r for r in range(rank, len(rows)) if rows[r][column] % PRIME), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, PRIME)
        for r in range(rank + 1, len(rows)):
            factor = rows[r][column] * inverse % PRIME
            rows[r] = [(a - factor * b) % PRIME for a, b in zip(rows[r], rows[rank], strict=True)]
        rank += 1
    return rank


def generic_rank(net, seed=0):
    """The rank of the product with random weights modulo a large prime: too small with probability below 10^-6."""
    rng = np.random.default_rng(seed)
    weighted = [layer.toarray() * rng.integers(1, PRIME, layer.shape).astype(object) for layer in net]
    return rank_modulo_a_prime(reduce(lambda a, b: a @ b % PRIME, weighted))


@given(topologies(max_layers=4))
def test_structural_rank_is_that_of_random_weights(net):
    rank = measures.structural_rank(net)
    assert type(rank) is int
    assert rank == generic_rank(net)


@pytest.mark.parametrize("seed", range(20))
def test_structural_rank_of_sparse_chains(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 12, 5)
    net = tg.Topology([rng.random(shape) < 1.8 / max(shape) for shape in pairwise(sizes)])
    assert measures.structural_rank(net) == generic_rank(net)


def effective_by_networkx(net):
    graph = nx.DiGraph(
        ((k, int(i)), (k + 1, int(j))) for k, layer in enumerate(net) for i, j in zip(*layer.nonzero(), strict=True)
    )
    on_a_path = 0
    for a, b in graph.edges:
        from_inputs = a[0] == 0 or any(k == 0 for k, _ in nx.ancestors(graph, a))
        to_outputs = b[0] == len(net) or any(k == len(net) for k, _ in nx.descendants(graph, b))
        on_a_path += from_inputs and to_outputs
    return on_a_path / graph.number_of_edges() if graph.number_of_edges() else 0.0


@given(topologies(max_layers=5))
def test_effective_density_agrees_with_networkx(net):
    assert measures.effective_density(net) == effective_by_networkx(net)


@pytest.mark.parametrize("seed", range(20))
def test_effective_density_of_sparse_chains(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 10, 6)
    net = tg.Topology([rng.random(shape) < 1.3 / max(shape) for shape in pairwise(sizes)])
    assert measures.effective_density(net) == effective_by_networkx(net)


def test_every_connection_of_a_radix_net_counts_and_none_of_an_empty_net():
    assert measures.effective_density(tg.generate(tg.RadixNet(systems=[[2, 3], [6]]))) == 1.0
    assert measures.effective_density([np.zeros((2, 3)), np.ones((3, 2))]) == 0.0
    assert measures.effective_density(np.zeros((2, 3))) == 0.0
