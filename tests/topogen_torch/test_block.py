"""BlockSparseLinear and its operators: against dense float64, torch's own checks, training, state, conversion."""

import copy
import io
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch._dynamo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch._ops import Index, _blocks, _dense

PATTERN = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)  # an empty row and an empty column of blocks
SIZES = (1, 2, 3, 4, 8, 16, 32)


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Dense layers as small as these gain nothing from two, and on a busy machine their waiting costs seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_kernel(monkeypatch):
    """A machine whose processor is a device without a kernel."""
    monkeypatch.setattr(_blocks, "KERNEL_DEVICES", set())
    monkeypatch.setattr(_dense, "_announced", set())


def filled(pattern, block, *, bias=True, dtype=torch.float64, seed=0):
    """A layer whose parameters are all different from 0, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    layer = tt.BlockSparseLinear(pattern, block, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer


def dense(layer, x):
    """The output from the block pattern and the values alone, in float64: the truth."""
    block = layer.block
    weights = torch.zeros(layer.in_features, layer.out_features, dtype=torch.float64)
    for k, (i, j) in enumerate(zip(*np.nonzero(layer.block_pattern.toarray()), strict=True)):
        weights[i * block : (i + 1) * block, j * block : (j + 1) * block] = layer.values[k].double()
    y = x.double() @ weights
    return y if layer.bias is None else y + layer.bias.double()


def parameters(layer):
    return [layer.values] if layer.bias is None else [layer.values, layer.bias]


@st.composite
def layers(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    seed, density = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    pattern = np.random.default_rng(seed).random(shape) < density
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return filled(pattern, draw(st.sampled_from(SIZES)), bias=draw(st.booleans()), dtype=dtype, seed=seed)


@given(layers(), st.sampled_from([(), (0,), (1,), (2, 3), (2, 0, 3), (9,), (21,)]))
def test_output_and_gradients_equal_the_dense_matrix(layer, leading):
    dtype = layer.values.dtype
    x = torch.randn(*leading, layer.in_features, dtype=dtype).requires_grad_()
    y, true = layer(x), dense(layer, x)
    assert y.shape == (*leading, layer.out_features)
    assert y.dtype == dtype
    near = {"rtol": 0, "atol": 1e-3 if dtype == torch.float32 else 1e-11}
    torch.testing.assert_close(y.double(), true, **near)
    dy = torch.randn_like(y)
    wanted = (x, *parameters(layer))
    found = torch.autograd.grad(y, wanted, dy)
    expected = torch.autograd.grad(true, wanted, dy.double(), allow_unused=True, materialize_grads=True)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right, **near)


def test_an_input_that_is_not_contiguous_gives_the_same():
    layer = filled(PATTERN, 4)
    x = torch.randn(12, 7, dtype=torch.float64).t()
    torch.testing.assert_close(layer(x), dense(layer, x))


def test_gradients_agree_with_finite_differences():
    layer = filled(PATTERN, 3)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def call(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, (x, layer.values, layer.bias))


@pytest.mark.parametrize("block", [3, 8])
def test_torchs_own_checks_pass(block):
    layer = filled(PATTERN, block)
    x, dy = torch.randn(5, 3 * block, dtype=torch.float64), torch.randn(5, 4 * block, dtype=torch.float64)
    values, bias = (parameter.detach() for parameter in layer.parameters())
    csc = layer.indptr_t, layer.indices_t, layer.permutation
    torch.library.opcheck(torch.ops.topogen.block_linear.default, (x, values, bias, *csc))
    torch.library.opcheck(torch.ops.topogen.block_linear.default, (x, values, None, *csc))
    for needs in ([True, True, True], [False, True, False], [True, False, False], [False, False, False]):
        arguments = dy, x, values, layer.indptr, layer.indices, needs
        torch.library.opcheck(torch.ops.topogen.block_linear_backward.default, arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_a_fully_captured_graph_gives_the_same_gradients():
    layer = filled(PATTERN, 4)
    x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    wanted = (x, layer.values, layer.bias)
    torch.testing.assert_close(compiled(x), layer(x))
    mine, true = (torch.autograd.grad(module(x).square().sum(), wanted) for module in (compiled, layer))
    for a, b in zip(mine, true, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_gradients_cannot_be_differentiated_again():
    layer = filled(PATTERN, 4)
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_computed_in_float32_and_rounded_once(dtype):
    layer = filled(PATTERN, 4, dtype=dtype)
    wide = copy.deepcopy(layer).float()
    x = torch.randn(6, 12).to(dtype).requires_grad_()
    y, expected = layer(x), wide(x.float())
    assert torch.equal(y, expected.to(dtype))
    y.backward(torch.ones_like(y))
    expected.backward(torch.ones_like(expected))
    assert torch.equal(layer.values.grad, wide.values.grad.to(dtype))


def test_autocast_gives_what_a_linear_layer_gives():
    layer = filled(PATTERN, 4, dtype=torch.float32)
    x = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.values.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.1)


def test_a_device_without_a_kernel_is_dense_and_says_so_once(no_kernel):
    layer = filled(PATTERN, 4)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    sentence = (
        "BlockSparseLinear has no kernel for device 'cpu' yet and multiplies densely there: every call builds the "
        "12 x 16 matrix, 1,536 bytes, and saves no time."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(sentence)}$"):
        y = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    wanted = (x, layer.values, layer.bias)
    found = y, *torch.autograd.grad(y.square().sum(), wanted)
    _blocks.KERNEL_DEVICES.add("cpu")
    y = layer(x)
    for mine, true in zip(found, (y, *torch.autograd.grad(y.square().sum(), wanted)), strict=True):
        torch.testing.assert_close(mine, true)


def test_shapes_can_be_worked_out_on_the_meta_device():
    layer = tt.BlockSparseLinear(PATTERN, 4, device="meta")
    y = layer(torch.empty(2, 3, 12, device="meta"))
    assert y.shape == (2, 3, 16)
    assert y.is_meta
    assert layer.indices.tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(4, 8), "The input of BlockSparseLinear must have shape (..., 12). Got (4, 8)."),
        (torch.tensor(1.0), "The input of BlockSparseLinear must have shape (..., 12). Got ()."),
        (
            torch.zeros(4, 12, dtype=torch.float64),
            "The input of BlockSparseLinear must be torch.float32 as its values are. Got torch.float64.",
        ),
        (
            torch.zeros(4, 12, device="meta"),
            "The input of BlockSparseLinear must be on cpu as its values are. Got meta.",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named(x, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tt.BlockSparseLinear(PATTERN, 4)(x)


class MaskedLinear(nn.Module):
    """The truth: a dense (in, out) weight whose absent connections the forward pass cuts away."""

    def __init__(self, layer):
        super().__init__()
        self.mask = torch.from_numpy(layer.pattern.toarray())
        self.weight = nn.Parameter(torch.from_numpy(layer.to_scipy().toarray()))
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x):
        return x @ (self.weight * self.mask) + self.bias


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize(
    ("optimizer", "dtype", "tolerance"),
    [("SGD", torch.float64, 1e-9), ("Adam", torch.float64, 1e-9), ("SGD", torch.float32, 1e-4)],
)
def test_fifty_steps_equal_masked_dense_training(block, optimizer, dtype, tolerance):
    torch.manual_seed(1)
    rng = np.random.default_rng(3)
    first, second = (tt.BlockSparseLinear(rng.random(size) < 0.4, block, dtype=dtype) for size in ((5, 4), (4, 3)))
    sparse = nn.Sequential(first, nn.Tanh(), second)
    masked = nn.Sequential(MaskedLinear(first), nn.Tanh(), MaskedLinear(second))
    x = torch.randn(30, 5 * block, dtype=dtype)
    target = torch.randn(30, 3 * block, dtype=dtype)
    for model in (sparse, masked):
        stepper = OPTIMIZERS[optimizer](model.parameters())
        for _ in range(50):
            stepper.zero_grad()
            (model(x) - target).square().mean().backward()
            stepper.step()
    for mine, true in ((sparse[0], masked[0]), (sparse[2], masked[2])):
        weights = torch.from_numpy(mine.to_scipy().toarray())
        assert (weights - true.weight * true.mask).abs().max() < tolerance
        assert (mine.bias - true.bias).abs().max() < tolerance


@pytest.mark.parametrize("block", [4, 16])
def test_results_do_not_depend_on_the_number_of_threads(block):
    layer = filled(np.random.default_rng(0).random((512 // block, 256 // block)) < 0.5, block, dtype=torch.float32)
    x, dy = torch.randn(300, 512, requires_grad=True), torch.randn(300, 256)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = layer(x)
        results.append((y, *torch.autograd.grad(y, (x, layer.values, layer.bias), dy)))
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


@pytest.mark.parametrize("block", [4, 16])
def test_nothing_of_size_inputs_times_outputs_is_allocated(block):
    """Here that would be 4 TB."""
    n, rng = (1 << 20) // block, np.random.default_rng(0)
    places = tuple(rng.choice(n, 50, replace=False) for _ in range(2))
    layer = tt.BlockSparseLinear(sp.csr_array((np.ones(50, bool), places), shape=(n, n)), block, bias=False)
    layer(torch.ones(1, n * block, requires_grad=True)).sum().backward()
    assert bool((layer.values.grad == 1).all())
    assert layer.pattern.nnz == layer.nnz == 50 * block**2


@pytest.mark.parametrize("block", [1, 3, 4])
def test_the_order_of_the_values(block):
    layer = filled(PATTERN, block)
    weights = layer.to_scipy()
    assert np.array_equal(layer.block_pattern.toarray(), PATTERN)
    assert np.array_equal(layer.pattern.toarray(), np.kron(PATTERN, np.ones((block, block), bool)))
    assert layer.pattern.dtype == bool
    assert layer.pattern.has_canonical_format
    for k, (i, j) in enumerate(zip(*np.nonzero(PATTERN), strict=True)):
        square = weights.toarray()[i * block : (i + 1) * block, j * block : (j + 1) * block]
        assert np.array_equal(square, layer.values[k].detach().numpy())
    with torch.no_grad():
        layer.values.zero_()
    assert layer.to_scipy().nnz == layer.nnz == 4 * block**2
    assert layer.density == 4 / 12


def test_weights_that_scipy_cannot_store_become_float32():
    assert tt.BlockSparseLinear(PATTERN, 2, dtype=torch.bfloat16).to_scipy().dtype == np.float32


def test_conversion_to_and_from_a_dense_layer():
    layer = filled(PATTERN, 3).eval()
    linear = layer.to_linear()
    x = torch.randn(5, 9, dtype=torch.float64)
    torch.testing.assert_close(linear(x), layer(x))
    again = tt.BlockSparseLinear.from_linear(linear, PATTERN, 3)
    assert torch.equal(again.values, layer.values)
    assert torch.equal(again.bias, layer.bias)
    assert not again.training
    assert again.values.requires_grad
    assert tt.BlockSparseLinear.from_linear(nn.Linear(9, 12, bias=False), PATTERN, 3).bias is None
    assert tt.BlockSparseLinear(PATTERN, 3, bias=False).to_linear().bias is None


def test_conversion_from_a_layer_of_single_connections():
    layer = filled(PATTERN, 3)
    single = tt.SparseLinear.from_linear(layer.to_linear(), layer.pattern)
    again = tt.BlockSparseLinear.from_sparse_linear(single, 3)
    assert torch.equal(again.values, layer.values)
    assert torch.equal(again.bias, layer.bias)
    assert np.array_equal(again.block_pattern.toarray(), PATTERN)
    assert tt.BlockSparseLinear.from_sparse_linear(single, 1).values.shape == (36, 1, 1)


def test_topologies_of_blocks_are_recognised():
    spec = tg.RadixNet(systems=[[2, 2]], widths=[2, 2, 2], order="blocks")
    net = tg.generate(tg.Block(spec, 4))
    layer = tt.BlockSparseLinear.from_sparse_linear(tt.SparseLinear(net[0]), 4)
    assert np.array_equal(layer.block_pattern.toarray(), tg.generate(spec)[0].toarray())


def test_one_parameter_for_life_and_states_that_fit():
    layer, donor = filled(PATTERN, 4), filled(np.eye(3, 4, dtype=bool), 4, seed=5)
    parameter = layer.values
    assert set(layer.state_dict()) == {"values", "bias", "indptr", "indices", "sizes", "pattern_hash"}
    file = io.BytesIO()
    torch.save(donor.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file, weights_only=True))
    layer.float().double().train()
    assert layer.values is parameter
    assert parameter.shape == (3, 4, 4)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(donor, x), rtol=1e-4, atol=1e-4)
    layer(x).sum().backward()
    assert parameter.grad.shape == (3, 4, 4)


def test_a_state_of_another_block_size_or_number_of_values_is_refused():
    layer, before = filled(PATTERN, 4), filled(PATTERN, 4).state_dict()
    state = filled(PATTERN, 2).state_dict()
    sentence = "'values' must be a float tensor of shape (4, 4, 4). Got torch.float64 of shape (4, 2, 2)."
    with pytest.raises(RuntimeError, match=re.escape(f"The state of BlockSparseLinear '' is refused: {sentence}")):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match=re.escape("Got torch.float64 of shape (3, 4, 4).")):
        layer.load_state_dict(before | {"values": before["values"][:3]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("pattern", [PATTERN, np.ones((2, 3), bool), np.zeros((2, 3), bool)])
def test_copies_compute_the_same_and_share_nothing(pattern):
    layer = filled(pattern, 4)
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert str(twin) == str(layer)
        own = {tensor.data_ptr() for tensor in layer.state_dict().values() if tensor.numel()}
        assert not own & {tensor.data_ptr() for tensor in twin.state_dict().values() if tensor.numel()}


def test_moving_keeps_the_indices():
    layer = tt.BlockSparseLinear(PATTERN, 4, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    x = torch.randn(3, 12)
    torch.testing.assert_close(layer(x).double(), dense(layer, x), rtol=0, atol=1e-4)


def test_initial_weights_have_the_fans_that_neurons_really_have():
    torch.manual_seed(0)
    pattern = np.zeros((40, 3), bool)
    pattern[:2, 0], pattern[:, 1] = True, True
    layer = tt.BlockSparseLinear(pattern, 8)
    assert layer.fan_in().tolist() == [16] * 8 + [320] * 8 + [0] * 8
    columns = layer.indices
    for fill in (tt.init.kaiming_uniform_, tt.init.kaiming_normal_):
        fill(layer)
        for column, fan in ((0, 16), (1, 320)):
            weights = layer.values.detach()[columns == column]
            assert float(weights.std()) == pytest.approx(math.sqrt(2 / fan), rel=0.15)
    tt.init.kaiming_uniform_(layer)
    for column, fan in ((0, 16), (1, 320)):
        assert float(layer.values.detach()[columns == column].abs().max()) <= math.sqrt(6 / fan)
    for fill in (tt.init.xavier_uniform_, tt.init.xavier_normal_):
        fill(layer)
        alone = layer.values.detach()[(columns == 1) & (torch.arange(len(columns)) > 4)]  # inputs with 8 outputs
        assert float(alone.std()) == pytest.approx(math.sqrt(2 / (320 + 8)), rel=0.1)
    assert not layer.bias.detach().any()


def test_what_it_says_of_itself():
    layer = tt.BlockSparseLinear(PATTERN, 4)
    sizes = "in_features=12, out_features=16, block=4, blocks=4, density=0.3333, bias=True"
    assert repr(layer) == f"BlockSparseLinear({sizes})"
    assert layer.nnz == 64


ERRORS = [
    (
        lambda: tt.BlockSparseLinear(np.zeros((0, 4)), 4),
        "The matrix 'block_pattern' must have at least one row and one column. Got shape (0, 4).",
    ),
    (
        lambda: tt.BlockSparseLinear(PATTERN, 0),
        "The 'block' parameter of BlockSparseLinear must be an int >= 1. Got 0.",
    ),
    (
        lambda: tt.BlockSparseLinear(PATTERN, 4.0),
        "The 'block' parameter of BlockSparseLinear must be an int >= 1. Got 4.0.",
    ),
    (
        lambda: tt.BlockSparseLinear(PATTERN, 4, dtype=torch.int32),
        "The 'dtype' parameter of BlockSparseLinear must be a torch float type. Got torch.int32.",
    ),
    (
        lambda: tt.BlockSparseLinear.from_linear(nn.Linear(12, 18), PATTERN, 4),
        "The 'block' parameter of from_linear must be an int that divides both sizes of the layer, 12 and 18. Got 4. "
        "The nearest is 3.",
    ),
    (
        lambda: tt.BlockSparseLinear.from_linear(nn.Linear(12, 16), PATTERN, 64),
        "The 'block' parameter of from_linear must be an int that divides both sizes of the layer, 12 and 16. Got 64. "
        "The nearest is 4.",
    ),
    (
        lambda: tt.BlockSparseLinear.from_linear(nn.Linear(12, 16), PATTERN, 2),
        "The 'block_pattern' parameter of from_linear must have the shape (inputs, outputs) / block of the layer, "
        "(6, 8). Got (3, 4).",
    ),
    (
        lambda: tt.BlockSparseLinear.from_linear(nn.Conv1d(1, 1, 1), PATTERN, 2),
        "The 'linear' parameter of from_linear must be a Linear. Got Conv1d(1, 1, kernel_size=(1,), stride=(1,)).",
    ),
    (
        lambda: tt.BlockSparseLinear.from_sparse_linear(tt.SparseLinear(np.tri(4)), 2),
        "The 'linear' parameter of from_sparse_linear must have a pattern of full 2 x 2 blocks. Got 3 of 4 connections "
        "in block (0, 0).",
    ),
    (
        lambda: tt.BlockSparseLinear.from_sparse_linear(tt.SparseLinear(np.ones((4, 6))), 3),
        "The 'block' parameter of from_sparse_linear must be an int that divides both sizes of the layer, 4 and 6. "
        "Got 3. The nearest is 2.",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), ERRORS)
def test_what_cannot_be_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()


def test_an_index_is_that_of_the_block_pattern():
    layer = filled(PATTERN, 2)
    index = Index(layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation)
    x = torch.randn(3, 6, dtype=torch.float64)
    true = _blocks.dense_block_linear(x, layer.values, layer.bias, index.indptr, index.indices, 8)
    torch.testing.assert_close(_blocks.block_linear(x, layer.values, layer.bias, index, 8), true)
