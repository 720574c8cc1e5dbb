"""Optimal brain damage: the Hessian's diagonal where they agree, and the recursion by hand everywhere."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError

SIZES = (4, 5, 4, 3)
F = {
    nn.Tanh: (np.tanh, lambda a: 1 - np.tanh(a) ** 2, lambda a: -2 * np.tanh(a) * (1 - np.tanh(a) ** 2)),
    nn.Sigmoid: (
        lambda a: 1 / (1 + np.exp(-a)),
        lambda a: np.exp(-a) / (1 + np.exp(-a)) ** 2,
        lambda a: (np.exp(-2 * a) - np.exp(-a)) / (1 + np.exp(-a)) ** 3,
    ),
    nn.ReLU: (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(float), np.zeros_like),
    nn.Identity: (lambda a: a, np.ones_like, np.zeros_like),
}


def model_of(activation=nn.Tanh, seed=0, behind=False):
    torch.manual_seed(seed)
    net = tg.generate(tg.ErdosRenyi(sizes=SIZES, density=0.7), rng=seed)
    model = tt.sparse_mlp(net, activation=activation, dtype=torch.float64)
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.bias.normal_(std=0.3)
    return nn.Sequential(model, activation()) if behind else model


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, tt.SparseLinear)}


def batch(loss, seed=0, count=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, SIZES[0], dtype=torch.float64, generator=generator)
    if loss == "cross_entropy":
        return x, torch.randint(SIZES[-1], (count,), generator=generator)
    return x, torch.randn(count, SIZES[-1], dtype=torch.float64, generator=generator)


def error(y, target, loss):
    return cross_entropy(y, target) if loss == "cross_entropy" else (y - target).square().sum(1).mean()


def hessian_diagonals(model, x, target, loss, activation):
    """For each layer's values, by automatic differentiation of the same network of dense matrices."""
    layers = list(layers_of(model).values())
    dense = [torch.from_numpy(layer.to_scipy().toarray()) for layer in layers]
    places = [layer.pattern.nonzero() for layer in layers]
    behind = not isinstance(model, tt.SparseSequential)
    found = []
    for chosen, where in enumerate(places):

        def run(values, chosen=chosen, where=where):
            y = x
            for k, (weight, layer) in enumerate(zip(dense, layers, strict=True)):
                w = (
                    torch.zeros_like(weight).index_put(tuple(map(torch.from_numpy, where)), values)
                    if k == chosen
                    else weight
                )
                y = y @ w + layer.bias.detach()
                y = activation()(y) if behind or k < len(layers) - 1 else y
            return error(y, target, loss)

        found.append(torch.autograd.functional.hessian(run, layers[chosen].values.detach()).diagonal())
    return found


def recursion(model, x, target, loss, activation):
    """The formulas of the paper, one sample and one neuron at a time."""
    f, slope, curve = F[activation]
    weights = [layer.to_scipy().toarray() for layer in layers_of(model).values()]
    biases = [layer.bias.detach().numpy() for layer in layers_of(model).values()]
    behind = not isinstance(model, tt.SparseSequential)
    sums = [np.zeros_like(weight) for weight in weights]
    for sample, wanted in zip(x.numpy(), target.numpy(), strict=True):
        states, pres = [sample], []
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            pres.append(states[-1] @ weight + bias)
            states.append(f(pres[-1]) if behind or k < len(weights) - 1 else pres[-1])
        if loss == "squared_error":
            first, second = -2 * (wanted - states[-1]), np.full_like(states[-1], 2.0)
        else:
            p = np.exp(states[-1]) / np.exp(states[-1]).sum()
            first, second = p - np.eye(len(p))[wanted], p * (1 - p)
        for k in reversed(range(len(weights))):
            n_in, n_out = weights[k].shape
            active = behind or k < len(weights) - 1
            h, delta = np.empty(n_out), np.empty(n_out)
            for j in range(n_out):
                d1, d2 = (slope(pres[k])[j], curve(pres[k])[j]) if active else (1.0, 0.0)
                h[j] = d1**2 * second[j] + d2 * first[j]
                delta[j] = d1 * first[j]
            for i in range(n_in):
                for j in range(n_out):
                    sums[k][i, j] += h[j] * states[k][i] ** 2 / len(x)
            second = np.array([sum(weights[k][i, j] ** 2 * h[j] for j in range(n_out)) for i in range(n_in)])
            first = np.array([sum(weights[k][i, j] * delta[j] for j in range(n_out)) for i in range(n_in)])
    return [total[layer.pattern.toarray()] for total, layer in zip(sums, layers_of(model).values(), strict=True)]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.ReLU, nn.Identity])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_it_is_the_recursion(loss, activation, behind):
    model, (x, target) = model_of(activation, behind=behind), batch(loss)
    found = tt.obd_diagonal(model, x, target, loss=loss)
    assert list(found) == list(layers_of(model))
    for own, expected in zip(found.values(), recursion(model, x, target, loss, activation), strict=True):
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_squared_error_has_the_hessians_diagonal_in_the_last_two_layers(activation, behind):
    model, (x, target) = model_of(activation, behind=behind), batch("squared_error")
    found = list(tt.obd_diagonal(model, x, target, loss="squared_error").values())
    expected = hessian_diagonals(model, x, target, "squared_error", activation)
    for own, exact in zip(found[-2:], expected[-2:], strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found[0], expected[0], rtol=0.01)  # below, terms are missing


