"""What deleting a trained connection costs, from second derivatives of the loss or from what stands in for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from topogen import as_seed, checks, stream
from topogen.errors import SpecError
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

__all__ = ["fisher_diagonal", "hutchinson_diagonal", "saliency_scores"]

_STREAM = 102  # first word of the keys under which signs are drawn


def saliency_scores(model: nn.Module, curvature: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Return what the loss gains, to second order, by deleting each connection at a minimum: :math:`h_k w_k^2 / 2`.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer.
    curvature : mapping
        h, shaped like the values, by the names of the sparse layers: from `obd_diagonal`, `fisher_diagonal` or
        `hutchinson_diagonal`.

    Returns
    -------
    dict
        Scores, shape (units,), by the names in `curvature`: what `OneShot` takes as `score`. The more, the more worth
        keeping. Of a block or a convolution kernel the sum over its weights.

    Raises
    ------
    SpecError
        If the model has no sparse layer, or `curvature` has another name or shape.
    TopogenError
        If a score is not finite.

    References
    ----------
    Y. LeCun, J. Denker, S. Solla, "Optimal brain damage", NIPS 1989, equation (5).

    Examples
    --------
    >>> import scipy.sparse as sp, torch, topogen_torch as tt
    >>> model = tt.SparseLinear(sp.eye_array(2), bias=False)
    >>> _ = model.values.data.copy_(torch.tensor([1.0, 3.0]))
    >>> tt.saliency_scores(model, {"(model)": torch.tensor([4.0, 2.0])})["(model)"].tolist()
    [2.0, 9.0]
    """
    owner = "saliency_scores"
    layers = sparse_layers(model, owner)
    scores: dict[str, Tensor] = {}
    for name, h in curvature.items():
        if name not in layers or h.shape != layers[name].values.shape:
            wanted = {name: tuple(layer.values.shape) for name, layer in layers.items()}
            raise SpecError(
                f"The 'curvature' parameter of {owner} must be shaped like the values of the sparse layers, {wanted}. "
                f"Got {tuple(h.shape)} for '{name}'."
            )
        scores[name] = of_units(h * layers[name].values.detach().to(h) ** 2 / 2)
    return sound(scores, owner)


def fisher_diagonal(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], samples: Iterable[Any]
) -> dict[str, Tensor]:
    r"""Return the diagonal of the empirical Fisher matrix: the mean of the squared gradients of single samples.

    :math:`E[g_k^2]`. Gradients of batches will not do: the square of a mean of B of them is about B times too small.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer. Evaluation mode is advisable, since batch norm and single samples do not agree.
    loss : callable
        ``loss(model, sample)`` returns the loss of one sample, a scalar tensor.
    samples : iterable
        What `loss` gets, one after the other.

    Returns
    -------
    dict
        float64, shaped like the values, by the names of the sparse layers, for `saliency_scores`. In a process group
        the mean over all processes' samples.

    Raises
    ------
    SpecError
        If the model has no sparse layer, there is no sample, or a loss is no scalar or depends on none of the values.
    TopogenError
        If a number is not finite.

    Notes
    -----
    Costs a forward and a backward pass of every sample and 8 bytes a connection. The model is as it was.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])))
    >>> samples = zip(torch.randn(64, 1, 20), torch.randint(5, (64, 1)))
    >>> def loss(model, sample):
    ...     x, target = sample
    ...     return torch.nn.functional.cross_entropy(model(x), target)
    >>> {name: tuple(h.shape) for name, h in tt.fisher_diagonal(model, loss, samples).items()}
    {'0': (200,), '2': (50,)}
    """
    owner = "fisher_diagonal"
    layers = sparse_layers(model, owner)
    sums = [torch.zeros_like(layer.values.detach(), dtype=torch.float64) for layer in layers.values()]
    count = torch.zeros((), dtype=torch.float64, device=sums[0].device)
    with looked_at(model):
        for sample in samples:
            for total, gradient in zip(sums, gradients(measured(loss, owner, model, sample), layers), strict=True):
                total += gradient.double() ** 2
            count += 1
    if not count:
        raise SpecError(f"The 'samples' parameter of {owner} must have at least one sample. Got none.")
    *sums, count = mean_over_processes([*sums, count])
    return sound({name: total / count for name, total in zip(layers, sums, strict=True)}, owner)


def hutchinson_diagonal(model: nn.Module, loss: Loss, *, rng: Any, draws: int = 100) -> dict[str, Tensor]:
    r"""Return an unbiased estimate of the Hessian's diagonal: the mean of :math:`v \odot H v` over random signs v.

    H is the Hessian of the loss for the values of all sparse layers. The variance of an entry is the sum of the squares
    of the other entries in its row, over `draws`.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer; in training or evaluation mode as it is given.
    loss : callable
        ``loss(model)`` returns the loss of one batch, a scalar tensor.
    rng : int, numpy.random.SeedSequence or Generator
        In a process group the same in all processes.
    draws : int >= 1

    Returns
    -------
    dict
        Shaped like the values, by the names of the sparse layers, for `saliency_scores`. Entries may be negative. In a
        process group averaged over the processes.

    Raises
    ------
    SpecError
        If the model has no sparse layer, the loss is no scalar or depends on none of the values, or `rng` or `draws` is
        none of the above.
    TopogenError
        If a number is not finite.

    Notes
    -----
    Costs a forward and a backward pass and one more backward pass a draw, all by dense products: memory as for
    `grasp_scores`. The model is as it was.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal of a matrix", Applied Numerical Mathematics 57
    (2007), section 2.

    Examples
    --------
    >>> import scipy.sparse as sp, torch, topogen_torch as tt
    >>> model = tt.SparseLinear(sp.eye_array(2), bias=False)
    >>> x = torch.tensor([[1.0, 3.0]])
    >>> tt.hutchinson_diagonal(model, lambda model: model(x).square().sum(), rng=0)["(model)"].tolist()
    [2.0, 18.0]
    """
    owner = "hutchinson_diagonal"
    layers = sparse_layers(model, owner)
    seed = as_seed(rng, owner=owner)
    if seed is None:
        checks.refuse("rng", owner, "an int, a SeedSequence or a Generator", rng)
    draws = checks.integer(draws, "draws", owner, low=1)
    sums = [torch.zeros_like(layer.values.detach()) for layer in layers.values()]
    with looked_at(model), twice_differentiable(model):
        first = gradients(measured(loss, owner, model), layers, create_graph=True)
        for draw in range(draws):
            signs = [_signs(seed, draw, k, g) for k, g in enumerate(first)]
            product = torch.stack([(g * v).sum() for g, v in zip(first, signs, strict=True)]).sum()
            second = gradients(product, layers, retain_graph=True)
            for total, v, hv in zip(sums, signs, second, strict=True):
                total += v * hv
    means = mean_over_processes([total / draws for total in sums])
    return sound(dict(zip(layers, means, strict=True)), owner)


def _signs(seed: Any, draw: int, layer: int, like: Tensor) -> Tensor:
    signs = stream(seed, _STREAM, draw, layer).integers(0, 2, size=tuple(like.shape), dtype="int8") * 2 - 1
    return torch.from_numpy(signs).to(like)
