"""The index buffers of the kernels, and the RadiX layers that are recognised among patterns."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen_torch._gpu._index import BlockIndex, Circulant, find_circulant
from topogen_torch._layout import stored_index, transposed_index


def index_of(pattern, block):
    pattern = tg.as_pattern(pattern)
    buffers = stored_index(pattern, "test") | transposed_index(pattern)
    names = ("indptr", "indices", "indptr_t", "indices_t", "permutation")
    return BlockIndex.from_buffers(*(buffers[name] for name in names), block=block)


def found_in(pattern):
    return find_circulant(pattern.indptr, pattern.indices, pattern.shape[1])


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_both_directions_name_the_same_blocks(rows, columns, density, seed):
    pattern = sp.random_array((rows, columns), density=density, rng=np.random.default_rng(seed))
    index = index_of(pattern, 16)
    by_inputs = torch.repeat_interleave(torch.arange(rows), index.indptr.diff())
    by_outputs = torch.repeat_interleave(torch.arange(columns), index.indptr_t.diff())
    taken = index.permutation.long()
    assert torch.equal(by_inputs[taken], index.indices_t.long())
    assert torch.equal(index.indices[taken].long(), by_outputs)
    assert index.blocks == taken.unique().numel() == pattern.nnz
    assert index.density == pytest.approx(pattern.nnz / (rows * columns))
    assert (index.n_in, index.n_out) == (16 * rows, 16 * columns)
    for order, pointers in ((index.order, index.indptr), (index.order_t, index.indptr_t)):
        counts = pointers.diff()[order.long()]
        assert (counts.diff() <= 0).all()
        assert order.dtype == torch.int32
        assert torch.equal(order.sort().values.long(), torch.arange(order.numel()))
    assert index.most == index.indptr.diff().max()


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("systems", [[[2, 3, 4], [4, 6]], [[5]], [[3, 3], [3]], [[2, 2, 2, 2]]])
def test_every_radix_layer_is_recognised(systems, shift):
    spec = tg.RadixNet(systems=systems, shift=shift)
    nodes = spec.sizes[0]
    layers = iter(tg.generate(spec).layers)
    for system in systems:
        place = 1
        for radix in system:
            found = found_in(next(layers))
            last = radix * place == nodes  # both shifts join the same nodes
            assert found == Circulant(nodes=nodes, radix=radix, place=place, shift=-1 if last else shift)
            assert found.ring == nodes // place
            assert found.is_block_diagonal == last
            place *= radix


def test_the_identity_is_a_ring_of_one_node_each():
    assert found_in(tg.as_pattern(sp.eye_array(6))) == Circulant(nodes=6, radix=1, place=6, shift=-1)


@pytest.mark.parametrize(
    "pattern",
    [
        np.zeros((3, 3)),
        np.ones((2, 3)),
        np.eye(4)[::-1],
        np.eye(5) + np.roll(np.eye(5), 2, axis=1),  # 2 does not divide 5
        np.eye(6) + np.roll(np.eye(6), 1, axis=1) + np.roll(np.eye(6), 3, axis=1),  # steps of two lengths
        np.eye(4) + np.diag([1, 1, 1], 1),  # the last node has one neighbour less
    ],
    ids=["empty", "not square", "turned", "no divisor", "two steps", "uneven"],
)
def test_other_patterns_are_not(pattern):
    assert found_in(tg.as_pattern(sp.csr_array(pattern))) is None


def test_one_moved_connection_is_enough():
    pattern = tg.generate(tg.RadixNet(systems=[[3, 4]])).layers[0].toarray()
    pattern[5, 5], pattern[5, 9] = False, True
    assert found_in(tg.as_pattern(sp.csr_array(pattern))) is None
