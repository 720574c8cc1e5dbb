"""Scores that need no training: what a connection does to the loss, to its gradient, to the flow through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._patterned import Patterned
from topogen_torch.controllers._probe import (
    Loss,
    gradients,
    looked_at,
    mean_over_processes,
    measured,
    of_units,
    sound,
    sparse_layers,
)
from topogen_torch.controllers._second_order import twice_differentiable

__all__ = ["flow_scores", "grasp_scores", "snip_scores", "synflow_scores"]


def snip_scores(model: nn.Module, loss: Loss) -> dict[str, Tensor]:
    r"""Return how much the loss depends on each connection: :math:`|w_j\, \partial L / \partial w_j|`, in sum 1.

    It is the derivative of the loss for a factor before the connection, at 1; for a block or a convolution kernel, for
    one factor before all its weights.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer; in training or evaluation mode as it is given.
    loss : callable
        ``loss(model)`` returns the loss of one batch, a scalar tensor.

    Returns
    -------
    dict
        Scores, shape (units,), by the names of the sparse layers: what `OneShot` takes as `score`. The more, the more
        worth keeping. In a process group the gradients are averaged over the processes first.

    Raises
    ------
    SpecError
        If the model has no sparse layer, or the loss is no scalar, or depends on none of the values.
    TopogenError
        If a score is not finite.

    Notes
    -----
    Costs one forward and one backward pass. The model is as it was: gradients, modes and running statistics.

    References
    ----------
    N. Lee, T. Ajanthan, P. Torr, "SNIP: single-shot network pruning based on connection sensitivity", ICLR 2019,
    equations (5) and (6). Pruning there is by ``scope="global"``.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])))
    >>> x, target = torch.randn(64, 20), torch.randint(5, (64,))
    >>> scores = tt.snip_scores(model, lambda model: torch.nn.functional.cross_entropy(model(x), target))
    >>> {name: tuple(own.shape) for name, own in scores.items()}
    {'0': (200,), '2': (50,)}
    >>> tt.OneShot(model, density=0.1, score=scores, scope="global").step(), model[0].nnz + model[2].nnz
    (True, 25)
    """
    owner = "snip_scores"
    layers = sparse_layers(model, owner)
    with looked_at(model):
        found = mean_over_processes(gradients(measured(loss, owner, model), layers))
    scores = {
        name: of_units(layer.values.detach() * gradient).abs()
        for (name, layer), gradient in zip(layers.items(), found, strict=True)
    }
    total = float(sum(own.double().sum() for own in sound(scores, owner).values()))
    return {name: own / total if total else own for name, own in scores.items()}


def grasp_scores(model: nn.Module, loss: Loss) -> dict[str, Tensor]:
    r"""Return what each connection gives to the flow of gradients: :math:`w_j (H g)_j`.

    g is the gradient of the loss for the values of all sparse layers, H its Hessian for them. To remove connection j
    changes :math:`g^\top g / 2` by :math:`-w_j (H g)_j` to first order, so that those of the lowest scores go first.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer; in training or evaluation mode as it is given.
    loss : callable
        ``loss(model)`` returns the loss of one batch, a scalar tensor. The authors divide logits by 200 in it, and
        take some samples of every class.

    Returns
    -------
    dict
        Scores, shape (units,), by the names of the sparse layers: what `OneShot` takes as `score`. The more, the more
        worth keeping; the sign is the opposite of the paper's, whose largest scores are removed. In a process group
        first and second derivatives are averaged over the processes.

    Raises
    ------
    SpecError
        If the model has no sparse layer, or the loss is no scalar, or depends on none of the values.
    TopogenError
        If a score is not finite.

    Notes
    -----
    Exact, by differentiating twice. The kernels of sparse layers have a first derivative only, so for the time of the
    call layers compute by dense products: memory for about four dense matrices of each layer, beside the activations of
    a forward and a backward pass; none of it is kept. The model is as it was: gradients, modes and running statistics.

    As many connections stay as were asked for, where the authors' program keeps one more: it compares with a
    threshold that it does not remove.

    References
    ----------
    C. Wang, G. Zhang, R. Grosse, "Picking winning tickets before training by preserving gradient flow", ICLR 2020,
    equation (8). Pruning there is by ``scope="global"``.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])))
    >>> x, target = torch.randn(64, 20), torch.randint(5, (64,))
    >>> scores = tt.grasp_scores(model, lambda model: torch.nn.functional.cross_entropy(model(x) / 200, target))
    >>> tt.OneShot(model, density=0.1, score=scores, scope="global").step(), model[0].nnz + model[2].nnz
    (True, 25)
    """
    owner = "grasp_scores"
    layers = sparse_layers(model, owner)
    with looked_at(model), twice_differentiable(model):
        first = gradients(measured(loss, owner, model), layers, create_graph=True)
        fixed = mean_over_processes(first)
        product = torch.stack([(g * f).sum() for g, f in zip(first, fixed, strict=True)]).sum()
        second = mean_over_processes(gradients(product, layers))
    scores = {
        name: of_units(layer.values.detach() * gradient)
        for (name, layer), gradient in zip(layers.items(), second, strict=True)
    }
    return sound(scores, owner)


def synflow_scores(model: nn.Module, input_shape: Sequence[int]) -> dict[str, Tensor]:
    r"""Return the synaptic flow through each connection: :math:`|w_j|\, \partial R / \partial |w_j|`, without data.

    R is the sum of the outputs for an input of ones, where every parameter and running statistic is replaced by its
    absolute value.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer. It takes one tensor and returns one.
    input_shape : sequence of int
        Shape of one sample; a batch of one is made of it.

    Returns
    -------
    dict
        Scores, float64, shape (units,), by the names of the sparse layers: what `OneShot` takes as `score`. The more,
        the more worth keeping.

    Raises
    ------
    SpecError
        If the model has no sparse layer or returns no tensor, or `input_shape` is no sequence of ints >= 1.
    TopogenError
        If a score is not finite.

    Notes
    -----
    Costs one pass of one sample in float64, and 16 bytes a parameter for its time. It is in evaluation mode; the model
    is as it was. For networks of rectifiers without biases the scores of each layer have the same sum, R, and so have
    those of what enters and of what leaves a hidden neuron. Pruned at once by these scores, layers may lose all
    connections: `SynFlow` prunes in rounds, which is the published method.

    References
    ----------
    H. Tanaka, D. Kunin, D. Yamins, S. Ganguli, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020, section 6 and theorems 1 and 2.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])), bias=False)
    >>> scores = tt.synflow_scores(model, [20])
    >>> bool(abs(scores["0"].sum() / scores["2"].sum() - 1) < 1e-9)    # flow is conserved
    True
    """
    owner = "synflow_scores"
    layers = sparse_layers(model, owner)
    shape = checks.integers(input_shape, "input_shape", owner, low=1, at_least=1)
    return flow_scores(model, layers, shape, {}, owner)


def flow_scores(
    model: nn.Module, layers: Mapping[str, Patterned], shape: Sequence[int], kept: Mapping[str, Tensor], owner: str
) -> dict[str, Tensor]:
    """Return the synaptic flow of the layers; of those in `kept`, bool (units,), with only some of their units."""
    state: dict[str, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            state[name] = tensor.detach().abs().double()
    values: list[Tensor] = []
    for name, layer in layers.items():
        key = "values" if layer is model else f"{name}.values"
        if name in kept:
            state[key] = state[key] * kept[name].view(-1, *(1,) * len(layer._unit))
        values.append(state[key].requires_grad_())
    x = torch.ones(1, *shape, dtype=torch.float64, device=values[0].device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            outputs: Any = torch.func.functional_call(model, state, (x,), strict=False)
            if not isinstance(outputs, Tensor):
                got = type(outputs).__name__
                raise SpecError(f"The 'model' parameter of {owner} must return one tensor. Got {got}.")
            found = torch.autograd.grad(outputs.sum(), values, allow_unused=True)
    finally:
        for module, mode in modes:
            module.training = mode
    flows = zip(layers, values, found, strict=True)
    scores = {name: of_units(w.detach() * (torch.zeros_like(w) if g is None else g)) for name, w, g in flows}
    return sound(scores, owner)
