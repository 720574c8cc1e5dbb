"""Diagonals of curvature beside automatic differentiation, and saliencies from them."""

import functools
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError


def model_of(sizes=(4, 5, 3), density=0.6, seed=0):
    torch.manual_seed(seed)
    net = tg.generate(tg.ErdosRenyi(sizes=sizes, density=density), rng=seed)
    return tt.sparse_mlp(net, activation=nn.Tanh, dtype=torch.float64)


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, tt.SparseLinear)}


def batch(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (count,), generator=generator)


def dense_run(model, x, weights):
    for k, (weight, layer) in enumerate(zip(weights, layers_of(model).values(), strict=True)):
        x = torch.tanh(x) if k else x
        x = x @ weight + layer.bias.detach()
    return x


@functools.cache
def places_of(model):
    return [tuple(map(torch.from_numpy, layer.pattern.nonzero())) for layer in layers_of(model).values()]


def dense_weights(model, flat):
    """The matrices that hold the values of all layers, from all values in a row."""
    parts = flat.split([len(layer.values) for layer in layers_of(model).values()])
    return [
        torch.zeros(layer.in_features, layer.out_features, dtype=torch.float64).index_put(where, part)
        for layer, where, part in zip(layers_of(model).values(), places_of(model), parts, strict=True)
    ]


def one_sample(model, sample):
    x, target = sample
    return cross_entropy(model(x[None]), target[None])


