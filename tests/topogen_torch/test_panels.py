"""Layers whose neurons share their connections: recognised from the pattern, and like any other in all else."""

import copy
import pickle
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch._dynamo
from hypothesis import HealthCheck, given, settings

import topogen as tg
from topogen.errors import SpecError
from topogen.kernels import _panel_plan
from topogen.testing import specs
from topogen_torch import SparseLinear, _layout, sparse_mlp
from topogen_torch._layout import linear_index
from topogen_torch._ops import _dense, _entry, _panels

RADIX = tg.generate(tg.RadixNet(systems=[[3, 4]], widths=[4, 8, 4]))
PATTERN = RADIX[1]


@pytest.fixture(autouse=True, params=[0, 10**6], ids=["gradients by panels", "gradients by rows"])
def shortest(request, monkeypatch):
    """From how many connections of an input on its gradients are computed by panels."""
    monkeypatch.setattr(_panel_plan, "_SHORTEST", {"neighbours": request.param, "apart": request.param})
    monkeypatch.setattr(_layout, "LEAST_FAN_IN", 0)  # patterns as small as these would go by rows
    return request.param


MASK = np.random.default_rng(0).random((96, 48)) < 0.2


def layer_and_input(dtype=torch.float64, batch=21):
    torch.manual_seed(0)
    layer = SparseLinear(PATTERN, dtype=dtype)
    torch.nn.init.normal_(layer.bias)
    return layer, torch.randn(batch, layer.in_features, dtype=dtype, requires_grad=True)


def outcome(module, x, parameters):
    y = module(x)
    return y, *torch.autograd.grad(y.square().sum(), (x, *parameters))


def test_a_radix_net_is_recognised_and_stores_less_than_a_random_pattern(shortest):
    layer, random = SparseLinear(PATTERN), SparseLinear(MASK)
    assert layer._by_panels
    assert (layer.panels.numel() > 0) == (shortest == 0)
    assert not random._by_panels
    assert set(linear_index(PATTERN)) == {"panels", "panels_t"}
    assert set(layer.state_dict()) == set(random.state_dict())
    wide = SparseLinear(tg.generate(tg.RadixNet(systems=[[8, 8]], widths=[8, 8, 8]))[0], bias=False)
    stored = sum(buffer.nbytes for buffer in wide.buffers())
    assert stored < 10.5 * wide.nnz


@pytest.mark.parametrize(("lie_apart", "least"), [(False, 192), (True, 64)])
def test_few_connections_go_by_rows(lie_apart, least, monkeypatch):
    """Twins all of them; only the number of connections decides, and whether the twins are neighbours."""
    monkeypatch.undo()
    for fan_in in (least - 1, least):
        factors = np.eye(2), np.ones((fan_in, 8))
        layer = SparseLinear(np.kron(*(factors[::-1] if lie_apart else factors)))
        assert layer._by_panels == (fan_in == least)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs())
def test_a_layer_of_any_family_equals_its_dense_twin(spec):
    torch.manual_seed(0)
    for pattern in tg.generate(spec, rng=1):
        if 0 in pattern.shape:
            continue
        layer = SparseLinear(pattern, dtype=torch.float64)
        x = torch.randn(5, pattern.shape[0], dtype=torch.float64)
        torch.testing.assert_close(layer(x), layer.to_linear()(x))


def test_gradients_are_those_of_finite_differences():
    layer, x = layer_and_input(batch=3)
    inputs = x, layer.values, layer.bias
    index, out = layer._panel_index, layer.out_features
    assert torch.autograd.gradcheck(lambda *operands: _panels.panel_linear(*operands, index, out), inputs)


def test_torchs_own_checks_pass():
    layer, x = layer_and_input()
    x, values, bias = x.detach(), layer.values.detach(), layer.bias.detach()
    forward, backward = torch.ops.topogen.panel_linear.default, torch.ops.topogen.panel_linear_backward.default
    for b in (bias, None):
        torch.library.opcheck(forward, (x, values, b, layer.panels_t, layer.out_features, 0))
    dy = torch.randn(len(x), layer.out_features, dtype=x.dtype)
    for needs in ([True, True, True], [False, True, False], [True, False, False], [False, False, False]):
        torch.library.opcheck(backward, (dy, x, values, layer.indptr, layer.indices, layer.panels, 0, needs))
    packed = torch.randn(2, layer.in_features, 16, dtype=x.dtype)
    torch.library.opcheck(forward, (packed, values, bias, layer.panels_t, layer.out_features, 21))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_a_fully_captured_graph_gives_the_same():
    layer, x = layer_and_input()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mine, true in zip(outcome(compiled, x, layer.parameters()), outcome(layer, x, layer.parameters()), strict=True):
        torch.testing.assert_close(mine, true)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_computed_in_float32_and_rounded_once(dtype):
    layer, x = layer_and_input(dtype)
    wide = copy.deepcopy(layer).float()
    assert torch.equal(layer(x), wide(x.float()).to(dtype))


