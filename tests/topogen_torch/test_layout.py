"""Index buffers: what they hold, and what is refused when they come from outside."""

import re

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from topogen import as_pattern, pattern_hash
from topogen.errors import SpecError
from topogen_torch._layout import (
    checked_pattern,
    derived_index,
    is_full,
    refuse_wide,
    stored_index,
    to_pattern,
)

masks = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks)
def test_the_buffers_determine_the_pattern(mask):
    pattern = as_pattern(mask)
    index = stored_index(pattern, "SparseLinear")
    back = to_pattern(index["indptr"], index["indices"], mask.shape[1])
    assert np.array_equal(back.toarray(), mask)
    assert back.has_canonical_format
    assert index["sizes"].tolist() == list(mask.shape)
    assert bytes(index["pattern_hash"].tolist()).hex() == pattern_hash(pattern)
    assert checked_pattern(index, mask.shape, "SparseLinear").nnz == mask.sum()
    kinds = {"indptr": torch.int32, "indices": torch.int32, "sizes": torch.int64, "pattern_hash": torch.uint8}
    assert {name: buffer.dtype for name, buffer in index.items()} == kinds


@given(masks)
def test_the_derived_index_lists_each_output_with_places_in_value_ordering(mask):
    index = derived_index(as_pattern(mask))
    if mask.all():
        assert all(buffer.numel() == 0 for buffer in index.values())
        return
    order = np.full(mask.shape, -1)
    order[mask] = np.arange(mask.sum())
    indptr = index["indptr_t"].numpy()
    for output in range(mask.shape[1]):
        own = slice(indptr[output], indptr[output + 1])
        assert np.array_equal(index["indices_t"].numpy()[own], np.flatnonzero(mask[:, output]))
        assert np.array_equal(index["permutation"].numpy()[own], order[mask[:, output], output])
    assert all(buffer.dtype == torch.int32 for buffer in index.values())


def test_a_pattern_from_buffers_shares_no_memory_with_them():
    index = stored_index(as_pattern(np.eye(3)), "SparseLinear")
    pattern = to_pattern(index["indptr"], index["indices"], 3)
    pattern.indices[:] = 0
    assert index["indices"].tolist() == [0, 1, 2]


def test_full_means_every_possible_connection():
    assert is_full(as_pattern(np.ones((3, 2))))
    assert not is_full(as_pattern([[1, 1], [1, 0]]))


def test_int64_indices_are_accepted_and_narrowed():
    index = stored_index(as_pattern(np.eye(3)), "SparseLinear")
    wide = index | {"indptr": index["indptr"].long(), "indices": index["indices"].long()}
    assert checked_pattern(wide, (3, 3), "SparseLinear").indices.dtype == np.int32


MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]], bool)  # indptr 0 3 3 5, indices 0 1 3 1 2
BROKEN = [
    ("indptr", [0, 3, 3], "'indptr' and 'indices' must have shapes (4,) and (nnz,). Got (3,) and (5,)."),
    ("indptr", [1, 3, 3, 5], "'indptr' must rise from 0 to the 5 stored indices. Got 1 to 5."),
    ("indptr", [0, 3, 3, 4], "'indptr' must rise from 0 to the 5 stored indices. Got 0 to 4."),
    ("indptr", [0, 4, 3, 5], "'indptr' must rise from 0 to the 5 stored indices. Got 0 to 5."),
    ("indices", [[0, 1, 3, 1, 2]], "'indptr' and 'indices' must have shapes (4,) and (nnz,). Got (4,) and (1, 5)."),
    ("indices", [0, 1, 4, 1, 2], "'indices' must lie in [0, 3]. Got [0, 4]."),
    ("indices", [0, 1, 3, -1, 2], "'indices' must lie in [0, 3]. Got [-1, 3]."),
    ("indices", [0, 3, 1, 1, 2], "'indices' must rise within each input's connections. Got 1 after 3."),
    ("indices", [0, 1, 3, 2, 2], "'indices' must rise within each input's connections. Got 2 after 2."),
    ("sizes", [4, 3], "'sizes' must be [3, 4], (inputs, outputs). Got [4, 3]."),
]


@pytest.mark.parametrize(("name", "numbers", "sentence"), BROKEN)
def test_indices_that_are_not_canonical_are_refused(name, numbers, sentence):
    index = stored_index(as_pattern(MASK), "SparseLinear")
    broken = index | {name: torch.tensor(numbers, dtype=index[name].dtype)}
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        checked_pattern(broken, MASK.shape, "SparseLinear")


def test_another_pattern_of_the_same_sizes_does_not_match_the_hash():
    index = stored_index(as_pattern(MASK), "SparseLinear")
    other = MASK.copy()
    other[0, 0], other[0, 2] = False, True
    broken = index | {"indices": stored_index(as_pattern(other), "SparseLinear")["indices"]}
    found, promised = pattern_hash(as_pattern(other))[:12], pattern_hash(as_pattern(MASK))[:12]
    with pytest.raises(
        SpecError, match=f"^'pattern_hash' must be that of the stored indices, {found}... Got {promised}...$"
    ):
        checked_pattern(broken, MASK.shape, "SparseLinear")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("text", "a str"),
        (torch.zeros(5), "a cpu tensor of torch.float32"),
        (torch.zeros(5, dtype=torch.int32, device="meta"), "a meta tensor of torch.int32"),
    ],
)
def test_what_is_no_tensor_of_ints_is_refused(value, got):
    broken = stored_index(as_pattern(MASK), "SparseLinear") | {"indices": value}
    with pytest.raises(SpecError, match=f"^'indices' must be a tensor of ints. Got {got}.$"):
        checked_pattern(broken, MASK.shape, "SparseLinear")


def test_a_pattern_too_wide_for_int32_is_refused():
    sentence = (
        "The 'pattern' parameter of SparseLinear must have fewer than 2^31 inputs, outputs and connections. "
        "Got 1 x 2147483648 with 2."
    )
    wide = sp.csr_array((np.ones(2, bool), np.array([0, 2**31 - 1]), np.array([0, 2])), shape=(1, 2**31))
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        stored_index(as_pattern(wide), "SparseLinear")
    with pytest.raises(SpecError, match=r"Got 5 x 6 with 2147483648\.$"):
        refuse_wide(5, 6, 2**31, "SparseLinear")
    refuse_wide(2**31 - 1, 2**31 - 1, 2**31 - 1, "SparseLinear")
