"""What a sample brings to each layer of a model: the calls of one run, in evaluation mode, of a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from topogen import checks
from topogen_torch._reports._timing import Inputs

__all__ = ["first_shape", "inputs_of_layers", "random_state_kept", "sample_inputs"]


def sample_inputs(sample: Any, owner: str = "report") -> Inputs:
    """Return a sample as arguments of the model."""
    if isinstance(sample, torch.Tensor):
        return Inputs((sample,))
    if isinstance(sample, Mapping):
        return Inputs((), dict(sample))
    if not isinstance(sample, (tuple, list)):
        checks.refuse("sample", owner, "a tensor, or a tuple, a list or a mapping of model inputs", sample)
    return Inputs(tuple(sample))


def inputs_of_layers(model: nn.Module, sample: Inputs, wanted: Callable[[nn.Module], bool]) -> dict[str, Inputs]:
    """Run a copy of the model; return the first call of each wanted layer that is reached, tensors as copies."""
    seen: dict[str, Inputs] = {}

    def note(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in seen:
                seen[name] = Inputs(tuple(map(_copied, args)), {key: _copied(kwargs[key]) for key in kwargs})

        return see

    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if wanted(module):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    with torch.no_grad():
        twin(*sample.args, **sample.kwargs)
    return seen


def first_shape(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape of the first tensor."""
    values = (*inputs.args, *inputs.kwargs.values())
    return next((tuple(value.shape) for value in values if isinstance(value, torch.Tensor)), ())


@contextmanager
def random_state_kept(device: torch.device) -> Generator[None]:
    """Put torch's generators back as they were: a model may draw even in evaluation mode."""
    accelerated = device.type != "cpu"
    with torch.random.fork_rng(
        [device.index or 0] if accelerated else [], device_type=device.type if accelerated else "cuda"
    ):
        yield


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
