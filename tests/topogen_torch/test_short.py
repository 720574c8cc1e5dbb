"""bfloat16 on the CPU: sums in float32, rounded once, whatever the batch; and what PyTorch asks of a layer."""

import copy
import io

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen_torch as tt
from topogen.errors import SpecError
from topogen.kernels import _team, short_launch
from topogen_torch._ops import to_dense

SHORT = torch.bfloat16
BATCHES = [0, 1, 2, 16, 17, 31, 32, 33, 64, 95, 97, 200]


def layer_of(mask, bias=True):
    torch.manual_seed(0)
    layer = tt.SparseLinear(mask, bias=bias, dtype=SHORT)
    layer._give_up_panels()
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer


def exact(layer, x):
    """The product in float64, of the numbers that the bfloat16 are."""
    weights = to_dense(layer.values.double(), layer.indptr, layer.indices, layer.out_features)
    y = x.double() @ weights
    return y if layer.bias is None else y + layer.bias.double()


def assert_rounded_once(y, true):
    """Half a unit of bfloat16's 8 bits away, and what float32 sums of large terms that cancel may add."""
    assert y.dtype == SHORT
    slack = 1e-6 * true.abs().max().item() if true.numel() else 0.0
    assert ((y.double() - true).abs() <= true.abs() * 2**-8 + slack).all()


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 70), st.integers(1, 70)), elements=st.booleans(), fill=st.just(False)),
    st.sampled_from(BATCHES),
    st.booleans(),
)
def test_every_batch_equals_the_float64_product(mask, batch, bias):
    layer = layer_of(mask, bias)
    x = torch.randn(batch, mask.shape[0]).to(SHORT)
    assert_rounded_once(layer(x), exact(layer, x))


@pytest.mark.parametrize("inputs", [16, 4000, 20_000])
def test_tiles_of_every_width_and_panels(inputs, monkeypatch):
    """Wide layers have narrow tiles, and large batches are walked in parts."""
    monkeypatch.setattr(short_launch, "_PANEL_BYTES", 1 << 19)
    layer = layer_of(np.random.default_rng(0).random((inputs, 65)) < 100 / inputs)
    widths = {short_launch._samples(batch, inputs) for batch in (32, 64, 96, 256)}
    assert widths <= ({32} if inputs == 20_000 else {32, 64, 96})
    for batch in (96, 250):
        x = torch.randn(batch, inputs).to(SHORT)
        assert_rounded_once(layer(x), exact(layer, x))


@pytest.mark.parametrize("batch", [0, 1, 10, 17, 40, 130])
def test_gradients_are_those_of_float32_rounded(batch):
    layer = layer_of(np.random.default_rng(1).random((50, 40)) < 0.3)
    long = copy.deepcopy(layer).float()
    x = torch.randn(batch, 50).to(SHORT).requires_grad_()
    dy = torch.randn(batch, 40).to(SHORT)
    found = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    wide = x.detach().float().requires_grad_()
    true = torch.autograd.grad(long(wide), [wide, *long.parameters()], dy.float())
    for a, b in zip(found, true, strict=True):
        assert_rounded_once(a, b.double())


def test_what_has_no_gradient_costs_none():
    layer = layer_of(np.random.default_rng(8).random((50, 40)) < 0.3)
    x = torch.randn(40, 50).to(SHORT)
    for frozen in ("values", "bias"):
        copied = copy.deepcopy(layer)
        getattr(copied, frozen).requires_grad_(False)
        for wants in (False, True):
            copied.zero_grad()
            copied(x.clone().requires_grad_(wants)).sum().backward()
            assert getattr(copied, frozen).grad is None
            other = "bias" if frozen == "values" else "values"
            reference = torch.autograd.grad(layer(x).sum(), getattr(layer, other))[0]
            torch.testing.assert_close(getattr(copied, other).grad, reference)


def test_nan_and_infinity_go_through_and_nothing_else_is_touched():
    layer = layer_of(np.eye(48, dtype=bool), bias=False)
    torch.nn.init.ones_(layer.values)
    x = torch.ones(40, 48, dtype=SHORT)
    x[3, 5], x[20, 30], x[39, 47] = float("nan"), float("inf"), 3.0e38
    y = layer(x)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], x[~x.isnan()])


