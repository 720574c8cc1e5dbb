"""One sample at a time, which nothing packs: against the dense product, whatever the pattern and threads."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen_torch as tt
from topogen.errors import SpecError
from topogen.kernels import _team, launch
from topogen_torch._ops import to_dense


def layer_of(mask, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    layer = tt.SparseLinear(mask, bias=bias, dtype=dtype)
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer


def assert_dense(layer, x, dy):
    wanted = [x, *layer.parameters()]
    weights = to_dense(layer.values, layer.indptr, layer.indices, layer.out_features)
    true = x @ weights if layer.bias is None else x @ weights + layer.bias
    mine = layer(x)
    torch.testing.assert_close(mine, true)
    for a, b in zip(torch.autograd.grad(mine, wanted, dy), torch.autograd.grad(true, wanted, dy), strict=True):
        torch.testing.assert_close(a, b)


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 90), st.integers(1, 90)), elements=st.booleans(), fill=st.just(False)),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_one_sample_equals_the_dense_product(mask, dtype, bias):
    layer = layer_of(mask, dtype, bias)
    x = torch.randn(1, mask.shape[0], dtype=dtype, requires_grad=True)
    assert_dense(layer, x, torch.randn(1, mask.shape[1], dtype=dtype))


def test_parts_give_the_same_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(launch, "_PART", 100)
    layer = layer_of(np.random.default_rng(0).random((301, 203)) < 0.2, torch.float32)
    x, dy = torch.randn(1, 301, requires_grad=True), torch.randn(1, 203)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3, 3, 8):
            torch.set_num_threads(count)
            y = layer(x)
            results.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_torchs_own_checks_pass():
    layer = layer_of(np.random.default_rng(0).random((9, 7)) < 0.4)
    x = torch.randn(1, 9, dtype=torch.float64)
    for bias in (layer.bias.detach(), None):
        arguments = (x, layer.values.detach(), bias, layer.indptr, layer.indices, 7)
        torch.library.opcheck(torch.ops.topogen.sparse_single.default, arguments)


def test_parameters_that_the_index_does_not_fit_are_refused():
    """A kernel would read beyond them."""
    layer = layer_of(np.eye(4, dtype=bool), torch.float32)
    for batch in (1, 5):
        x = torch.zeros(batch, 4)
        with pytest.raises(
            SpecError,
            match=r"^The values of a sparse layer must be torch.float32 of shape \(4,\)\. "
            r"Got torch.float32 of shape \(3,\)\.$",
        ):
            torch.func.functional_call(layer, {"values": torch.zeros(3)}, (x,))
        with pytest.raises(
            SpecError,
            match=r"^The bias of a sparse layer must be torch.float32 of shape \(4,\)\. "
            r"Got torch.float64 of shape \(4,\)\.$",
        ):
            torch.func.functional_call(layer, {"bias": torch.zeros(4, dtype=torch.float64)}, (x,))