def test_cross_entropy_has_the_hessians_diagonal_in_the_last_layer_only():
    model, (x, target) = model_of(), batch("cross_entropy")
    found = list(tt.obd_diagonal(model, x, target, loss="cross_entropy").values())
    expected = hessian_diagonals(model, x, target, "cross_entropy", nn.Tanh)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found[-2], expected[-2], rtol=0.01)


def test_dense_layers_pass_it_on_and_blocks_have_it():
    """A model of blocks beside the same one of single connections, with a dense layer and a Flatten."""
    torch.manual_seed(0)
    blocks = tt.BlockSparseLinear(np.array([[1, 0], [1, 1]]), 2, dtype=torch.float64)
    single = tt.SparseLinear.from_linear(blocks.to_linear(), blocks.pattern)
    dense, last = nn.Linear(4, 5).double(), tt.SparseLinear(np.ones((5, 3)), dtype=torch.float64)
    x, target = torch.randn(6, 2, 2, dtype=torch.float64), torch.randint(3, (6,))
    ends = nn.Sequential(nn.Tanh(), dense, nn.ReLU(), last)
    found = tt.obd_diagonal(nn.Sequential(nn.Flatten(), blocks, ends), x, target, loss="cross_entropy")
    expected = tt.obd_diagonal(nn.Sequential(nn.Flatten(), single, ends), x, target, loss="cross_entropy")
    assert list(found) == list(expected) == ["1", "2.3"]
    by_place = torch.zeros(4, 4, dtype=torch.float64)
    by_place[tuple(map(torch.from_numpy, single.pattern.nonzero()))] = expected["1"]
    for (row, column), block in zip([(0, 0), (1, 0), (1, 1)], found["1"], strict=True):
        torch.testing.assert_close(block, by_place[2 * row : 2 * row + 2, 2 * column : 2 * column + 2])
    torch.testing.assert_close(found["2.3"], expected["2.3"])


def test_a_model_is_as_it_was():
    model, (x, target) = model_of(), batch("cross_entropy")
    before = [parameter.clone() for parameter in model.parameters()]
    tt.obd_diagonal(model, x, target, loss="cross_entropy")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_cannot_be_is_refused():
    model, (x, target) = model_of(), batch("cross_entropy")
    for message, call in {
        "The 'loss' parameter of obd_diagonal must be 'squared_error' or 'cross_entropy'. Got 'mse'.": lambda: (
            tt.obd_diagonal(model, x, target, loss="mse")
        ),
        "The 'model' parameter of obd_diagonal must be an nn.Sequential of linear layers with Tanh, Sigmoid, ReLU or "
        "Identity. Got a GELU in it: hutchinson_diagonal and fisher_diagonal take any model.": lambda: tt.obd_diagonal(
            nn.Sequential(model, nn.GELU()), x, target, loss="cross_entropy"
        ),
        "The 'target' parameter of obd_diagonal must be float of shape (7, 3) for 'squared_error'. Got torch.int64 of "
        "(7,).": lambda: tt.obd_diagonal(model, x, target, loss="squared_error"),
        "The 'target' parameter of obd_diagonal must be int64 of shape (7,) for 'cross_entropy'. Got list.": lambda: (
            tt.obd_diagonal(model, x, [0] * 7, loss="cross_entropy")
        ),
        "The 'target' parameter of obd_diagonal must be int64 of shape (7,) for 'cross_entropy'. Got torch.float64 of "
        "(7,).": lambda: tt.obd_diagonal(model, x, target.double(), loss="cross_entropy"),
    }.items():
        with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
            call()
    with pytest.raises(SpecError, match="The 'model' parameter of obd_diagonal must have sparse layers"):
        tt.obd_diagonal(nn.Linear(4, 3), x, target, loss="cross_entropy")
    with pytest.raises(TopogenError, match=r"obd_diagonal finds .* of layer '0' not finite"):
        tt.obd_diagonal(model, x * torch.nan, target, loss="cross_entropy")
