"""A stack of sparse layers that passes packed activations on, against the same modules one after the other."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch import _stack
from topogen_torch._ops import pack, unpack

SIZES = (70, 50, 33, 9)


def layers(dtype=torch.float64, activation=nn.Tanh, sizes=SIZES, bias=True):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    modules = []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        if modules:
            modules.append(activation())
        modules.append(tt.SparseLinear(rng.random((n_in, n_out)) < 0.3, bias=bias, dtype=dtype))
        if bias:
            nn.init.normal_(modules[-1].bias)
    return modules


@pytest.fixture
def packs(monkeypatch):
    """How often anything is packed."""
    calls = []
    monkeypatch.setattr(_stack, "pack", lambda x, samples: (calls.append(samples), pack(x, samples))[1])
    return calls


def assert_same(modules, x, packs, expected):
    plain, stack = nn.Sequential(*modules), tt.SparseSequential(*modules)
    wanted = [x, *(p for p in plain.parameters() if p.requires_grad)]
    true, mine = plain(x), stack(x)
    assert len(packs) == expected
    assert mine.shape == true.shape
    torch.testing.assert_close(mine, true)
    dy = torch.randn_like(true)
    for a, b in zip(torch.autograd.grad(mine, wanted, dy), torch.autograd.grad(true, wanted, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 if x.dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16,), (17,), (100,), (300,), (2, 3, 11)])
def test_results_and_gradients_are_those_of_sequential(shape, dtype, packs):
    assert_same(layers(dtype), torch.randn(*shape, 70, dtype=dtype, requires_grad=True), packs, 1)


@pytest.mark.parametrize("activation", sorted(_stack.ELEMENTWISE, key=lambda kind: kind.__name__))
def test_every_activation_on_the_list_is_elementwise(activation, packs):
    assert_same(layers(activation=activation), torch.randn(40, 70, dtype=torch.float64, requires_grad=True), packs, 1)


def test_anything_else_ends_a_run(packs):
    first, second = layers(), layers(sizes=(9, 20, 30, 5))
    modules = [
        nn.ReLU(),
        *first,
        nn.Softmax(-1),
        nn.Sigmoid(),
        *second,
        nn.Tanh(),
        nn.LayerNorm(5, dtype=torch.float64),
    ]
    assert [len(segment) for segment in _stack._segments(modules)] == [1, 5, 1, 1, 5, 1, 1]
    assert_same(modules, torch.randn(40, 70, dtype=torch.float64, requires_grad=True), packs, 2)


def test_a_layer_by_itself_is_no_run(packs):
    x = torch.randn(40, 70, dtype=torch.float64, requires_grad=True)
    assert_same([layers()[0], nn.ReLU(), nn.Dropout(0.0)], x, packs, 0)


class Doubled(tt.SparseLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_could_see_the_packed_tensors_prevents_them(packs):
    x = torch.randn(40, 70, dtype=torch.float64, requires_grad=True)
    modules = layers()
    seen = []
    handle = modules[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert_same(modules, x, packs, 0)
    assert seen == [(40, 50)] * 2
    handle.remove()
    assert_same([*modules[:4], Doubled(modules[4].pattern, dtype=torch.float64)], x, packs, 1)
    with torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: None):
        tt.SparseSequential(*modules)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert tt.SparseSequential(*modules)(x).dtype == torch.bfloat16
    tt.SparseSequential(*modules)(x[:15])
    assert len(packs) == 1


def test_padding_adds_nothing_to_any_gradient():
    """17 samples leave 15 of padding, which biases and activations fill; an infinite weight would make them NaN."""
    modules = layers(activation=nn.ReLU)
    stack, plain = tt.SparseSequential(*modules), nn.Sequential(*modules)
    x = torch.zeros(17, 70, dtype=torch.float64)
    modules[0].bias.data.fill_(-1.0)  # every activation of the first layer is 0 for every sample
    modules[2].values.data[0] = torch.inf
    for model in (stack, plain):
        model.zero_grad()
        model(x).nan_to_num().sum().backward()
        if model is stack:
            found = [copy.deepcopy(p.grad) for p in model.parameters()]
    for a, parameter in zip(found, plain.parameters(), strict=True):
        assert torch.equal(a.isnan(), parameter.grad.isnan())
        torch.testing.assert_close(a, parameter.grad, equal_nan=True)


def test_an_mlp_is_a_stack_and_still_a_sequential():
    net = tg.generate(tg.RandomBiregular(sizes=[12, 12, 12], fan_in=3), rng=0)
    model = tt.sparse_mlp(net)
    assert isinstance(model, nn.Sequential)
    assert isinstance(model, tt.SparseSequential)
    assert list(model.state_dict()) == list(nn.Sequential(*model).state_dict())
    assert isinstance(model[:2], tt.SparseSequential)
    assert torch.equal(copy.deepcopy(model)(torch.ones(20, 12)), model(torch.ones(20, 12)))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_a_captured_graph_computes_the_same():
    model = tt.SparseSequential(*layers())
    x = torch.randn(40, 70, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    torch._dynamo.reset()


def test_bad_input_is_named_as_the_layer_names_it():
    model = tt.SparseSequential(*layers())
    with pytest.raises(
        SpecError, match=r"^The input of SparseLinear must have shape \(\.\.\., 70\)\. Got \(20, 69\)\.$"
    ):
        model(torch.zeros(20, 69, dtype=torch.float64))
    with pytest.raises(
        SpecError, match=r"^The input of SparseLinear must be torch.float64 as its values are\. Got torch.float32\.$"
    ):
        model(torch.zeros(20, 70))


def test_torchs_own_checks_pass_for_packing():
    x = torch.randn(20, 7, dtype=torch.float64)
    torch.library.opcheck(torch.ops.topogen.pack.default, (x, 16))
    torch.library.opcheck(torch.ops.topogen.unpack.default, (pack(x, 16), 20))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unpack(pack(x, 16).square(), 20), (x,))
