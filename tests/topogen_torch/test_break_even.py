"""Patterns that are nearly full: the batch decides how they are multiplied, and nothing else changes."""

from __future__ import annotations

import logging
import threading
import tracemalloc

import numpy as np
import pytest
import torch
import torch._dynamo

from topogen.errors import SpecError
from topogen_torch import SparseLinear, _break_even, never_dense
from topogen_torch._break_even import BREAK_EVEN, may_be_dense, multiplies_densely
from topogen_torch._ops import _crowded

SIZES = (530, 520)


@pytest.fixture(autouse=True)
def unannounced(monkeypatch):
    monkeypatch.setattr(_break_even, "_announced", False)


@pytest.fixture
def scattered(monkeypatch):
    """The shapes of the panels that were multiplied densely."""
    seen, scatter = [], _crowded.kernels.scatter

    def spy(*args, out, **options):
        seen.append(out.shape)
        return scatter(*args, out=out, **options)

    monkeypatch.setattr(_crowded.kernels, "scatter", spy)
    return seen


def layer_of(density, sizes=SIZES, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    layer = SparseLinear(np.random.default_rng(0).random(sizes) < density, dtype=dtype, bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer


def test_the_rule_knows_density_shape_and_batch():
    n = 512 * 512
    assert 0.3 < BREAK_EVEN < 1  # sparse wins at 70 % sparsity, whatever the batch
    assert not may_be_dense(int(0.3 * n), 512, 512)
    assert not may_be_dense(511 * 1000 - 1, 511, 1000)
    assert may_be_dense(n - 1, 512, 512)
    assert [multiplies_densely(batch, n - 1, 512, 512) for batch in (0, 31, 32, 4096)] == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_and_sparse_agree_forward_and_backward(dtype, bias, scattered):
    layer = layer_of(0.9, dtype=dtype, bias=bias)
    x = torch.randn(7, 11, SIZES[0], dtype=dtype, requires_grad=True)
    wanted = (x, *layer.parameters())
    y = layer(x)
    assert scattered == [(128, 520)] * 4 + [(18, 520)]
    with never_dense():
        z = layer(x)
    assert len(scattered) == 5
    true = x.detach().double() @ torch.from_numpy(layer.to_scipy().toarray()).double()
    true = true + layer.bias.double() if bias else true
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(y.double(), true, **tolerance)
    torch.testing.assert_close(z.double(), true, **tolerance)
    for mine, other in zip(
        torch.autograd.grad(y.square().sum(), wanted), torch.autograd.grad(z.square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("density", "batch"), [(0.5, 512), (0.9, 16), (0.9, 0)])
def test_below_the_break_even_nothing_is_dense(density, batch, scattered):
    layer = layer_of(density)
    assert layer(torch.zeros(batch, 530, dtype=torch.float64)).shape == (batch, 520)
    assert scattered == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(530, 520), (512, 1024), (777, 600)])
def test_the_result_does_not_depend_on_the_threads(dtype, sizes, scattered):
    layer = layer_of(0.9, sizes, dtype)
    x = torch.randn(96, sizes[0], dtype=dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(layer(x).detach())
    finally:
        torch.set_num_threads(before)
    assert scattered
    assert all(torch.equal(y, found[0]) for y in found)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_one_captured_graph_holds_for_every_batch(scattered):
    layer = layer_of(0.9)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (96, 5, 64):
        x = torch.randn(batch, SIZES[0], dtype=torch.float64, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x))
        (dx,) = torch.autograd.grad(y.sum(), x)
        (true,) = torch.autograd.grad(layer(x).sum(), x)
        torch.testing.assert_close(dx, true)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_torchs_own_checks_pass():
    layer = layer_of(0.9)
    index = (layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation)
    for batch in (4, 64):
        x = torch.randn(batch, SIZES[0], dtype=torch.float64)
        for bias in (layer.bias.detach(), None):
            torch.library.opcheck(torch.ops.topogen.crowded_linear.default, (x, layer.values.detach(), bias, *index))


def test_the_whole_dense_matrix_never_exists():
    layer = layer_of(0.9, (4096, 512), torch.float32, bias=False)
    x = torch.randn(64, 4096)
    layer(x)
    tracemalloc.start()
    layer(x)
    peak = tracemalloc.get_traced_memory()[1]  # numpy's arrays: the panel is one
    tracemalloc.stop()
    assert 128 * 512 * 4 <= peak < 4 * 128 * 512 * 4 < 4096 * 512 * 4


def test_it_is_said_once_with_reason_and_cost(caplog):
    layer = layer_of(0.9)
    with caplog.at_level(logging.WARNING, "topogen"):
        layer(torch.zeros(5, 530, dtype=torch.float64))
        assert caplog.messages == []
        layer(torch.zeros(64, 530, dtype=torch.float64))
        layer(torch.zeros(64, 530, dtype=torch.float64))
    (message,) = caplog.messages
    assert message == (
        f"SparseLinear (530 x 520, density {layer.density:.3g}) is above its break-even density, {BREAK_EVEN:g}, and "
        "multiplies densely, which is faster; each call takes 532,480 bytes for 128 rows of the matrix. "
        "topogen_torch.never_dense() switches it off."
    )


def test_never_dense_ends_with_its_block_and_stays_in_its_thread(scattered):
    layer, x = layer_of(0.9), torch.zeros(64, 530, dtype=torch.float64)
    other = threading.Thread(target=layer, args=(x,))
    with never_dense():
        layer(x)
        assert scattered == []
        other.start()
        other.join()
        assert len(scattered) == 5
    with pytest.raises(SpecError), never_dense():
        layer(x.float())
    layer(x)
    assert len(scattered) == 10
