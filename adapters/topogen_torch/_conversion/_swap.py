"""Replace modules of a model, whole or not at all, with all that hangs on them: hooks, biases, references."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from topogen_torch._conversion._kinds import counterparts, is_sparse, to_dense
from topogen_torch._conversion._readers import FAST_PATHS

__all__ = ["densified", "swapped"]

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
_FAST_PATH = "_topogen_fast_path"  # what the attribute that stops it was before


def swapped(model: nn.Module, twins: dict[nn.Module, nn.Module], *, inplace: bool) -> nn.Module:
    """Return the model with each module that is a key of `twins` replaced by its value, wherever it is referred to.

    A twin keeps the hooks of what it replaces and, in place, the parameters that it needs unchanged, the bias for
    example, as the same objects; without `inplace` the model is copied, but for what is replaced.
    If the model itself is replaced, its twin is returned.
    """
    if inplace:
        for old, new in twins.items():
            for parameter, name in _staying(old, new):
                _set(new, name, parameter)
            vars(new).update({hooks: getattr(old, hooks) for hooks in _HOOKS})
        for module in list(model.modules()):
            for name, value in vars(module).items():
                vars(module)[name] = _referring(value, twins)
        result = twins.get(model, model)
    else:
        memo: dict[int, Any] = {}  # what a deep copy finds here it does not copy
        for old, new in twins.items():
            memo[id(old)] = new
            for parameter, name in _staying(old, new):
                _set(new, name, memo.setdefault(id(parameter), new.get_parameter(name)))
        for old, new in twins.items():
            vars(new).update({hooks: copy.deepcopy(getattr(old, hooks), memo) for hooks in _HOOKS})
        result = copy.deepcopy(model, memo)
    _set_fast_paths(result)
    return result


def densified(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Return the model with every topogen layer, the model itself included, replaced by its dense namesake."""
    layers = [module for module in model.modules() if is_sparse(module)]
    inner = {id(module) for layer in layers for module in layer.modules() if module is not layer}
    return swapped(model, {layer: to_dense(layer) for layer in layers if id(layer) not in inner}, inplace=inplace)


def _staying(old: nn.Module, new: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    """Yield the parameters that stand unchanged in the new module too, with their names there."""
    own = dict(new.named_parameters())
    for name, parameter in list(old.named_parameters()):
        for other in counterparts(name):
            if other in own and own[other].shape == parameter.shape:
                own[other].requires_grad_(parameter.requires_grad)
                yield parameter, other
                break


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, parameter)


def _referring(value: Any, twins: dict[nn.Module, nn.Module]) -> Any:
    """Return what an attribute holds, its modules, those in a list or a mapping too, brought up to date."""
    if _is_old(value, twins):
        return twins[value]
    if isinstance(value, list):
        value[:] = [twins[entry] if _is_old(entry, twins) else entry for entry in value]
    elif isinstance(value, dict):
        value.update({key: twins[entry] for key, entry in value.items() if _is_old(entry, twins)})
    return value


def _is_old(value: Any, twins: dict[nn.Module, nn.Module]) -> bool:
    return isinstance(value, nn.Module) and value in twins


def _set_fast_paths(model: nn.Module) -> None:
    """Keep PyTorch's transformer off the fast path that reads dense weights, as long as there are sparse ones in it."""
    for module in model.modules():
        for kind, (attribute, off) in FAST_PATHS.items():
            if isinstance(module, kind):
                sparse = any(is_sparse(inner) for inner in module.modules())
                if sparse and _FAST_PATH not in vars(module):
                    vars(module)[_FAST_PATH] = getattr(module, attribute)
                    setattr(module, attribute, off)
                elif not sparse and _FAST_PATH in vars(module):
                    setattr(module, attribute, vars(module).pop(_FAST_PATH))
