"""Shrinking: the same outputs and gradients from fewer neurons, and none is left that could go."""

import copy

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt

EXACT = {"rtol": 1e-12, "atol": 1e-12}
WITH_WEIGHTS = (tt.SparseLinear, tt.BlockSparseLinear, tt.SparseConv1d, tt.SparseConv2d, nn.Linear, nn.Conv2d)
NORM = nn.modules.batchnorm._BatchNorm
MOVING = (nn.Tanh, nn.Softplus, nn.Sigmoid, nn.Identity)  # their derivative is nowhere 0
ACTIVATIONS = (*MOVING, nn.ReLU, nn.Hardtanh, lambda: nn.ReLU(inplace=True), nn.PReLU)


def planted(rng, n_in, n_out, density):
    """A pattern, some of whose rows and columns are empty."""
    pattern = rng.random((n_in, n_out)) < density
    return pattern & (rng.random((n_in, 1)) < 0.8) & (rng.random(n_out) < 0.8)


def drawn(model, rng):
    """Every parameter and running statistic drawn anew, in evaluation mode, float64; absent weights stay 0."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for module in model.double().modules():
            if isinstance(module, NORM):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        for parameter in model.parameters():
            parameter.mul_(0).add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model.eval()


def zeroed(layer, rng):
    """A dense layer with zeros where a drawn pattern has no connection."""
    with torch.no_grad():
        mask = planted(rng, layer.weight.shape[1], layer.weight.shape[0], 0.4).T
        layer.weight.mul_(torch.from_numpy(mask).double().view(*mask.shape, *(1,) * (layer.weight.ndim - 2)))
    return layer


@st.composite
def perceptrons(draw, activations=ACTIVATIONS, plain=False):
    """(model, drop_zeros, function that returns an input): layers of all linear kinds; plain: no constant stays."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = [4 * draw(st.integers(1, 3)) for _ in range(draw(st.integers(2, 5)))]
    dense, modules = False, []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        bias, density = plain or draw(st.booleans()), draw(st.sampled_from([0.15, 0.3, 0.6]))
        kind = draw(st.sampled_from(["sparse", "dense"] + ["block"] * (not plain)))
        if kind == "sparse":
            modules.append(tt.SparseLinear(planted(rng, n_in, n_out, density), bias=bias))
        elif kind == "block":
            b = draw(st.sampled_from([1, 2, 4]))
            modules.append(tt.BlockSparseLinear(planted(rng, n_in // b, n_out // b, density), b, bias=bias))
        else:
            modules.append(nn.Linear(n_in, n_out, bias=bias))
        if draw(st.booleans()):
            modules.append(nn.BatchNorm1d(n_out, affine=draw(st.booleans())))
        modules.append(draw(st.sampled_from(activations))())
        modules += [nn.Dropout(0.5)] * draw(st.booleans()) + [nn.Flatten()] * draw(st.booleans())
    cut = draw(st.integers(0, len(modules)))
    inner = draw(st.sampled_from([nn.Sequential, tt.SparseSequential]))
    model = drawn(nn.Sequential(inner(*modules[:cut]), *modules[cut:]), rng)
    for module in model.modules():
        if type(module) is nn.Linear:
            dense = bool(zeroed(module, rng))
    return model, dense, lambda: torch.randn(20, sizes[0], dtype=torch.float64)


@st.composite
def convolutions(draw, activations=ACTIVATIONS, plain=False):
    """(model, drop_zeros, function that returns an input): convolutions of all kinds, then linear layers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = [draw(st.integers(1 + 3 * plain, 6)) for _ in range(draw(st.integers(2, 4)))]
    modes = ("zeros", "zeros", "circular", "replicate")
    modules, side = [], 9
    for n_in, n_out in zip(channels, channels[1:], strict=False):
        k, padding, bias = (
            draw(st.integers(1, min(3, side))),
            draw(st.integers(0, not plain)),
            plain or draw(st.booleans()),
        )
        padding, density = min(padding, k // 2), draw(st.sampled_from([0.2, 0.4, 0.7]))
        options = {"padding": padding, "bias": bias, "padding_mode": draw(st.sampled_from(modes))}
        kind = draw(st.sampled_from(["whole", "listed", "dense"]))
        if kind == "dense":
            modules.append(zeroed(nn.Conv2d(n_in, n_out, k, **options).double(), rng))
        else:
            patterns = [planted(rng, n_in, n_out, density) for _ in range(k * k)]
            modules.append(tt.SparseConv2d(patterns if kind == "listed" else patterns[0], k, **options))
        side += 2 * padding - k + 1
        modules += [nn.BatchNorm2d(n_out)] * draw(st.booleans())
        modules.append(draw(st.sampled_from(activations))())
        modules += [nn.Dropout2d(0.5)] * draw(st.booleans())
        if side >= 5 and draw(st.booleans()):
            modules.append(
                draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2, padding=draw(st.integers(0, not plain)))
            )
            side = (side + 2 * modules[-1].padding - 2) // 2 + 1
    n_in = channels[-1] * side**2
    modules += [nn.Flatten(), tt.SparseLinear(planted(rng, n_in, 7, draw(st.sampled_from([0.02, 0.2]))))]
    modules += [nn.BatchNorm1d(7)] * draw(st.booleans()) + [draw(st.sampled_from(activations))()]
    modules.append(tt.SparseLinear(planted(rng, 7, 3, 0.5)))
    dense = any(type(module) is nn.Conv2d for module in modules)
    model = drawn(nn.Sequential(*modules), rng)
    for module in modules:
        if type(module) is nn.Conv2d:
            zeroed(module, rng)
    return model, dense, lambda: torch.randn(3, channels[0], 9, 9, dtype=torch.float64)


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, WITH_WEIGHTS)]


def widths(model):
    return [
        (layer.in_channels, layer.out_channels) if hasattr(layer, "in_channels") else
        (layer.in_features, layer.out_features)
        for layer in layers_of(model)
    ]  # fmt: skip


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@given(st.one_of(perceptrons(), convolutions()))
@settings(max_examples=40)
def test_outputs_are_the_same_and_shrinking_again_changes_nothing(case):
    model, drop_zeros, x = case[0], case[1], case[2]()
    before = copy.deepcopy(model.state_dict())
    small = tt.shrink(model, drop_zeros=drop_zeros)
    torch.testing.assert_close(small(x), model(x), **EXACT)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [type(module) for module in small.modules()] == [type(module) for module in model.modules()]
    assert size(small) <= size(model)
    again = tt.shrink(small, drop_zeros=drop_zeros)
    for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@given(st.one_of(perceptrons(MOVING, plain=True), convolutions(MOVING, plain=True)))
@settings(max_examples=20)
def test_gradients_follow_and_are_the_same(case):
    """Of what no constant depends on: a constant that is folded learns no more, and what made it loses its say."""
    model, drop_zeros, x = case[0], case[1], case[2]()
    parameters = list(model.parameters())
    model(x).square().sum().backward()
    assert tt.shrink(model, drop_zeros=drop_zeros, inplace=True) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    followed = [parameter.grad.clone() for parameter in parameters]
    assert all(gradient.shape == p.shape for gradient, p in zip(followed, parameters, strict=True))
    if any(n_out == 1 for _, n_out in widths(model)[:-1]):
        return  # it may be a constant that stays because a layer of nothing is none
    model.zero_grad()
    model(x).square().sum().backward()
    for a, parameter in zip(followed, parameters, strict=True):
        torch.testing.assert_close(a, parameter.grad, rtol=1e-10, atol=1e-10)


def shaken(module, args):
    """Stand for what a constant becomes where there is padding: something else."""
    return args[0] * (1 + torch.rand(len(args[0]), *(1,) * (args[0].ndim - 1), dtype=torch.float64))


def is_padded(module):
    return getattr(module, "padding", 0) not in (0, (0, 0)) and getattr(module, "padding_mode", "zeros") == "zeros"


def useless(small, x):
    """Return the hidden groups of channels that do not move, though the next layer could take them, or are not felt.

    Seen from outside: by their values for several samples, and by the gradient of the output.
    """
    layers, modules = layers_of(small), [module for module in small.modules() if not list(module.children())]
    if len(layers) < 2:
        return []
    seen, found = {}, []
    for module in modules:
        if is_padded(module) and module is not layers[0]:
            module.register_forward_pre_hook(shaken)
    for layer in layers[1:]:
        layer.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
    loss = small(x.requires_grad_()).sin().sum()
    gradients = torch.autograd.grad(loss, list(seen.values()), allow_unused=True)
    for before, (layer, features), gradient in zip(layers[:-1], seen.items(), gradients, strict=True):
        n_out = widths(nn.Sequential(before))[0][1]
        group = max(getattr(one, "block", 1) for one in (before, layer))
        if n_out == group:
            continue  # one group stays in any case
        values, felt = (
            tensor.detach().reshape(len(x), n_out, -1).transpose(0, 1).flatten(1)
            for tensor in (features, torch.zeros(1) if gradient is None else gradient)
        )
        behind = modules[modules.index(layer) + 1 :]
        moves = values.std(1) > 1e-13
        if is_padded(layer) or (layer.bias is None and not (behind and isinstance(behind[0], NORM))):
            moves |= values.abs().amax(1) > 0
        useful = (moves & (felt.abs().amax(1) > 0)).view(-1, group).any(1)
        found += [(layer, int(k)) for k in (~useful).nonzero()]
    return found


@given(st.one_of(perceptrons(MOVING), convolutions(MOVING)))
@settings(max_examples=40)
def test_what_is_left_moves_and_is_felt(case):
    model, drop_zeros, x = case
    assert useless(tt.shrink(model, drop_zeros=drop_zeros), x()) == []


@given(st.data(), st.integers(2, 5), st.sampled_from([0.1, 0.2, 0.4]), st.integers(0, 2**32))
def test_neurons_that_stay_lie_on_paths_from_inputs_to_outputs(data, depth, density, seed):
    sizes = [data.draw(st.integers(2, 12)) for _ in range(depth + 1)]
    net = tg.generate(tg.ErdosRenyi(sizes=sizes, density=density), rng=seed)
    small = tt.shrink(tt.sparse_mlp(net))
    graph = nx.DiGraph()
    for k, layer in enumerate(net):
        graph.add_edges_from(((k, int(i)), (k + 1, int(j))) for i, j in zip(*layer.nonzero(), strict=True))
    graph.add_edges_from(("in", (0, i)) for i in range(sizes[0]))
    graph.add_edges_from(((depth, j), "out") for j in range(sizes[-1]))
    alive = (nx.descendants(graph, "in") if "in" in graph else set()) & nx.ancestors(graph, "out")
    expected = [sum((k, i) in alive for i in range(n)) for k, n in enumerate(sizes)][1:-1]
    found = [n_out for _, n_out in widths(small)][:-1]
    if all(expected):
        assert found == expected
        left = tg.measures.dead_neurons([layer.pattern for layer in layers_of(small)])
        assert [len(dead) for dead in left[1:-1]] == [0] * (depth - 1)
        assert [len(dead) for dead in tg.measures.dead_neurons(net)[1:-1]] == list(
            np.array(sizes[1:-1]) - np.array(expected)
        )
    assert all(found)
    assert (small[0].in_features, small[-1].out_features) == (sizes[0], sizes[-1])


def chain(*modules):
    return drawn(nn.Sequential(*modules), np.random.default_rng(0))


FEW = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1]])  # neuron 1 is a constant
ON = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])  # neuron 3 is a dead end


def test_a_worked_example():
    """y = relu(x W + b) V + c, neuron 1 constant at relu(0.75), neuron 3 without a connection."""
    model = chain(tt.SparseLinear(FEW), nn.ReLU(), tt.SparseLinear(ON))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, 0.75, 0.0, 5.0]))
        model[2].values.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # 0->0, 0->1, 1->0, 2->1
        model[2].bias.copy_(torch.tensor([10.0, 20.0]))
    small = tt.shrink(model)
    assert small[2].bias.tolist() == [10 + 3 * 0.75, 20]
    assert small[2].to_scipy().toarray().tolist() == [[1, 2], [0, 4]]
    assert small[0].pattern.toarray().tolist() == [[1, 1], [1, 0], [0, 1]]
    assert model[2].bias.tolist() == [10, 20]


def test_zeros_are_connections_unless_they_are_dropped():
    model = chain(tt.SparseLinear(np.ones((3, 4))), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].values[3] = 0
        model[0].values.view(3, 4)[:, 1] = 0
        model[2].weight[:, 2] = 0
    assert widths(tt.shrink(model)) == [(3, 4), (4, 2)]
    small = tt.shrink(model, drop_zeros=True)
    assert widths(small) == [(3, 2), (2, 2)]
    assert small[0].nnz == 5
    x = torch.randn(9, 3, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), **EXACT)


def test_a_padded_constant_stays_and_a_circular_one_goes():
    for mode, left in (("zeros", 3), ("circular", 2)):
        first = tt.SparseConv2d(np.array([[1, 0, 1]]), 3)
        model = chain(first, nn.Sigmoid(), nn.Conv2d(3, 2, 3, padding=1, padding_mode=mode))
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
        small = tt.shrink(model)
        assert small[0].out_channels == left
        torch.testing.assert_close(small(x), model(x), **EXACT)
    with torch.no_grad():
        first.bias[1] = 0
    assert tt.shrink(chain_of(first, nn.Tanh(), nn.Conv2d(3, 2, 3, padding="same")))[0].out_channels == 2


@pytest.mark.parametrize(
    ("pool", "left"),
    [
        (nn.AvgPool2d(2), 2), (nn.AvgPool2d(2, padding=1), 3), (nn.AvgPool2d(2, ceil_mode=True), 3),
        (nn.AvgPool2d(2, divisor_override=3), 3), (nn.MaxPool2d(2, padding=1), 2), (nn.AdaptiveAvgPool2d(2), 2),
        (nn.AdaptiveMaxPool2d(3), 2),
    ],
)  # fmt: skip
def test_a_pool_lets_a_constant_pass_where_it_is_one_afterwards(pool, left):
    model = chain(tt.SparseConv2d(np.array([[1, 0, 1]]), 2), nn.Sigmoid(), pool, nn.Conv2d(3, 2, 2))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    small = tt.shrink(model)
    assert small[0].out_channels == left
    torch.testing.assert_close(small(x), model(x), **EXACT)


def test_a_layer_that_was_a_grouped_convolution_becomes_dense():
    second = np.ones((8, 3), bool)
    second[:3] = False
    dense = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 1)).double()
    model = tt.sparsify(dense, density=1.0, patterns={"2": second})
    small = tt.densify(tt.shrink(model))
    assert small[0].out_channels == 5
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), **EXACT)


def chain_of(*modules):
    return nn.Sequential(*modules).double().eval()


def test_a_running_mean_takes_what_a_missing_bias_cannot():
    first = tt.SparseLinear(FEW)
    model = chain(first, nn.Sigmoid(), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    small = tt.shrink(model)
    assert widths(small)[0] == (3, 3)
    x = torch.randn(8, 3, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), **EXACT)
    torch.testing.assert_close(small.train()(x), model.train()(x))
    without = chain(first, nn.Sigmoid(), nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2))
    assert widths(tt.shrink(without))[0] == (3, 4)


def test_a_scale_of_zero_cuts_with_drop_zeros():
    model = chain(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight[2] = 0
    small = tt.shrink(model, drop_zeros=True)
    assert widths(small) == [(3, 3), (3, 2)]
    assert (small[1].num_features, tt.shrink(model)[1].num_features) == (3, 4)
    x = torch.randn(8, 3, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), **EXACT)


def test_what_a_layer_is_stays():
    model = tt.sparsify(nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 3)), density=0.2)
    model[0].values.requires_grad_(False)
    model[1].eval()
    model.half()
    small = tt.shrink(model)
    assert small[0].out_channels <= 8
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True]
    assert {p.dtype for p in small.parameters()} == {torch.float16}
    tt.densify(small)
    other = copy.deepcopy(small)
    other.load_state_dict(small.state_dict())


def test_no_layer_loses_everything():
    model = chain(tt.SparseLinear(np.zeros((3, 4))), nn.Tanh(), tt.SparseLinear(np.zeros((4, 2))))
    small = tt.shrink(model)
    assert widths(small) == [(3, 1), (1, 2)]
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), **EXACT)


def test_a_layer_alone_is_left():
    layer = tt.SparseLinear(FEW)
    assert tt.shrink(layer, inplace=True) is layer
    assert widths(nn.Sequential(layer)) == [(3, 4)]


def test_what_went_is_said_once(caplog):
    caplog.set_level("INFO", "topogen")
    tt.shrink(chain(tt.SparseLinear(FEW), nn.ReLU(), tt.SparseLinear(ON)))
    assert caplog.messages == ["shrink removes 2 of 4 behind '0'."]
    caplog.clear()
    tt.shrink(chain(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    assert caplog.messages == ["shrink removes no neurons."]


def test_a_failure_leaves_the_model_as_it_was(monkeypatch):
    model = chain(tt.SparseLinear(FEW), nn.ReLU(), tt.SparseLinear(ON))
    before = copy.deepcopy(model.state_dict())

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(model[2], "_buffers_of", fails)
    with pytest.raises(MemoryError):
        tt.shrink(model, inplace=True)
    assert widths(model) == [(3, 4), (4, 2)]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
