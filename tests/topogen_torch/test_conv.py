"""The sparse convolutions against torch's dense ones in float64, and everything else that a drop-in must do."""

import copy
import io
import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topogen.errors import SpecError
from topogen_torch import SparseConv1d, SparseConv2d
from topogen_torch._drop_in import assert_drop_in_contract
from topogen_torch._ops import _convolution, _dense
from topogen_torch.testing import assert_layer_contract

# torch says so of its own dense convolution
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

RNG = np.random.default_rng(0)
MASK = RNG.random((5, 6)) < 0.5
MASK[[2]] = MASK[:, [4]] = False
LIST = [RNG.random((5, 6)) < 0.4 for _ in range(6)]
LINE = [RNG.random((5, 6)) < 0.4 for _ in range(3)]


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Dense layers as small as these gain nothing from two, and on a busy machine their waiting costs seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dense_weight(layer):
    """Build the dense kernel (out, in, *kernel_size) from the pattern and the values alone; differentiable."""
    size, values = layer.kernel_size, layer.values
    weight = values.new_zeros(layer.out_channels, layer.in_channels, *size)
    if isinstance(layer.pattern, list):
        start = 0
        for place, pattern in zip(np.ndindex(*size), layer.pattern, strict=True):
            rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in pattern.nonzero())
            where = (columns, rows, *(torch.tensor(i) for i in place))
            weight = weight.index_put(where, values[start : start + len(rows)])
            start += len(rows)
        return weight
    rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in layer.pattern.nonzero())
    return weight.index_put((columns, rows), values)


def densely(layer, x):
    """Return what the layer should, by the dense layer's own arithmetic."""
    dense = type(layer)._dense_kind
    conv = dense(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=False, padding_mode=layer.padding_mode, dtype=x.dtype,
    )  # fmt: skip
    y = torch.func.functional_call(conv, {"weight": dense_weight(layer)}, (x,))
    return y if layer.bias is None else y + layer.bias.view(-1, *(1,) * len(layer.kernel_size))


def filled(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(RNG.standard_normal(tuple(parameter.shape))))
    return layer