def test_rounding_is_to_the_even_neighbour():
    layer = tt.SparseLinear(np.array([[1, 0], [1, 0]]), bias=False, dtype=SHORT)
    torch.nn.init.ones_(layer.values)
    high = torch.tensor([1.0, 1.0078125, 1.015625]).repeat(32)  # one unit apart
    x = torch.stack([high, torch.full_like(high, 2**-8)], 1).to(SHORT)  # and half a unit above
    assert torch.equal(layer(x)[:, 0], x.float().sum(1).to(SHORT))
    assert layer(x)[:3, 0].tolist() == [1.0, 1.015625, 1.015625]


def test_the_result_does_not_depend_on_the_threads(monkeypatch):
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_team, "_WORTH_OPENMP", 1)
    layer = layer_of(np.random.default_rng(2).random((300, 200)) < 0.2)
    x, dy = torch.randn(150, 300).to(SHORT).requires_grad_(), torch.randn(150, 200).to(SHORT)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3, 8):
            torch.set_num_threads(count)
            y = layer(x)
            results.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_leading_dimensions_strides_and_a_crowded_pattern():
    layer = layer_of(np.random.default_rng(3).random((600, 520)) < 0.9)
    x = torch.randn(600, 4, 10).to(SHORT).permute(2, 1, 0)
    with tt.never_dense():
        sparse = layer(x)
    assert sparse.shape == (10, 4, 520)
    for y in (sparse, layer(x)):
        torch.testing.assert_close(y.double(), exact(layer, x), rtol=2**-7, atol=0.1)


def test_opcheck():
    layer = layer_of(np.random.default_rng(4).random((20, 30)) < 0.4)
    index = layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation
    for batch in (1, 5, 40):
        x = torch.randn(batch, 20).to(SHORT)
        torch.library.opcheck(
            torch.ops.topogen.short_linear.default, (x, layer.values.detach(), layer.bias.detach(), *index)
        )
        for needs in ([True] * 3, [False, True, False], [True, False, True]):
            arguments = torch.randn(batch, 30).to(SHORT), x, layer.values.detach(), *index[:2], needs
            torch.library.opcheck(torch.ops.topogen.short_linear_backward.default, arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_compiled_for_every_batch():
    layer = layer_of(np.random.default_rng(5).random((20, 30)) < 0.4)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (40, 10, 33):
        x = torch.randn(batch, 20).to(SHORT).requires_grad_()
        y = compiled(x)
        assert torch.equal(y, layer(x))
        y.sum().backward()
        assert x.grad.dtype == SHORT


def test_autocast_keeps_float32_masters():
    layer = layer_of(np.random.default_rng(6).random((20, 30)) < 0.4).float()
    x = torch.randn(40, 20)
    with torch.autocast("cpu", SHORT):
        y = layer(x)
    y.sum().backward()
    short = copy.deepcopy(layer).to(SHORT)
    assert torch.equal(y, short(x.to(SHORT)))
    assert layer.values.grad.dtype == torch.float32


def test_a_state_is_loaded_and_exported():
    layer = layer_of(np.random.default_rng(7).random((20, 30)) < 0.4)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = tt.SparseLinear(np.ones((20, 30)), dtype=SHORT)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(40, 20).to(SHORT)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize(
    ("values", "bias", "message"),
    [
        (torch.zeros(3), None, r"The values of a sparse layer must be torch.bfloat16 of shape \(4,\)"),
        (
            torch.zeros(4, dtype=SHORT), torch.zeros(3, dtype=SHORT),
            r"The bias of a sparse layer must be torch.bfloat16 of shape \(4,\). Got torch.bfloat16 of shape \(3,\)",
        ),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_refused(values, bias, message):
    layer = tt.SparseLinear(np.eye(4), dtype=SHORT)
    index = layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation
    with pytest.raises(SpecError, match=message):
        torch.ops.topogen.short_linear(torch.zeros(40, 4, dtype=SHORT), values, bias, *index)
