"""SparseLinear and sparse_mlp: training, initial weights, state, conversion, moving about."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError

MASK = np.random.default_rng(0).random((11, 8)) < 0.4
INDEX = ("indptr", "indices", "sizes", "pattern_hash", "indptr_t", "indices_t", "permutation")


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Dense layers as small as these gain nothing from two, and on a busy machine their waiting costs seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize(
    ("optimizer", "dtype", "tolerance"),
    [("SGD", torch.float64, 1e-9), ("Adam", torch.float64, 1e-9), ("SGD", torch.float32, 1e-4)],
)
def test_fifty_steps_equal_masked_dense_training(optimizer, dtype, tolerance):
    torch.manual_seed(1)
    net = tg.generate(tg.ErdosRenyi(sizes=[40, 60, 30, 5], density=0.2), rng=3)
    sparse = tt.sparse_mlp(net, dtype=dtype)
    dense = nn.Sequential(*(MaskedLinear(m) if isinstance(m, tt.SparseLinear) else m for m in copy.deepcopy(sparse)))
    x, labels = torch.randn(64, 40, dtype=dtype), torch.randint(0, 5, (64,))
    losses = []
    for model in (sparse, dense):
        steps = OPTIMIZERS[optimizer](model.parameters())
        for _ in range(50):
            steps.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            steps.step()
            losses.append(loss.item())
    assert losses[49] < 0.5 * losses[0]  # both did learn something
    for mine, true in zip(sparse, dense, strict=True):
        if isinstance(mine, tt.SparseLinear):
            rows, columns = mine.pattern.nonzero()
            torch.testing.assert_close(
                mine.values.detach(), true.weight.detach()[rows, columns], rtol=0, atol=tolerance
            )
            torch.testing.assert_close(mine.bias.detach(), true.bias.detach(), rtol=0, atol=tolerance)


class TestInitialWeights:
    """Against the formulas, connection by connection, from the fans counted on the pattern."""

    MASK = np.random.default_rng(5).random((400, 300)) < np.linspace(0.02, 0.5, 300)
    MASK[:, 7] = False

    def deviations(self, name):
        fan_in, fan_out = self.MASK.sum(axis=0), self.MASK.sum(axis=1)
        rows, columns = np.nonzero(self.MASK)
        if name.startswith("kaiming"):
            return np.sqrt(2 / fan_in[columns])
        return np.sqrt(2 / (fan_in[columns] + fan_out[rows]))

    @pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"])
    def test_scale_of_every_connection(self, name):
        layer = tt.SparseLinear(self.MASK, dtype=torch.float64)
        torch.manual_seed(0)
        assert getattr(tt.init, name)(layer) is layer.values
        scaled = layer.values.detach().numpy() / self.deviations(name)
        assert abs(scaled.mean()) < 0.02
        assert abs(scaled.std() - 1) < 0.01
        if "uniform" in name:
            assert math.sqrt(3) * 0.999 < np.abs(scaled).max() <= math.sqrt(3)
        else:
            assert 3.5 < np.abs(scaled).max() < 6
        thin, thick = (scaled[np.isin(np.nonzero(self.MASK)[1], part)] for part in (range(100), range(200, 300)))
        assert abs(thin.std() - thick.std()) < 0.03  # whatever the fan-in
        before = layer.values.detach().clone()
        getattr(tt.init, name)(layer, gain=3.0, generator=torch.Generator().manual_seed(1))
        assert layer.values.std() > 1.5 * before.std()

    def test_a_new_layer_keeps_the_size_of_rectified_activations(self):
        torch.manual_seed(0)
        net = tg.generate(tg.RandomBiregular(sizes=[512, 512, 512, 512], fan_in=16), rng=0)
        model = tt.sparse_mlp(net)
        x = torch.randn(256, 512)
        with torch.no_grad():
            assert 0.8 < model(x).std() / math.sqrt(2) < 1.25  # the last layer has no rectifier behind it

    def test_it_is_the_generators_and_only_the_generators_doing(self):
        values = []
        for _ in range(2):
            torch.manual_seed(3)
            values.append(tt.SparseLinear(MASK).values)
        assert torch.equal(*values)

    def test_an_unconnected_output_gives_its_bias_and_learns_it(self):
        mask = MASK.copy()
        mask[:, 2] = False
        layer = tt.SparseLinear(mask)
        assert torch.isfinite(layer.values).all()
        assert not layer.bias.any()
        layer.bias.data.fill_(0.5)
        y = layer(torch.randn(4, 11))
        assert (y[:, 2] == 0.5).all()
        y.sum().backward()
        assert layer.bias.grad[2] == 4


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_from_linear_keeps_the_chosen_weights_and_to_linear_gives_them_back(n_in, n_out, seed, bias):
    mask = np.random.default_rng(seed).random((n_in, n_out)) < 0.5
    linear = nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64).eval()
    layer = tt.SparseLinear.from_linear(linear, mask)
    masked = torch.where(torch.from_numpy(mask).t(), linear.weight, 0)
    x = torch.randn(3, n_in, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, masked, linear.bias))
    back = layer.to_linear()
    assert torch.equal(back.weight, masked)
    assert (back.bias is None and linear.bias is None) or torch.equal(back.bias, linear.bias)
    assert not layer.training
    assert not back.training
    shared = {p.data_ptr() for p in linear.parameters()} & {p.data_ptr() for p in layer.parameters() if p.numel()}
    assert not shared


def test_from_linear_draws_no_random_numbers():
    linear = nn.Linear(11, 8)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    tt.SparseLinear.from_linear(linear, MASK)
    assert torch.equal(torch.rand(1), expected)


class TestProperties:
    def test_what_a_layer_says_of_itself(self):
        layer = tt.SparseLinear(MASK)
        count = int(MASK.sum())
        assert (layer.in_features, layer.out_features, layer.nnz) == (11, 8, count)
        assert layer.density == count / 88
        assert np.array_equal(layer.pattern.toarray(), MASK)
        assert np.array_equal(layer.fan_in(), MASK.sum(axis=0))
        assert (
            repr(layer)
            == f"SparseLinear(in_features=11, out_features=8, nnz={count}, density={count / 88:.4g}, bias=True)"
        )
        assert sum(p.numel() for p in layer.parameters()) == count + 8

    def test_no_connections_at_all(self):
        layer = tt.SparseLinear(np.zeros((3, 2)), bias=False)
        x = torch.randn(4, 3, requires_grad=True)
        y = layer(x)
        assert torch.equal(y, torch.zeros(4, 2))
        y.sum().backward()
        assert torch.equal(x.grad, torch.zeros(4, 3))
        assert layer.density == 0
        assert layer.values.grad.shape == (0,)

    def test_a_full_pattern_is_multiplied_by_the_values_as_they_are(self):
        layer = tt.SparseLinear(np.ones((6, 5)), dtype=torch.float64)
        x = torch.randn(2, 3, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(x), x @ layer.values.view(6, 5) + layer.bias)
        assert layer.permutation.numel() == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_short_floats_become_float32_in_scipy(self, dtype):
        layer = tt.SparseLinear(MASK, dtype=dtype)
        assert layer.to_scipy().dtype == np.float32
        assert np.array_equal(layer.to_scipy().data, layer.values.detach().float().numpy())

    def test_to_scipy_shares_no_memory(self):
        layer = tt.SparseLinear(MASK)
        before = layer.values.detach().clone()
        layer.to_scipy().data[:] = 7
        assert torch.equal(layer.values, before)


class TestState:
    def other(self, bias=True, seed=9):
        return tt.SparseLinear(np.random.default_rng(seed).random(MASK.shape) < 0.7, bias=bias)

    def test_it_holds_tensors_only(self):
        state = tt.SparseLinear(MASK).state_dict()
        assert list(state) == ["values", "bias", "indptr", "indices", "sizes", "pattern_hash"]
        assert all(type(tensor) is torch.Tensor for tensor in state.values())

    def test_loading_another_number_of_values_drops_the_gradient(self):
        layer = tt.SparseLinear(MASK)
        layer(torch.randn(2, 11)).sum().backward()
        layer.load_state_dict(tt.SparseLinear(MASK).state_dict())
        assert layer.values.grad is not None
        layer.load_state_dict(self.other().state_dict())
        assert layer.values.grad is None

    def test_it_works_inside_a_model_and_casts_to_the_layers_dtype(self):
        model, donor = (nn.Sequential(tt.SparseLinear(MASK, dtype=t)) for t in (torch.float32, torch.float64))
        model.load_state_dict(donor.state_dict())
        assert model[0].values.dtype == torch.float32
        torch.testing.assert_close(model[0].values.double(), donor[0].values, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("key", ["values", "bias", "indptr", "indices", "sizes", "pattern_hash"])
    @pytest.mark.parametrize("strict", [True, False])
    def test_a_state_that_is_not_whole_leaves_the_layer_as_it_was(self, key, strict):
        donor, layer = self.other(), tt.SparseLinear(MASK)
        before = copy.deepcopy(layer.state_dict())
        state = {name: tensor for name, tensor in donor.state_dict().items() if name != key}
        with pytest.raises(RuntimeError, match=f"is refused: it must be whole. Got no '{key}'."):
            layer.load_state_dict(state, strict=strict)
        assert all(torch.equal(layer.state_dict()[name], before[name]) for name in before)

    def test_a_bias_for_a_layer_without_one_is_refused(self):
        layer = tt.SparseLinear(MASK, bias=False)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(RuntimeError, match=r"it must have no 'bias', as the layer has none. Got one."):
            layer.load_state_dict(tt.SparseLinear(MASK).state_dict())
        assert all(torch.equal(layer.state_dict()[name], before[name]) for name in before)

    def test_a_state_of_other_layers_leaves_it_alone(self):
        model = nn.Sequential(nn.Linear(2, 11), tt.SparseLinear(MASK))
        state = {"0.weight": torch.ones(11, 2), "0.bias": torch.ones(11)}
        missing = model.load_state_dict(state, strict=False).missing_keys
        assert set(missing) == {f"1.{name}" for name in model[1].state_dict()}
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1.values"'):
            model.load_state_dict(state)

    def test_a_linear_layers_state_is_refused(self):
        with pytest.raises(RuntimeError, match=r"it must be whole. Got no 'values'."):
            tt.SparseLinear(MASK).load_state_dict(nn.Linear(11, 8).state_dict())

    def test_values_that_are_not_finite_are_loaded_as_torch_does(self):
        donor, layer = tt.SparseLinear(MASK), tt.SparseLinear(MASK)
        donor.values.data[2] = torch.nan
        layer.load_state_dict(donor.state_dict())
        assert torch.equal(layer.values.isnan(), donor.values.isnan())

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"values": "text"}, f"'values' must be a float tensor of shape ({MASK.sum()},). Got str."),
            ({"bias": torch.zeros(9)}, "'bias' must be a float tensor of shape (8,). Got torch.float32 of shape (9,)."),
        ],
    )
    def test_the_message_names_the_layer_and_what_differs(self, change, sentence):
        model = nn.Sequential(nn.ReLU(), tt.SparseLinear(MASK))
        state = model.state_dict() | {f"1.{name}": value for name, value in change.items()}
        with pytest.raises(RuntimeError, match=re.escape(f"The state of SparseLinear '1' is refused: {sentence}")):
            model.load_state_dict(state)

    def test_assigning_keeps_the_parameter_and_takes_the_tensors(self):
        layer, donor = tt.SparseLinear(MASK), self.other().double()
        values, bias = layer.values, layer.bias
        state = donor.state_dict()
        layer.load_state_dict(state, assign=True)
        assert layer.values is values
        assert layer.bias is bias
        assert layer.values.dtype == torch.float64
        assert layer.values.data_ptr() == state["values"].data_ptr()
        assert layer.indices.data_ptr() != state["indices"].data_ptr()
        x = torch.randn(3, 11, dtype=torch.float64)
        assert torch.equal(layer(x), donor(x))

    def test_a_layer_without_bias(self):
        layer, donor = self.other(bias=False), tt.SparseLinear(MASK, bias=False)
        layer.load_state_dict(donor.state_dict())
        assert layer.bias is None
        assert torch.equal(layer(torch.ones(11)), donor(torch.ones(11)))


class TestMoving:
    def test_pickle_and_torch_save(self):
        layer = tt.SparseLinear(MASK)
        x = torch.randn(2, 11)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for twin in (pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert torch.equal(twin(x), layer(x))

    def test_number_types_change_the_numbers_and_not_the_indices(self):
        layer = tt.SparseLinear(MASK)
        values = layer.values
        layer.double()
        assert layer.values is values
        assert layer.values.dtype == layer.bias.dtype == torch.float64
        assert {name: getattr(layer, name).dtype for name in INDEX} == {
            name: getattr(tt.SparseLinear(MASK), name).dtype for name in INDEX
        }
        assert layer(torch.randn(2, 11, dtype=torch.float64)).dtype == torch.float64

    def test_a_layer_born_on_meta_is_filled_by_loading(self):
        donor = tt.SparseLinear(MASK)
        donor.bias.data.normal_()
        for make in (
            lambda: tt.SparseLinear(MASK, device="meta").to_empty(device="cpu"),
            lambda: tt.SparseLinear(MASK).to("meta").to_empty(device="cpu"),
        ):
            layer = make()
            assert np.array_equal(layer.pattern.toarray(), MASK)  # never uninitialised memory
            layer.load_state_dict(donor.state_dict())
            x = torch.randn(2, 11)
            assert torch.equal(layer(x), donor(x))
        layer = tt.SparseLinear(MASK, device="meta")
        layer.load_state_dict(donor.state_dict(), assign=True)
        assert torch.equal(layer(x), donor(x))
        assert isinstance(layer.values, nn.Parameter)

    def test_under_the_meta_context(self):
        with torch.device("meta"):
            layer = tt.SparseLinear(MASK)
        assert layer.values.is_meta
        assert not layer.indices.is_meta
        assert np.array_equal(layer.pattern.toarray(), MASK)


class TestSparseMlp:
    def test_no_activation_follows_the_last_layer(self):
        net = tg.generate(tg.Dense(sizes=[5, 4, 3, 2]))
        model = tt.sparse_mlp(net, activation=nn.Tanh)
        kinds = [tt.SparseLinear, nn.Tanh, tt.SparseLinear, nn.Tanh, tt.SparseLinear]
        assert [type(module) for module in model] == kinds
        assert [(layer.in_features, layer.out_features) for layer in model[::2]] == [(5, 4), (4, 3), (3, 2)]

    def test_options_reach_every_layer(self):
        model = tt.sparse_mlp([MASK, MASK.T], bias=False, dtype=torch.float64)
        assert all(p.dtype == torch.float64 for p in model.parameters())
        assert all(layer.bias is None for layer in model[::2])
        assert np.array_equal(model[2].pattern.toarray(), MASK.T)

    def test_one_layer_alone(self):
        assert [type(module) for module in tt.sparse_mlp([MASK])] == [tt.SparseLinear]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tt.SparseLinear(MASK, dtype=torch.int32),
            "The 'dtype' parameter of SparseLinear must be a torch float type. Got torch.int32.",
        ),
        (
            lambda: tt.SparseLinear(MASK, dtype=float),
            "The 'dtype' parameter of SparseLinear must be a torch float type. Got <class 'float'>.",
        ),
        (lambda: tt.SparseLinear(MASK, bias=1), "The 'bias' parameter of SparseLinear must be a bool. Got 1."),
        (lambda: tt.SparseLinear([[1.0, math.nan]]), "The matrix 'pattern' must not hold NaN. Got 1 of them."),
        (
            lambda: tt.SparseLinear.from_linear(nn.Linear(8, 11), MASK),
            "The 'pattern' parameter of from_linear must have the shape (inputs, outputs) of the layer, (8, 11). "
            "Got (11, 8).",
        ),
        (
            lambda: tt.SparseLinear.from_linear(nn.ReLU(), MASK),
            "The 'linear' parameter of from_linear must be a Linear. Got ReLU().",
        ),
        (
            lambda: tt.sparse_mlp([MASK], activation="relu"),
            "The 'activation' parameter of sparse_mlp must be a callable that returns a module. Got 'relu'.",
        ),
        (
            lambda: tt.sparse_mlp(tg.Topology([np.eye(3), np.eye(3)], relays=[[], [0, 2], []])),
            "The 'topology' parameter of sparse_mlp must have no relays, since the weight of a relay is 1 for good and "
            "every SparseLinear trains all its weights. Got 2 relays.",
        ),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()


def test_a_scipy_matrix_of_any_kind_is_a_pattern():
    weights = sp.coo_matrix(([2.0, 0.0, -1.0], ([0, 1, 2], [1, 1, 0])), shape=(3, 2))
    layer = tt.SparseLinear(weights)
    assert layer.pattern.toarray().tolist() == [[False, True], [False, False], [True, False]]
