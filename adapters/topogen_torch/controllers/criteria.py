"""Scores of connections that exist: the higher, the more a connection is worth keeping.

A criterion is any callable that takes a layer and returns one number for each unit of its `values`, shape (units,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from topogen.errors import SpecError
from topogen_torch._patterned import Patterned

__all__ = ["Score", "magnitude", "scored"]

Score = Callable[[Patterned], Tensor]


def magnitude(layer: Patterned) -> Tensor:
    """Return ``|w|`` of each connection; of a block or a convolution kernel its Frobenius norm."""
    values = layer.values.detach()
    return values.abs() if values.ndim == 1 else values.flatten(1).double().norm(dim=1)


def scored(
    score: str | Score | Mapping[str, Tensor],
    name: str,
    layer: Patterned,
    draw: Callable[[], np.random.Generator],
) -> NDArray[Any]:
    """Return the scores of a layer, float64, shape (units,), whichever way they are given."""
    if score == "random":
        return draw().random(layer.values.shape[0])
    if isinstance(score, Mapping):
        if name not in score:
            raise SpecError(f"The 'score' parameter must have scores for layer '{name}'. Got {sorted(score)}.")
        found = score[name]
    else:
        found = magnitude(layer) if isinstance(score, str) else score(layer)
    if tuple(found.shape) != (layer.values.shape[0],):
        raise SpecError(
            f"The 'score' parameter must give one number for each unit of '{name}', shape ({layer.values.shape[0]},). "
            f"Got shape {tuple(found.shape)}."
        )
    return found.detach().cpu().double().numpy()
