"""Modules that read the weight of another one, instead of calling it: `self.fc.weight` in somebody else's forward.

A sparse layer has no dense weight to be read. Which weights are read is looked up in the compiled code of ``forward``
and of the methods that it calls on itself, for there is no sample to run the model on.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

from topogen_torch._conversion._kinds import kind_of

__all__ = ["FAST_PATHS", "weights_read_elsewhere"]

# Modules of PyTorch that read weights on a fast path of their own in evaluation mode, and the attribute that stops it.
FAST_PATHS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


def weights_read_elsewhere(model: nn.Module) -> dict[int, str]:
    """Return the modules whose weight is read from outside, by id, with the class that reads it.

    What is found is certain; what reaches a weight by an index or another name for it is not found.
    """
    readers: dict[int, str] = {}
    for owner in model.modules():
        if isinstance(owner, tuple(FAST_PATHS)):
            continue
        for path in _paths(type(owner)):
            *steps, attribute = path
            try:
                target: Any = owner
                for step in steps:
                    target = getattr(target, step)
            except AttributeError:
                continue
            if isinstance(target, nn.Module) and target is not owner and _is_weight(target, attribute):
                readers.setdefault(id(target), type(owner).__name__)
    return readers


def _is_weight(module: nn.Module, attribute: str) -> bool:
    kind = kind_of(module)
    return kind is not None and any(attribute == part.source for part in kind.parts(module).values())


@cache
def _paths(cls: type[nn.Module]) -> frozenset[tuple[str, ...]]:
    """Return the chains of two and more attributes of itself that the class's forward reads: ("fc", "weight")."""
    found: set[tuple[str, ...]] = set()
    pending, seen = ["forward"], {"forward"}
    while pending:
        method = inspect.unwrap(getattr(cls, pending.pop(), None) or _nothing)
        if not inspect.isfunction(method):
            continue
        for chain in _chains(method.__code__, next(iter(method.__code__.co_varnames), "")):
            found.update(chain[:length] for length in range(2, len(chain) + 1))
            if chain[0] not in seen and chain[0] not in vars(nn.Module):
                seen.add(chain[0])
                pending.append(chain[0])
    return frozenset(found)


def _nothing() -> None:
    """Stand in for a method that a class does not have."""


def _chains(code: CodeType, myself: str) -> Iterator[tuple[str, ...]]:
    """Yield the attributes that are read one from the other, starting at the variable `myself`."""
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
            chain.append(instruction.argval)
            continue
        if chain:
            yield tuple(chain)
        chain = [] if _loads(instruction, myself) else None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _chains(constant, myself)


def _loads(instruction: dis.Instruction, name: str) -> bool:
    """Whether a variable is what lies on top afterwards; newer Pythons load two at once."""
    if not instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_FAST_LOAD_FAST")):
        return False
    loaded: Any = instruction.argval
    return (loaded[-1] if isinstance(loaded, tuple) else loaded) == name
