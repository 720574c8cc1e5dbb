"""What of a model can become sparse, and why the rest cannot: nothing is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from topogen_torch._conversion._kinds import Kind, Part, is_sparse, kind_of, namesake
from topogen_torch._conversion._readers import weights_read_elsewhere

__all__ = ["ALREADY_SPARSE", "Candidate", "Survey", "survey"]

ALREADY_SPARSE = "a topogen layer already"

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
_ELEMENTWISE = (nn.LayerNorm, nn.RMSNorm)  # their weights may have two dimensions, and multiply number by number
_STATE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class Candidate(NamedTuple):
    """A module that can become sparse, under the first of its names."""

    name: str
    module: nn.Module
    kind: Kind
    parts: dict[str, Part]


@dataclass
class Survey:
    """What was found in a model.

    Attributes
    ----------
    candidates : list of Candidate
        In the order of ``model.named_modules()``; a shared module once.
    left : dict of str
        Why a module, or a parameter of two and more dimensions that no module of a known kind owns, stays as it is.
    holders : dict
        The modules that each name of the model lies in, itself included.
    aliases : dict
        All the names of what has the given one; a shared module has several.
    """

    candidates: list[Candidate] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    holders: dict[str, list[nn.Module]] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)


def survey(model: nn.Module) -> Survey:
    """Look at every module of a model; what is converted as a whole, or sparse already, is not taken apart."""
    found = Survey()
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        above = found.holders[name.rpartition(".")[0]] if name else []
        found.holders[name] = [*above, module]
        found.aliases[name] = names.setdefault(id(module), [])
        found.aliases[name].append(name)
    owners, readers = _owners(model), weights_read_elsewhere(model)
    for name, module in _outermost(model):
        kind = kind_of(module)
        reason = ALREADY_SPARSE if is_sparse(module) else _obstacle(module, kind)
        if kind is not None and reason is None:
            parts = kind.parts(module)
            reason = _entangled(module, parts, owners, readers)
            if reason is None:
                found.candidates.append(Candidate(name, module, kind, parts))
        if reason is not None:
            found.left[name] = reason
        elif kind is None and not isinstance(module, _ELEMENTWISE):
            for parameter, weight in _matrices(module):
                full = f"{name}.{parameter}".lstrip(".")
                found.left[full] = f"a parameter of shape {tuple(weight.shape)} that {_called(module)} uses by itself"
                found.holders[full], found.aliases[full] = found.holders[name], [full]
    return found


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module once, and nothing inside those that are converted, or left, as a whole."""
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module
            if kind_of(module) is None and not is_sparse(module) and not parametrize.is_parametrized(module):
                for child, inner in module.named_children():
                    yield from walk(inner, f"{name}.{child}".lstrip("."))

    return walk(model, "")


def _obstacle(module: nn.Module, kind: Kind | None) -> str | None:
    """Return why a module that has a weight of its own cannot become sparse; None if it can, or has none."""
    if kind is not None:
        return _altered(module, kind) or kind.obstacle(module)
    if parametrize.is_parametrized(module):
        return "parametrized; remove the parametrization first (torch.nn.utils.parametrize)"
    if isinstance(module, LazyModuleMixin):
        return "has no shape before its first batch; run one through the model first"
    if isinstance(module, _LOOKUPS):
        return "an embedding, whose rows are looked up and not multiplied"
    base, home = namesake(module), type(module).__module__
    if base is not None:
        return f"a {_called(module)}, a subclass of {base.__name__} that may compute something else"
    if home.startswith(("torch.ao.nn", "torch.nn.quantized")) and hasattr(module, "weight"):
        return f"a quantized {_called(module)}"
    if home.startswith("torch.nn") and not isinstance(module, _ELEMENTWISE) and any(_matrices(module)):
        return f"a {_called(module)}, which has no sparse namesake"
    return None


def _altered(module: nn.Module, kind: Kind) -> str | None:
    """Return what of a module of a known class is not as that class made it."""
    if "forward" in vars(module):
        return "has a forward of its own, which the sparse layer would not call"
    own, sources = dict(module.named_parameters()), {part.source for part in kind.parts(module).values()}
    for name in sources:
        if name not in own:
            others = ", ".join(other for other in own if "bias" not in other)
            return f"has its weight computed from {others}; make it permanent first"
        reason = _unusable(own[name])
        if reason is not None:
            return reason
    known = {name.split(".")[0] for name in sources}
    extra = [name for name, _ in module.named_parameters(recurse=False) if name not in known and "bias" not in name]
    extra += [name for name, _ in module.named_buffers(recurse=False)]
    extra += [name for name, _ in module.named_children() if name not in known]
    if extra:
        return f"holds more than its class does ({', '.join(extra)})"
    if any(getattr(module, hooks) for hooks in _STATE_HOOKS):
        return "has state-dict hooks, which expect the dense weight"
    return None


def _unusable(weight: Tensor) -> str | None:
    if type(weight) is not nn.Parameter:
        return f"has a weight of type {type(weight).__name__}"
    if weight.dtype not in _DTYPES or weight.layout != torch.strided:
        return f"has a weight of {weight.dtype}, {weight.layout}"
    if weight.numel() == 0:
        return f"has no weights: shape {tuple(weight.shape)}"
    hooked: Any = weight
    if hooked._backward_hooks or getattr(hooked, "_post_accumulate_grad_hooks", None):
        return "has hooks on its weight, which expect the dense gradient"
    return None


def _entangled(
    module: nn.Module,
    parts: dict[str, Part],
    owners: dict[int, list[tuple[str, nn.Module]]],
    readers: dict[int, str],
) -> str | None:
    """Return who else uses the module's weights."""
    inside, own = set(module.modules()), dict(module.named_parameters())
    for source in dict.fromkeys(part.source for part in parts.values()):
        for name, owner in owners[_place(own[source])]:
            if owner not in inside:
                return f"shares its weight with '{name}'"
    if id(module) in readers:
        return f"has its weight read by {readers[id(module)]}, from outside"
    return None


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Return who holds each weight, by its place in memory."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter, weight in module.named_parameters(recurse=False):
            owners.setdefault(_place(weight), []).append((f"{name}.{parameter}".lstrip("."), module))
    return owners


def _place(weight: Tensor) -> int:
    """Return a number that two tensors share if they are one, or start at the same place in memory."""
    if type(weight) is nn.Parameter and weight.layout == torch.strided and weight.numel() and not weight.is_meta:
        return weight.data_ptr()
    return -id(weight)  # negative: not to be mistaken for an address


def _matrices(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters that may multiply something as a matrix."""
    return [(name, p) for name, p in module.named_parameters(recurse=False) if not is_lazy(p) and p.ndim > 1]


def _called(module: nn.Module) -> str:
    return type(module).__name__