def test_fisher_is_the_mean_of_the_squares_of_single_gradients():
    model, (x, target) = model_of(), batch()
    flat = torch.cat([layer.values.detach() for layer in layers_of(model).values()])
    places_of(model)  # what is cached is computed outside vmap

    def loss(flat, x, target):
        return cross_entropy(dense_run(model, x[None], dense_weights(model, flat)), target[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(flat, x, target)
    found = torch.cat(list(tt.fisher_diagonal(model, one_sample, zip(x, target, strict=True)).values()))
    torch.testing.assert_close(found, per_sample.square().mean(0), rtol=1e-10, atol=1e-14)
    assert not torch.allclose(found, per_sample.mean(0).square(), rtol=0.5)


def test_fisher_of_convolutions():
    """A dense twin, whose single gradients PyTorch maps over the samples."""
    torch.manual_seed(0)
    layer = tt.SparseConv2d(np.array([[1, 0, 1], [1, 1, 0]]), 2, dtype=torch.float64)
    twin, x = layer.to_conv(), torch.randn(6, 2, 4, 4, dtype=torch.float64)

    def loss(parameters, x):
        return functional_call(twin, parameters, (x[None],)).tanh().square().sum()

    parameters = {name: parameter.detach() for name, parameter in twin.named_parameters()}
    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)["weight"]
    found = tt.fisher_diagonal(layer, lambda model, x: model(x[None]).tanh().square().sum(), x)["(model)"]
    rows, columns = layer.pattern.nonzero()
    torch.testing.assert_close(found, per_sample.square().mean(0)[columns, rows])


def hessian(model, x, target):
    flat = torch.cat([layer.values.detach() for layer in layers_of(model).values()])

    def loss(flat):
        return cross_entropy(dense_run(model, x, dense_weights(model, flat)), target)

    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("seed", range(2))
def test_hutchinson_is_unbiased_with_the_variance_that_it_states(seed):
    """Within 4.5 standard errors of the exact diagonal in all of some 20 entries, each by its own variance."""
    model, (x, target) = model_of(seed=seed), batch(seed=seed)
    exact, draws = hessian(model, x, target), 200
    found = tt.hutchinson_diagonal(model, lambda model: cross_entropy(model(x), target), rng=seed, draws=draws)
    error = torch.cat(list(found.values())) - exact.diagonal()
    deviation = ((exact.square().sum(1) - exact.diagonal().square()) / draws).sqrt()
    assert (error.abs() <= 4.5 * deviation + 1e-12).all()
    assert (error.abs() > 0.1 * deviation).any()


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    model, x = tt.SparseLinear(np.eye(3), bias=False, dtype=torch.float64), torch.tensor([[1.0, 2.0, 3.0]]).double()
    found = tt.hutchinson_diagonal(model, lambda model: model(x).pow(3).sum(), rng=0, draws=1)["(model)"]
    torch.testing.assert_close(found, (6 * model.values * x[0] ** 3).detach())


def test_hutchinson_draws_by_its_seed():
    model, (x, target) = model_of(), batch()
    found = [
        tt.hutchinson_diagonal(model, lambda model: cross_entropy(model(x), target), rng=rng, draws=3)["0"].tolist()
        for rng in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_saliency_is_what_a_parabola_gains():
    """Of a loss without cross terms whose minimum is here, deleting one weight costs exactly that."""
    model, x = tt.SparseLinear(np.eye(3), bias=False, dtype=torch.float64), torch.tensor([[1.0, 2.0, 3.0]]).double()
    target = model(x).detach()

    def loss(model):
        return (model(x) - target).square().sum()

    h = tt.hutchinson_diagonal(model, loss, rng=0)
    scores = tt.saliency_scores(model, h)["(model)"]
    for k in range(3):
        before = model.values.data[k].clone()
        model.values.data[k] = 0
        assert float(scores[k]) == pytest.approx(float(loss(model).detach()))
        model.values.data[k] = before


def test_the_saliency_of_a_unit_is_the_sum_over_its_weights():
    model = tt.BlockSparseLinear(np.ones((2, 1)), 2, dtype=torch.float64)
    h = torch.rand(2, 2, 2)
    found = tt.saliency_scores(model, {"(model)": h})["(model)"]
    torch.testing.assert_close(found, (h * model.values.detach() ** 2 / 2).sum((1, 2)).to(found))
    tt.OneShot(model, density=0.5, score={"(model)": found}).step()
    assert len(model.values) == 1


@pytest.mark.parametrize("name", ["fisher", "hutchinson"])
def test_a_model_is_as_it_was(name):
    model, (x, target) = model_of(), batch()
    model.append(nn.BatchNorm1d(3, dtype=torch.float64))
    model[0].values.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if name == "fisher":
        tt.fisher_diagonal(model, lambda model, pair: cross_entropy(model(pair[0]), pair[1]), [(x, target)] * 2)
    else:
        tt.hutchinson_diagonal(model, lambda model: cross_entropy(model(x), target), rng=0, draws=2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0].values.requires_grad
    assert all(module.training for module in model.modules())


def test_what_cannot_be_is_refused():
    model, (x, target) = model_of(), batch()

    def loss(model):
        return cross_entropy(model(x), target)

    for message, call in {
        "The 'samples' parameter of fisher_diagonal must have at least one sample. Got none.": lambda: (
            tt.fisher_diagonal(model, one_sample, [])
        ),
        "The 'loss' parameter of fisher_diagonal must return a scalar tensor. Got shape (12, 3).": lambda: (
            tt.fisher_diagonal(model, lambda model, x: model(x), [x])
        ),
        "The 'rng' parameter of hutchinson_diagonal must be an int, a SeedSequence or a Generator. Got None.": lambda: (
            tt.hutchinson_diagonal(model, loss, rng=None)
        ),
        "The 'draws' parameter of hutchinson_diagonal must be an int >= 1. Got 0.": lambda: tt.hutchinson_diagonal(
            model, loss, rng=0, draws=0
        ),
        "The 'curvature' parameter of saliency_scores must be shaped like the values of the sparse layers, "
        "{'0': (12,), '2': (9,)}. Got (3,) for '0'.": lambda: tt.saliency_scores(model, {"0": torch.ones(3)}),
        "The 'curvature' parameter of saliency_scores must be shaped like the values of the sparse layers, "
        "{'0': (12,), '2': (9,)}. Got (12,) for '1'.": lambda: tt.saliency_scores(model, {"1": torch.ones(12)}),
    }.items():
        with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
            call()
    for name, call in {
        "fisher_diagonal": lambda: tt.fisher_diagonal(model, lambda model, x: loss(model) * torch.nan, x),
        "hutchinson_diagonal": lambda: tt.hutchinson_diagonal(model, lambda model: loss(model) * torch.nan, rng=0),
        "saliency_scores": lambda: tt.saliency_scores(model, {"0": torch.full((12,), torch.inf)}),
    }.items():
        with pytest.raises(TopogenError, match=rf"^{name} finds \d+ of 12 numbers of layer '0' not finite"):
            call()