@st.composite
def layers(draw):
    """A layer of either kind with all its options, and an input that it takes, unbatched or of any batch, 0 too."""
    kind = draw(st.sampled_from([SparseConv1d, SparseConv2d]))
    n, rng = kind.dimensions, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, dilation = (draw(st.tuples(*[st.integers(1, most)] * n)) for most in (4, 3))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 2)] * n)))
    stride = (1,) * n if padding == "same" else draw(st.tuples(*[st.integers(1, 3)] * n))
    shape, density = draw(st.tuples(st.integers(1, 5), st.integers(1, 7))), draw(st.sampled_from([0, 0.2, 0.6, 1]))
    count = int(np.prod(size)) if draw(st.booleans()) else 0
    patterns = [rng.random(shape) < density for _ in range(max(1, count))]
    mode = draw(st.sampled_from(["zeros"] * 3 + ["reflect", "replicate", "circular"]))
    layer = kind(
        patterns if count else patterns[0], size, stride=stride, padding=padding, dilation=dilation,
        bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip
    around = layer._around()
    sizes = [
        max(d * (k - 1) + 1 - before - after, 1 + max(before, after)) + draw(st.integers(0, 7))
        for k, d, before, after in zip(size, dilation, around[::2], around[1::2], strict=True)
    ]
    # torch pads an empty batch with zeros only
    batch = draw(st.sampled_from([(), (1,), (2,), (5,), (0,)] if mode == "zeros" else [(), (2,)]))
    x = torch.from_numpy(rng.standard_normal((*batch, shape[0], *sizes)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    return layer, x.requires_grad_()


@settings(deadline=None, max_examples=100)
@given(layers())
def test_a_sparse_convolution_equals_the_dense_one(problem):
    layer, x = problem
    y, true = layer(x), densely(layer, x)
    torch.testing.assert_close(y, true)
    wanted = x, *layer.parameters()
    dy = torch.randn_like(y)
    found, expected = (torch.autograd.grad(z, wanted, dy, allow_unused=True) for z in (y, true))
    for mine, other, parameter in zip(found, expected, wanted, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(parameter) if other is None else other)


PAIRS = {
    "channels": SparseConv2d(MASK, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), dtype=torch.float64),
    "unstructured": SparseConv2d(LIST, (2, 3), padding="same", bias=False, dtype=torch.float64),
    "circular": SparseConv2d(MASK, (3, 2), padding=2, padding_mode="circular", dtype=torch.float64),
    "pointwise": SparseConv2d(MASK, 1, stride=2, dtype=torch.float64),
    "line": SparseConv1d(MASK, 4, stride=2, padding=3, dtype=torch.float64),
    "even line": SparseConv1d(MASK, 4, padding="same", dtype=torch.float64),
    "unstructured line": SparseConv1d(LINE, 3, dilation=2, padding="same", dtype=torch.float64),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_sparse_convolution_stands_in_for_the_dense_one(name):
    layer = filled(PAIRS[name])
    sizes = (9, 8) if layer.dimensions == 2 else (11,)
    x = torch.from_numpy(RNG.standard_normal((3, 5, *sizes)))
    assert_drop_in_contract(layer, layer.to_conv(), x)


class Pointwise(SparseConv1d):
    """A linear layer: the one offset of a kernel of size 1, listed."""

    def __init__(self, pattern, **options):
        super().__init__([pattern], 1, **options)

    @property
    def pattern(self):
        return super().pattern[0]

    def to_scipy(self):
        pattern, values = self.pattern, self.values.detach().numpy().copy()
        return sp.csr_array((values, pattern.indices, pattern.indptr), shape=pattern.shape)

    def forward(self, x):
        return super().forward(x.reshape(-1, self.in_channels, 1)).view(*x.shape[:-1], self.out_channels)


def test_a_pointwise_convolution_keeps_the_contract_of_a_linear_layer():
    assert_layer_contract(Pointwise)


@pytest.mark.parametrize("layer", [PAIRS["channels"], PAIRS["unstructured"]], ids=["channels", "unstructured"])
def test_gradients_equal_finite_differences(layer):
    x = torch.from_numpy(RNG.standard_normal((2, 5, 4, 5))).requires_grad_()
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize("name", ["channels", "unstructured"])
def test_torchs_own_checks_pass(name):
    layer = PAIRS[name]
    x = torch.from_numpy(RNG.standard_normal((2, 5, 7, 8)))
    window = layer._window(layer._around())
    flat = [*window.size, *window.stride, *window.padding, *window.dilation]
    transposed = layer.indptr_t, layer.indices_t, layer.permutation
    forward, backward = (getattr(torch.ops.topogen, f"sparse_convolution{tail}").default for tail in ("", "_backward"))
    values = layer.values.detach()
    for bias in (torch.ones(6, dtype=torch.float64), None):
        torch.library.opcheck(forward, (x, values, bias, layer.indptr, *transposed, flat))
    dy = torch.randn(2, 6, *window.output(7, 8), dtype=torch.float64)
    for needs in ([True, True, True], [False, True, False], [True, False, False], [False, False, False]):
        torch.library.opcheck(backward, (dy, x, values, layer.indptr, layer.indices, flat, needs))


@pytest.mark.parametrize("batch", [1, 40])
def test_larger_images_give_one_result_for_any_number_of_threads(batch):
    layer = filled(SparseConv2d(RNG.random((40, 30)) < 0.4, 3, padding=1))
    x = torch.randn(batch, 40, 33, 20, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = layer(x)
            results.append((y, *torch.autograd.grad(y, (x, layer.values, layer.bias), torch.ones_like(y))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_gradients_cannot_be_differentiated_again():
    x = torch.randn(1, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(PAIRS["channels"](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_of_the_input_changes_nothing(memory_format):
    layer, x = PAIRS["channels"], torch.from_numpy(RNG.standard_normal((2, 5, 6, 6)))
    one, other = (part.requires_grad_() for part in (x.clone(), x.contiguous(memory_format=memory_format)))
    assert torch.equal(layer(one), layer(other))
    layer(one).square().sum().backward()
    y = layer(other)
    y.contiguous(memory_format=memory_format).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", [MASK, [MASK] * 9], ids=["channels", "unstructured"])
def test_short_floats_are_computed_in_float32_and_rounded_once(dtype, pattern):
    layer = filled(SparseConv2d(pattern, 3, padding=1, dtype=dtype))
    x = torch.randn(2, 5, 6, 6, dtype=dtype)
    wide = copy.deepcopy(layer).float()
    assert torch.equal(layer(x), wide(x.float()).to(dtype))


@pytest.mark.parametrize("pattern", [MASK, LIST], ids=["channels", "unstructured"])
def test_dense_and_back_keeps_every_weight(pattern):
    layer = filled(SparseConv2d(pattern, (2, 3), padding=1, dilation=2, padding_mode="reflect", dtype=torch.float64))
    layer.eval()
    conv = layer.to_conv()
    assert type(conv) is nn.Conv2d
    assert not conv.training
    assert torch.equal(conv.weight, dense_weight(layer))
    assert torch.equal(conv.bias, layer.bias)
    back = SparseConv2d.from_conv(conv, pattern)
    assert not back.training
    assert str(back) == str(layer)
    assert torch.equal(back.values, layer.values)
    assert torch.equal(back.bias, layer.bias)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_is_a_block_diagonal_pattern(groups):
    conv = nn.Conv2d(4, 8, 3, groups=groups, padding=1, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    layer = SparseConv2d.from_conv(conv)
    assert layer.nnz == conv.weight.numel()
    torch.testing.assert_close(layer(x), conv(x))
    within = layer.pattern
    listed = SparseConv2d.from_conv(conv, [within] * 9)
    torch.testing.assert_close(listed(x), conv(x))
    line = nn.Conv1d(4, 8, 3, groups=groups, dtype=x.dtype)
    torch.testing.assert_close(SparseConv1d.from_conv(line)(x[0, :, 0]), line(x[0, :, 0]))


def test_weights_start_at_hes_scale_for_the_fan_in_that_is_there():
    mask = np.zeros((64, 3), bool)
    mask[:8, 0] = mask[:, 1] = True
    layer = SparseConv2d(mask, 5)
    assert layer.fan_in().tolist() == [8 * 25, 64 * 25, 0]
    assert not layer.bias.any()
    for output, fan_in in ((0, 200), (1, 1600)):
        weights = layer.values.detach()[layer.indices == output]
        assert weights.abs().max() <= (6 / fan_in) ** 0.5
        assert weights.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    listed = SparseConv2d([mask] * 25, 5)
    assert listed.fan_in().tolist() == layer.fan_in().tolist()


def test_the_pattern_is_a_copy_of_what_was_given():
    layer = SparseConv2d(LIST, (2, 3))
    assert [np.array_equal(mine.toarray(), one) for mine, one in zip(layer.pattern, LIST, strict=True)] == [True] * 6
    layer.pattern[0].data[:] = False
    assert layer.pattern[0].data.all()
    assert np.array_equal(SparseConv2d(MASK, 3).pattern.toarray(), MASK)
    assert layer.density == pytest.approx(np.mean(LIST))
    assert SparseConv2d(MASK, 3).nnz == MASK.sum() * 9


def test_a_state_brings_its_pattern_and_a_wrong_one_changes_nothing():
    layer, other = (filled(SparseConv2d(mask, 3, dtype=torch.float64)) for mask in (MASK, ~MASK))
    parameter, file = other.values, io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    assert other.values is parameter
    before = copy.deepcopy(other.state_dict())
    for donor in (SparseConv2d([MASK] * 9, 3), SparseConv2d(MASK, 2), SparseConv2d(MASK, 3, bias=False)):
        with pytest.raises(RuntimeError, match="The state of SparseConv2d '' is refused"):
            other.load_state_dict(donor.state_dict(), strict=False)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_pattern_that_is_full_is_computed_densely():
    for pattern in (np.ones((5, 6)), [np.ones((5, 6))] * 6):
        layer = filled(SparseConv2d(pattern, (2, 3), padding="same", dtype=torch.float64))
        x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(x), densely(layer, x))


def test_nothing_of_the_size_of_the_dense_kernel_is_allocated():
    n = 1 << 17  # dense: 618 GB
    pattern = sp.csr_array((np.ones(3), ([1, 2, 70_000], [0, n - 1, 5])), shape=(n, n))
    for layer in (SparseConv2d(pattern, 3, padding=1, bias=False), SparseConv1d([pattern] * 3, 3, padding=1)):
        x = torch.ones(1, n, *(1,) * layer.dimensions, requires_grad=True)
        layer(x).sum().backward()
        assert layer.values.grad.sum() == 3
        assert x.grad.count_nonzero() == 3


def test_a_device_without_a_kernel_is_dense_and_says_so_once(monkeypatch):
    layer, x = PAIRS["channels"], torch.randn(2, 5, 6, 7, dtype=torch.float64)
    true = layer(x)
    monkeypatch.setattr(_convolution, "KERNEL_DEVICES", set())
    monkeypatch.setattr(_dense, "_announced", set())
    with pytest.warns(UserWarning, match=r"^SparseConv2d has no kernel for device 'cpu' yet .* the 45 x 6 matrix"):
        y = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    torch.testing.assert_close(y, true)


def test_shapes_can_be_worked_out_on_the_meta_device():
    layer = SparseConv2d(MASK, 3, stride=2, device="meta")
    y = layer(torch.empty(2, 5, 9, 8, device="meta"))
    assert y.shape == (2, 6, 4, 3)
    assert y.is_meta


def test_the_layer_says_what_it_is():
    nnz, density = MASK.sum(), MASK.mean()
    assert repr(SparseConv2d(MASK, 3)) == (
        f"SparseConv2d(5, 6, kernel_size=(3, 3), stride=(1, 1), nnz={nnz * 9}, density={density:.4g}, bias=True)"
    )
    assert repr(SparseConv1d(MASK, 4, padding=2, dilation=3, padding_mode="circular", bias=False)) == (
        "SparseConv1d(5, 6, kernel_size=(4,), stride=(1,), padding=(2,), dilation=(3,), padding_mode=circular, "
        f"nnz={nnz * 4}, density={density:.4g}, bias=False)"
    )
    assert "padding=same" in repr(SparseConv2d(MASK, 3, padding="same"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kernel_size": 0}, "The 'kernel_size' parameter of SparseConv2d must be an int >= 1. Got 0."),
        (
            {"kernel_size": (3, 3, 3)},
            "The 'kernel_size' parameter of SparseConv2d must be an int >= 1 or a sequence of 2. Got (3, 3, 3).",
        ),
        ({"kernel_size": (3, 0)}, "The 'kernel_size[1]' parameter of SparseConv2d must be an int >= 1. Got 0."),
        ({"stride": 0}, "The 'stride' parameter of SparseConv2d must be an int >= 1. Got 0."),
        ({"dilation": 1.5}, "The 'dilation' parameter of SparseConv2d must be an int >= 1. Got 1.5."),
        ({"padding": -1}, "The 'padding' parameter of SparseConv2d must be an int >= 0. Got -1."),
        ({"padding": "full"}, "The 'padding' parameter of SparseConv2d must be 'same' or 'valid'. Got 'full'."),
        (
            {"padding": "same", "stride": 2},
            "The 'padding' parameter of SparseConv2d must be a number where the stride is not 1. Got 'same'.",
        ),
        (
            {"padding_mode": "mirror"},
            "The 'padding_mode' parameter of SparseConv2d must be 'zeros' or 'reflect' or 'replicate' or 'circular'. "
            "Got 'mirror'.",
        ),
        ({"bias": 1}, "The 'bias' parameter of SparseConv2d must be a bool. Got 1."),
        ({"dtype": torch.int32}, "The 'dtype' parameter of SparseConv2d must be a torch float type. Got torch.int32."),
        (
            {"pattern": [MASK] * 4},
            "The 'pattern' parameter of SparseConv2d must be one matrix, or a list of 9, one for each offset of the "
            "3 x 3 kernel. Got a list of 4.",
        ),
        (
            {"pattern": [MASK] * 8 + [MASK.T]},
            "The 'pattern' parameter of SparseConv2d must hold matrices of one shape, (5, 6) as the first. Got (6, 5) "
            "at 8.",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        SparseConv2d(**({"pattern": MASK, "kernel_size": 3} | arguments))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (
            torch.zeros(2, 6, 8, 8),
            "The input of SparseConv2d must have shape (batch, 5, height, width) or (5, height, width). "
            "Got (2, 6, 8, 8).",
        ),
        (
            torch.zeros(5, 8),
            "The input of SparseConv2d must have shape (batch, 5, height, width) or (5, height, width). Got (5, 8).",
        ),
        (
            torch.zeros(1, 5, 2, 8),
            "The input of SparseConv2d must be at least 3 x 5, or no output is left. Got 2 x 8.",
        ),
        (
            torch.zeros(1, 5, 8, 8, dtype=torch.float64),
            "The input of SparseConv2d must be torch.float32 as its values are. Got torch.float64.",
        ),
        (
            torch.zeros(1, 5, 8, 8, device="meta"),
            "The input of SparseConv2d must be on cpu as its values are. Got meta.",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named(x, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        SparseConv2d(MASK, (5, 7), padding=1)(x)


@pytest.mark.parametrize(
    ("conv", "pattern", "sentence"),
    [
        (nn.Linear(2, 3), None, "The 'conv' parameter of from_conv must be a Conv2d. Got Linear("),
        (
            nn.Conv2d(6, 5, 3),
            MASK,
            "The 'pattern' parameter of from_conv must have the shape (inputs, outputs) of the layer, (6, 5). "
            "Got (5, 6).",
        ),
        (
            nn.Conv2d(4, 4, 3, groups=2),
            np.eye(4) + np.eye(4, k=2),
            "The 'pattern' parameter of from_conv must join channels of the same of the 2 groups only. "
            "Got a connection from 0 to 2.",
        ),
    ],
)
def test_a_convolution_that_cannot_be_taken_over_is_named(conv, pattern, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}"):
        SparseConv2d.from_conv(conv, pattern)
