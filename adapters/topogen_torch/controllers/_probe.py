"""Looking at a model without leaving a trace: gradients of a loss for the values of its sparse layers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topogen import checks
from topogen.errors import SpecError, TopogenError
from topogen_torch._patterned import Patterned

__all__ = ["Loss", "gradients", "looked_at", "mean_over_processes", "measured", "of_units", "sound", "sparse_layers"]

Loss = Callable[[nn.Module], Tensor]


def sparse_layers(model: nn.Module, owner: str) -> dict[str, Patterned]:
    """Return the layers with stored connections under the names that controllers use; refuse a model without any."""
    checks.instance(model, "model", owner, nn.Module)
    layers = {name or "(model)": module for name, module in model.named_modules() if isinstance(module, Patterned)}
    if not layers:
        raise SpecError(
            f"The 'model' parameter of {owner} must have sparse layers. Got none: "
            "topogen_torch.sparsify(model, density=1.0) makes them of dense ones."
        )
    return layers


@contextmanager
def looked_at(model: nn.Module) -> Generator[None]:
    """Make every sparse layer's values require a gradient in the block; afterwards the model is as it was.

    Gradients that parameters hold are not touched; running statistics, which a pass in training mode moves, are put
    back, and so are training and evaluation mode, which a loss may switch.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (buffer, buffer.clone())
        for module in model.modules()
        if not isinstance(module, Patterned)
        for buffer in module.buffers(recurse=False)
    ]
    values = [module.values for module in model.modules() if isinstance(module, Patterned)]
    trained = [parameter.requires_grad for parameter in values]
    try:
        with torch.enable_grad():
            for parameter in values:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, flag in zip(values, trained, strict=True):
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def measured(loss: Callable[..., Any], owner: str, *arguments: Any) -> Tensor:
    """Return ``loss(*arguments)``, a scalar tensor that depends on parameters."""
    if not callable(loss):
        checks.refuse("loss", owner, "a callable that returns a scalar tensor", loss)
    found = loss(*arguments)
    if not isinstance(found, Tensor) or found.numel() != 1:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise SpecError(f"The 'loss' parameter of {owner} must return a scalar tensor. Got {got}.")
    if not found.requires_grad:
        raise SpecError(
            f"The 'loss' parameter of {owner} must return a tensor that depends on the model's values. Got one without "
            "a gradient: call the model that it is given, outside torch.no_grad()."
        )
    return found.reshape(())


def gradients(scalar: Tensor, layers: Mapping[str, Patterned], **options: Any) -> list[Tensor]:
    """Return the gradient of a scalar for each layer's values; zeros where it does not depend on them."""
    values = [layer.values for layer in layers.values()]
    if not scalar.requires_grad:  # a second derivative of what is linear
        return [torch.zeros_like(parameter) for parameter in values]
    found = torch.autograd.grad(scalar, values, allow_unused=True, **options)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(values, found, strict=True)]


def mean_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors, in a process group averaged over the processes, so that all of them score alike."""
    found = [tensor.detach() for tensor in tensors]
    if dist.is_available() and dist.is_initialized():
        found = [tensor.clone() for tensor in found]
        for tensor in found:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
    return found


def of_units(entries: Tensor) -> Tensor:
    """Return the sums over the weights of each unit, (units,), of a tensor shaped like the values."""
    return entries if entries.ndim == 1 else entries.flatten(1).sum(1)


def sound(scores: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the scores, or refuse them all where one is no finite number."""
    for name, own in scores.items():
        count = int((~own.isfinite()).sum())
        if count:
            raise TopogenError(
                f"{owner} finds {count} of {own.numel()} numbers of layer '{name}' not finite: weights, a batch or a "
                "loss that are not finite, or too large, are the usual causes."
            )
    return scores
