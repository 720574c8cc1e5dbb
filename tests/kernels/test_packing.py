"""Packing into feature-major groups and back: against numpy's own reshaping, whatever the shapes and threads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import _team


@given(
    st.integers(0, 70), st.integers(0, 150), st.integers(1, 4), st.sampled_from([np.float32, np.float64]),
    st.integers(1, 3),
)  # fmt: skip
def test_packing_is_a_padded_transpose_and_unpacking_undoes_it(batch, features, vectors, dtype, threads):
    samples = vectors * 64 // np.dtype(dtype).itemsize
    groups = -(-batch // samples)
    x = np.random.default_rng(batch).standard_normal((batch, features)).astype(dtype)
    padded = np.zeros((groups * samples, features), dtype)
    padded[:batch] = x
    packed = np.full((groups, features, samples), np.nan, dtype)
    kernels.pack(x, samples, out=packed, threads=threads)
    assert np.array_equal(packed, padded.reshape(groups, samples, features).transpose(0, 2, 1))
    assert np.array_equal(kernels.unpack(packed, batch, threads=threads), x)


def test_several_threads_move_every_element(monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    x = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    for _ in range(10):
        packed = kernels.pack(x, 64, threads=3)
        assert np.array_equal(packed, kernels.pack(x, 64))
        assert np.array_equal(kernels.unpack(packed, 300, threads=3), x)


def test_bad_arguments_are_named():
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(
        SpecError, match=r"^The 'samples' parameter of pack must be a positive multiple of 16, such as 32\. Got 20\.$"
    ):
        kernels.pack(x, 20)
    with pytest.raises(
        SpecError, match=r"^The 'samples' parameter of unpack must be a positive multiple of 8, such as 8\. Got 5\.$"
    ):
        kernels.unpack(np.zeros((1, 2, 5)), 3)
    with pytest.raises(SpecError, match=r"^The 'packed' parameter of unpack must have 64 elements\. Got 32\.$"):
        kernels.unpack(np.zeros((1, 2, 16), np.float32), 17)
