"""Optimal brain damage: second derivatives of the loss, one for each connection, by one pass backward.

Legend: B = samples, I = inputs of a layer, J = its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._block import BlockSparseLinear
from topogen_torch._layers import SparseLinear
from topogen_torch.controllers._probe import sound, sparse_layers

__all__ = ["obd_diagonal"]

_LOSSES = ("squared_error", "cross_entropy")
_LINEAR = (SparseLinear, BlockSparseLinear, nn.Linear)
_Linear = SparseLinear | BlockSparseLinear | nn.Linear


class _Slopes(NamedTuple):
    """First and second derivative of an activation, from its input and its output."""

    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor], Tensor]


_ACTIVATIONS: dict[type[nn.Module], _Slopes] = {
    nn.Tanh: _Slopes(lambda a, x: 1 - x * x, lambda a, x: -2 * x * (1 - x * x)),
    nn.Sigmoid: _Slopes(lambda a, x: x * (1 - x), lambda a, x: x * (1 - x) * (1 - 2 * x)),
    nn.ReLU: _Slopes(lambda a, x: (a > 0).to(a), lambda a, x: torch.zeros_like(a)),
    nn.Identity: _Slopes(lambda a, x: torch.ones_like(a), lambda a, x: torch.zeros_like(a)),
}


def obd_diagonal(model: nn.Module, x: Tensor, target: Tensor, *, loss: str) -> dict[str, Tensor]:
    r"""Return the diagonal of the Hessian as optimal brain damage has it: off-diagonal terms are dropped on the way.

    With activations x = f(a), :math:`h_{ij} = x_i^2\, h_j` for the weight from i to j, where :math:`h_j` stands for
    :math:`\partial^2 E / \partial a_j^2`, which follows from the layer above:
    :math:`h_i = f'(a_i)^2 \sum_l w_{il}^2 h_l + f''(a_i)\, \partial E / \partial x_i`.

    Parameters
    ----------
    model : nn.Sequential
        Of `SparseLinear`, `BlockSparseLinear` and `torch.nn.Linear` layers with Tanh, Sigmoid, ReLU or Identity between
        and behind them; Sequentials within it, and a Flatten in front, may be.
    x : Tensor, shape (B, inputs)
    target : Tensor, shape (B, outputs) of `x`'s dtype, or (B,) of class numbers
    loss : {"squared_error", "cross_entropy"}
        Mean over the samples of :math:`\sum_i (d_i - x_i)^2`, or of the cross-entropy of a softmax of the outputs.

    Returns
    -------
    dict
        :math:`h`, shaped like the values, by the names of the sparse layers, for `saliency_scores`.

    Raises
    ------
    SpecError
        If the model has another module or no sparse layer, the target does not fit, or `loss` is none of the two.
    TopogenError
        If a number is not finite.

    Notes
    -----
    Under squared error the last two layers' numbers are the Hessian's diagonal; under cross-entropy the last layer's
    are, as the Hessian for the logits, diag(p) - p p', is no diagonal one: p (1 - p) is kept of it. Below, what is
    dropped may be more than what is left; `hutchinson_diagonal` estimates the true diagonal at every depth.

    Costs about three backward passes; everything is computed on the connections that exist.

    References
    ----------
    Y. LeCun, J. Denker, S. Solla, "Optimal brain damage", NIPS 1989, equations (5) to (9).

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])), activation=torch.nn.Tanh)
    >>> x, target = torch.randn(64, 20), torch.randint(5, (64,))
    >>> h = tt.obd_diagonal(model, x, target, loss="cross_entropy")
    >>> scores = tt.saliency_scores(model, h)
    >>> tt.OneShot(model, density=0.5, score=scores, scope="global").step()
    True
    """
    owner = "obd_diagonal"
    names = {layer: name for name, layer in sparse_layers(model, owner).items()}
    checks.one_of(loss, "loss", owner, _LOSSES)
    modules = _chain(model, owner)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        inputs: list[Tensor] = []
        for module in modules:
            inputs.append(x)
            x = module(x)
        slope, curve = _at_outputs(x, target, loss, owner)
        for module, a in zip(reversed(modules), reversed(inputs), strict=True):
            if isinstance(module, _LINEAR):
                weight = module.weight if isinstance(module, nn.Linear) else module.values
                slope, _ = _pulled(module, a, weight, slope)
                curve, h = _pulled(module, a * a, weight * weight, curve)
                if module in names:
                    found[names[module]] = h
            elif type(module) in _ACTIVATIONS:
                first, second = (part(a, module(a)) for part in _ACTIVATIONS[type(module)])
                curve = first * first * curve + second * slope
                slope = first * slope
    return sound({name: found[name] for name in names.values()}, owner)


def _pulled(module: _Linear, x: Tensor, weight: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``above @ W.T`` and the sums over samples of ``x_i * above_j``, for a layer that has another weight."""
    name = "weight" if isinstance(module, nn.Linear) else "values"
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = torch.func.functional_call(module, {name: weight}, (x,))
        below, sums = torch.autograd.grad(y, (x, weight), above)
    return below, sums


def _chain(model: nn.Module, owner: str) -> list[nn.Module]:
    """Return the modules that are called one after the other, or refuse one that the recursion does not know."""
    if isinstance(model, nn.Sequential):
        return [module for child in model for module in _chain(child, owner)]
    if not isinstance(model, (*_LINEAR, nn.Flatten)) and type(model) not in _ACTIVATIONS:
        raise SpecError(
            f"The 'model' parameter of {owner} must be an nn.Sequential of linear layers with Tanh, Sigmoid, ReLU or "
            f"Identity. Got a {type(model).__name__} in it: hutchinson_diagonal and fisher_diagonal take any model."
        )
    return [model]


def _at_outputs(x: Tensor, target: Tensor, loss: str, owner: str) -> tuple[Tensor, Tensor]:
    """Return first and second derivatives of the loss for the outputs x_BJ."""
    wanted = x.shape if loss == "squared_error" else x.shape[:1]
    is_float = loss == "squared_error"
    fits = isinstance(target, Tensor) and x.ndim == 2 and target.shape == wanted
    if not fits or target.is_floating_point() != is_float:
        got = f"{target.dtype} of {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise SpecError(
            f"The 'target' parameter of {owner} must be {'float' if is_float else 'int64'} of shape {tuple(wanted)} "
            f"for {loss!r}. Got {got}."
        )
    if loss == "squared_error":
        return 2 * (x - target) / len(x), torch.full_like(x, 2 / len(x))
    p = x.softmax(1)
    return (p - one_hot(target, x.shape[1]).to(p)) / len(x), p * (1 - p) / len(x)
