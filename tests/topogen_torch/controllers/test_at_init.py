"""SNIP, GraSP and synaptic flow: the published formulas, written out on dense masked networks."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError

SIZES = (6, 5, 4, 3)


def tanh_model(seed=0, density=0.6, bias=True):
    torch.manual_seed(seed)
    net = tg.generate(tg.ErdosRenyi(sizes=SIZES, density=density), rng=seed)
    return tt.sparse_mlp(net, activation=nn.Tanh, dtype=torch.float64, bias=bias)


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, tt.SparseLinear)}


def batch(seed=0, count=20):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, SIZES[0], dtype=torch.float64, generator=generator)
    return x, torch.randint(SIZES[-1], (count,), generator=generator)


def loss_on(x, target, temperature=1.0):
    return lambda model: cross_entropy(model(x) / temperature, target)


def masked(model):
    """The model as dense matrices with masks, and a function that runs it with others in their place."""
    weights = [torch.from_numpy(layer.to_scipy().toarray()) for layer in layers_of(model).values()]
    masks = [torch.from_numpy(layer.pattern.toarray()) for layer in layers_of(model).values()]
    biases = [layer.bias.detach() for layer in layers_of(model).values()]

    def run(x, weights):
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = torch.tanh(x) if k else x
            x = x @ weight + bias
        return x

    return weights, masks, run


@pytest.mark.parametrize("seed", range(3))
def test_snip_is_the_derivative_for_the_mask(seed):
    model, (x, target) = tanh_model(seed), batch(seed)
    weights, masks, run = masked(model)
    factors = [mask.double().requires_grad_() for mask in masks]
    loss = cross_entropy(run(x, [w * m for w, m in zip(weights, factors, strict=True)]), target)
    expected = [g[m].abs() for g, m in zip(torch.autograd.grad(loss, factors), masks, strict=True)]
    total = sum(float(own.sum()) for own in expected)
    found = tt.snip_scores(model, loss_on(x, target))
    assert list(found) == ["0", "2", "4"]
    for own, truth in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(own, truth / total, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_the_hessian_times_the_gradient(temperature):
    model, (x, target) = tanh_model(), batch()
    weights, masks, run = masked(model)
    places = [mask.nonzero(as_tuple=True) for mask in masks]
    lengths = [int(mask.sum()) for mask in masks]

    def loss(flat):
        parts = zip(masks, places, flat.split(lengths), strict=True)
        dense = [torch.zeros(m.shape, dtype=torch.float64).index_put(where, part) for m, where, part in parts]
        return cross_entropy(run(x, dense) / temperature, target)

    flat = torch.cat([w[where] for w, where in zip(weights, places, strict=True)])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    expected = flat * (torch.autograd.functional.hessian(loss, flat) @ gradient)
    found = torch.cat(list(tt.grasp_scores(model, loss_on(x, target, temperature)).values()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-18)


def test_grasp_removes_those_whose_loss_lets_gradients_flow_and_exactly_as_many_as_asked_for():
    """The largest of -w (H g) go first, ties by index; the authors' program keeps one more than it is asked to."""
    model, (x, target) = tanh_model(), batch()
    scores = tt.grasp_scores(model, loss_on(x, target))
    joint = np.concatenate([own.numpy() for own in scores.values()])
    density, possible = 0.2, [30, 20, 12]
    count = sum(round(density * size) for size in possible)
    removed_first = np.argsort(-joint, kind="stable")
    expected = np.zeros(len(joint), bool)
    expected[removed_first[:count]] = True
    before = [layer.to_scipy().tocoo() for layer in layers_of(model).values()]
    tt.OneShot(model, density=density, score=scores, scope="global").step()
    assert sum(layer.nnz for layer in layers_of(model).values()) == count
    kept = [
        layer.pattern.toarray()[old.row, old.col] for layer, old in zip(layers_of(model).values(), before, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(kept), expected)


def test_of_equal_grasp_scores_the_first_stay():
    model = tt.SparseLinear(np.ones((4, 2)), bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.values.fill_(1.0)
    x = torch.ones(1, 4, dtype=torch.float64)
    scores = tt.grasp_scores(model, lambda model: model(x).square().sum())
    assert len(set(scores["(model)"].tolist())) == 1
    tt.OneShot(model, density=0.5, score=scores).step()
    assert model.pattern.toarray().ravel().tolist() == [True] * 4 + [False] * 4


def pattern(*shape):
    return np.random.default_rng(sum(shape)).random(shape) < 0.7


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = tt.SparseMultiheadAttention(pattern(8, 8), 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(tt.SparseLinear(pattern(4, 5)), nn.Tanh(), tt.SparseLinear(pattern(5, 3)))
        self[0].values.requires_grad_(False)


KINDS = {
    "linear, packed": (lambda: tt.sparse_mlp([pattern(8, 6), pattern(6, 4)], activation=nn.Tanh), (40, 8)),
    "panels": (lambda: tt.sparse_mlp(tg.generate(tg.RadixNet(systems=[[4, 4]])), activation=nn.Tanh), (40, 16)),
    "full": (lambda: tt.SparseLinear(np.ones((4, 3))), (5, 4)),
    "no connections": (lambda: tt.sparse_mlp([pattern(4, 5), np.zeros((5, 3)), pattern(3, 2)]), (5, 4)),
    "blocks": (lambda: tt.BlockSparseLinear(pattern(3, 4), 2), (5, 6)),
    "kernels": (lambda: tt.SparseConv2d(pattern(3, 4), 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
    "offsets": (lambda: tt.SparseConv2d([pattern(3, 4)] * 6, (2, 3), stride=2), (2, 3, 7, 7)),
    "line": (lambda: tt.SparseConv1d(pattern(3, 4), 3, padding="same"), (3, 7)),
    "lstm": (lambda: tt.SparseLSTM([(pattern(3, 16), pattern(2, 16), pattern(4, 2))]), (4, 2, 3)),
    "gru": (lambda: tt.SparseGRU([(pattern(3, 12), pattern(4, 12))], bidirectional=True), (4, 2, 3)),
    "attention": (Attention, (2, 5, 8)),
    "low rank": (lambda: tt.LowRankPlusSparse(pattern(4, 5), 2), (5, 4)),
    "frozen": (Frozen, (5, 4)),
}


def of_kind(kind):
    torch.manual_seed(0)
    build, shape = KINDS[kind]
    model, x = build().double(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()

    def loss(model):
        y = model(x)
        return (y[0] if isinstance(y, tuple) else y).tanh().square().sum()

    return model, loss, {name or "(model)": m for name, m in model.named_modules() if "values" in m._parameters}


@pytest.mark.parametrize("kind", KINDS)
def test_snip_knows_every_layer(kind):
    """A factor before a unit changes the loss by its derivative, by central differences."""
    model, loss, layers = of_kind(kind)
    found = tt.snip_scores(model, loss)
    assert list(found) == list(layers)
    slopes = np.array([
        slope_by_factor(lambda: float(loss(model).detach()), layer, unit)
        for layer in layers.values()
        for unit in range(len(layer.values))
    ])  # fmt: skip
    joint = torch.cat(list(found.values())).numpy()
    np.testing.assert_allclose(joint, np.abs(slopes) / np.abs(slopes).sum(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_grasp_knows_every_layer(kind):
    """A factor before a unit changes half the squared gradient by its score."""
    model, loss, layers = of_kind(kind)
    found = tt.grasp_scores(model, loss)

    def half_square():
        for layer in layers.values():
            layer.values.requires_grad_(True)
        gradients = torch.autograd.grad(loss(model), [layer.values for layer in layers.values()])
        return sum(float(g.square().sum()) for g in gradients) / 2

    for name, layer in layers.items():
        assert found[name].shape == (len(layer.values),)
        for unit in range(min(2, len(layer.values))):
            slope = slope_by_factor(half_square, layer, unit)
            assert float(found[name][unit]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def slope_by_factor(function, layer, unit, step=1e-5):
    """The derivative of a function for a factor before a unit of a layer."""
    before, found = layer.values.data[unit].clone(), []
    for factor in (1 + step, 1 - step):
        layer.values.data[unit] = before * factor
        found.append(function())
        layer.values.data[unit] = before
    return (found[0] - found[1]) / (2 * step)


def test_single_precision_recurrent_layers_have_second_derivatives_too():
    """oneDNN, which PyTorch takes for them, has none."""
    model, loss, _ = of_kind("lstm")
    expected = tt.grasp_scores(model, loss)
    x = torch.randn(4, 2, 3)
    model.float()
    found = tt.grasp_scores(model, lambda model: model(x)[0].tanh().square().sum())
    assert {name: own.shape for name, own in found.items()} == {name: own.shape for name, own in expected.items()}
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()


def test_what_is_linear_has_no_curvature():
    model, x = tt.SparseLinear(np.ones((4, 3))), torch.randn(5, 4)
    assert not tt.grasp_scores(model, lambda model: model(x).sum())["(model)"].any()


@pytest.mark.parametrize("seed", range(3))
def test_synflow_is_the_flow_through_the_absolute_network(seed):
    """|w_ij| times the flow that arrives at i times the flow that leaves j."""
    torch.manual_seed(seed)
    model = tt.sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=SIZES, density=0.6), rng=seed))
    weights = [np.abs(layer.to_scipy().astype(np.float64).toarray()) for layer in layers_of(model).values()]
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.bias.uniform_(-1, 1)
    biases = [np.abs(layer.bias.detach().numpy().astype(np.float64)) for layer in layers_of(model).values()]
    arriving = [np.ones(SIZES[0])]
    for weight, bias in zip(weights, biases, strict=True):
        arriving.append(arriving[-1] @ weight + bias)
    leaving = [np.ones(SIZES[-1])]
    for weight in reversed(weights):
        leaving.insert(0, weight @ leaving[0])
    found = tt.synflow_scores(model, [SIZES[0]])
    for k, (own, layer) in enumerate(zip(found.values(), layers_of(model).values(), strict=True)):
        expected = (arriving[k][:, None] * weights[k] * leaving[k + 1])[layer.pattern.toarray()]
        assert own.dtype == torch.float64
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("linear, packed", (8,)), ("blocks", (6,)), ("kernels", (3, 5, 5)), ("offsets", (3, 7, 7)), ("line", (3, 7)),
     ("low rank", (4,)), ("frozen", (4,)), ("no connections", (4,))],
)  # fmt: skip
def test_synflow_knows_every_layer(kind, shape):
    """In a copy whose parameters are made positive by hand, the derivative for a factor before a unit."""
    model, _, layers = of_kind(kind)
    model.float().train()
    found = tt.synflow_scores(model, shape)
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    x = torch.ones(1, *shape, dtype=torch.float64)
    for name, layer in layers.items():
        for unit in range(min(2, len(layer.values))):
            slope = slope_by_factor(lambda: float(model(x).sum().detach()), layer, unit)
            assert float(found[name][unit]) == pytest.approx(slope, rel=1e-5)


def test_synflow_does_not_underflow_in_a_deep_network():
    model = tt.sparse_mlp([np.eye(3)] * 30, bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e-3)
    assert tt.synflow_scores(model, [3])["0"].tolist() == pytest.approx([1e-90] * 3)


def running_model():
    torch.manual_seed(0)
    layers = tt.SparseLinear(np.ones((4, 3))), nn.BatchNorm1d(3), nn.Dropout(0.5), tt.SparseLinear(np.ones((3, 2)))
    model = nn.Sequential(*layers)
    model[2].eval()
    model[3].values.requires_grad_(False)
    model[0].values.grad = torch.full((12,), 7.0)
    return model


@pytest.mark.parametrize("scores", ["snip", "grasp", "synflow"])
def test_a_model_is_as_it_was(scores):
    model, x = running_model(), torch.randn(8, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]

    def loss(model):
        y = model(x)
        model.eval()
        return y.square().sum()

    if scores == "synflow":
        tt.synflow_scores(model, [4])
    else:
        {"snip": tt.snip_scores, "grasp": tt.grasp_scores}[scores](model, loss)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model[0].values.grad.tolist() == [7.0] * 12
    assert model[3].values.grad is None
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1


def test_scores_need_no_gradient_mode():
    model, (x, target) = tanh_model(), batch()
    with torch.no_grad():
        found = tt.snip_scores(model, loss_on(x, target))
    assert all(own.any() and not own.requires_grad for own in found.values())


def test_a_layer_that_the_loss_does_not_reach_scores_zero():
    model = nn.ModuleDict({"a": tt.SparseLinear(np.ones((4, 3))), "b": tt.SparseLinear(np.ones((4, 3)))})
    x = torch.randn(5, 4)
    for scores in (tt.snip_scores, tt.grasp_scores):
        found = scores(model, lambda model: model["a"](x).square().sum())
        assert found["a"].any()
        assert not found["b"].any()


def test_a_loss_that_is_at_its_minimum_gives_zeros():
    model, x = tt.SparseLinear(np.ones((4, 3)), bias=False), torch.zeros(5, 4)
    assert tt.snip_scores(model, lambda model: model(x).square().sum())["(model)"].tolist() == [0.0] * 12


@pytest.mark.parametrize("name", ["snip_scores", "grasp_scores"])
def test_a_loss_that_will_not_do_is_refused(name):
    scores, model, x = getattr(tt, name), tt.SparseLinear(np.ones((4, 3))), torch.ones(5, 4)
    cases = {
        f"The 'loss' parameter of {name} must return a scalar tensor. Got shape (5, 3).": lambda model: model(x),
        f"The 'loss' parameter of {name} must return a scalar tensor. Got float.": lambda model: 1.0,
        f"The 'loss' parameter of {name} must return a tensor that depends on the model's values. Got one without a "
        "gradient: call the model that it is given, outside torch.no_grad().": lambda model: torch.ones(()),
        f"The 'loss' parameter of {name} must be a callable that returns a scalar tensor. Got 3.": 3,
    }
    for message, loss in cases.items():
        with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
            scores(model, loss)
    message = f"{name} finds 12 of 12 numbers of layer '(model)' not finite: weights, a batch or a loss that are not"
    with pytest.raises(TopogenError, match=re.escape(message)):
        scores(model, lambda model: (model(x) ** 2).sum() * torch.nan)
    with pytest.raises(
        SpecError, match=re.escape(f"The 'model' parameter of {name} must have sparse layers. Got none")
    ):
        scores(nn.Linear(4, 3), lambda model: model(x).sum())
    with pytest.raises(SpecError, match=re.escape(f"The 'model' parameter of {name} must be a Module. Got 'net'.")):
        scores("net", lambda model: model(x).sum())
    assert model.training


def test_synflow_needs_a_shape_and_one_tensor():
    model = tt.SparseLinear(np.ones((4, 3)))
    message = "The 'input_shape[0]' parameter of synflow_scores must be an int >= 1. Got 0."
    with pytest.raises(SpecError, match=re.escape(message)):
        tt.synflow_scores(model, [0])
    recurrent = tt.SparseGRU([(np.ones((3, 12)), np.ones((4, 12)))])
    message = "The 'model' parameter of synflow_scores must return one tensor. Got tuple."
    with pytest.raises(SpecError, match=re.escape(message)):
        tt.synflow_scores(recurrent, [5, 3])
    with torch.no_grad():
        model.values[0] = torch.nan
    with pytest.raises(TopogenError, match=r"synflow_scores finds 1 of 12 numbers of layer '\(model\)' not finite"):
        tt.synflow_scores(model, [4])


def test_a_pruner_with_given_scores_resumes_and_refuses_others():
    """A state holds a digest of the scores, not the scores."""
    model, (x, target) = tanh_model(), batch()
    scores = tt.snip_scores(model, loss_on(x, target))
    prune = tt.OneShot(model, density=0.2, score=scores)
    prune.step()
    again = tt.OneShot(model, density=0.2, score={name: own.clone() for name, own in scores.items()})
    again.load_state_dict(prune.state_dict())
    assert not again.step()
    other = tt.OneShot(model, density=0.2, score=tt.inverted(scores))
    with pytest.raises(SpecError, match="The state of OneShot must be of the same settings"):
        other.load_state_dict(prune.state_dict())
