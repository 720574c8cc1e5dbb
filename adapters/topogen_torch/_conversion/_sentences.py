"""Sentences that all conversions of models share: what they refuse, and what they leave as it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from topogen.errors import SpecError
from topogen_torch._conversion._globs import quoted

__all__ = ["reasons", "refuse_wrapped"]

_NAMED = 6  # as many names a reason are printed
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


def refuse_wrapped(model: nn.Module, owner: str) -> None:
    """Refuse models whose wrapper has taken stock of the parameters already."""
    for module in model.modules():
        if type(module).__name__ in _WRAPPERS:
            raise SpecError(
                f"The 'model' parameter of {owner} must not be wrapped yet: convert the model first, then wrap it. "
                f"Got a {type(module).__name__}."
            )


def reasons(left: Mapping[str, str]) -> str:
    """Return names and reasons in one line, equal reasons together."""
    together: dict[str, list[str]] = {}
    for name, reason in left.items():
        together.setdefault(reason, []).append(quoted(name))
    return "; ".join(f"{_some(names)}: {reason}" for reason, names in together.items())


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