def test_leading_dimensions_are_kept():
    layer, x = layer_and_input(batch=12)
    assert torch.equal(layer(x.view(3, 4, -1)), layer(x).view(3, 4, -1))
    assert layer(x[0]).shape == (layer.out_features,)
    assert layer(x[:0]).shape == (0, layer.out_features)


def test_copies_pickles_and_moves_keep_the_plans():
    layer, x = layer_and_input()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).to("meta")):
        assert twin._by_panels
        assert torch.equal(twin.panels, layer.panels)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    y = copy.deepcopy(layer).to("meta")(torch.empty(2, layer.in_features, dtype=x.dtype, device="meta"))
    assert y.shape == (2, layer.out_features)


def test_a_loaded_pattern_decides_anew():
    layer, x = layer_and_input()
    random = SparseLinear(MASK[: PATTERN.shape[0], : PATTERN.shape[1]], dtype=torch.float64)
    before, values = layer.state_dict(), random.values
    before = {name: tensor.clone() for name, tensor in before.items()}
    expected = layer(x)
    layer.load_state_dict(random.state_dict())
    assert not layer._by_panels
    assert torch.equal(layer(x), random(x))
    random.load_state_dict(before)
    assert random._by_panels
    assert random.values is values
    assert torch.equal(random(x), expected)


def test_a_layer_can_give_up_its_panels_for_good():
    layer, x = layer_and_input()
    expected = outcome(layer, x, layer.parameters())
    layer._give_up_panels()
    for module in (layer, copy.deepcopy(layer)):
        module.load_state_dict(layer.state_dict())
        assert not module._by_panels
        for mine, true in zip(outcome(module, x, module.parameters()), expected, strict=True):
            torch.testing.assert_close(mine, true)


def test_a_stack_passes_packed_activations_on():
    mlp = sparse_mlp(tg.generate(tg.RadixNet(systems=[[4, 4]], widths=[4, 4, 4])), dtype=torch.float64)
    assert all(module._by_panels for module in mlp if isinstance(module, SparseLinear))
    x = torch.randn(37, 64, dtype=torch.float64, requires_grad=True)
    alone = outcome(lambda x: torch.nn.Sequential.forward(mlp, x), x, mlp.parameters())
    for mine, true in zip(outcome(mlp, x, mlp.parameters()), alone, strict=True):
        torch.testing.assert_close(mine, true)


def test_results_do_not_depend_on_the_threads():
    layer, x = layer_and_input(torch.float32, 200)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outcome(layer, x, layer.parameters()))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(result, results[0], strict=True))


def test_a_device_without_a_kernel_is_dense(monkeypatch):
    layer, x = layer_and_input()
    expected = layer(x)
    monkeypatch.setattr(_panels, "KERNEL_DEVICES", set())
    monkeypatch.setattr(_dense, "_announced", set())
    assert _entry.KERNEL_DEVICES
    with pytest.warns(UserWarning, match=r"^SparseLinear has no kernel for device 'cpu' yet and multiplies densely"):
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(4, 8), "The input of SparseLinear must have shape (..., {n}). Got (4, 8)."),
        (torch.tensor(1.0), "The input of SparseLinear must have shape (..., {n}). Got ()."),
    ],
)
def test_an_input_that_does_not_fit_is_named(x, sentence):
    layer = SparseLinear(PATTERN)
    with pytest.raises(SpecError, match=f"^{re.escape(sentence.format(n=layer.in_features))}$"):
        layer(x)


def test_a_nearly_full_pattern_is_left_to_the_dense_product():
    full = sp.csr_array(np.ones((520, 520), bool))
    nearly = full.tolil()
    nearly[:, 0] = False
    assert not SparseLinear(nearly)._by_panels
    assert not SparseLinear(full)._by_panels
