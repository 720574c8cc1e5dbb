"""Scores of connections that exist: the higher, the more a connection is worth keeping.

A criterion is any callable that takes a layer and returns one number for each unit of its `values`, shape (units,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._patterned import Patterned

__all__ = ["Score", "checked_score", "magnitude", "per_weight", "scored"]

Score = Callable[[Patterned], Tensor]


def magnitude(layer: Patterned) -> Tensor:
    """Return ``|w|`` of each connection; of a block or a convolution kernel its Frobenius norm."""
    values = layer.values.detach()
    return values.abs() if values.ndim == 1 else values.flatten(1).double().norm(dim=1)


def checked_score(score: Any, owner: str, *, may_draw: bool) -> None:
    """Refuse what is no score; "random" is one where the controller `may_draw`."""
    if isinstance(score, str):
        checks.one_of(score, "score", owner, ("magnitude", "random"))
        if score == "random" and not may_draw:
            checks.refuse("rng", owner, "an int, a SeedSequence or a Generator where score='random'", None)
    elif not (callable(score) or isinstance(score, Mapping)):
        checks.refuse("score", owner, "'magnitude', 'random', a callable or a mapping", score)


def per_weight(score: Any, size: int) -> float:
    """Return what to divide the scores of units of so many weights by, so that units of all sizes compare.

    A norm grows with the root of the number, a sum over the weights with the number, a draw not at all.
    """
    own = getattr(score, "score", score)  # of a baseline, what it is made of
    if isinstance(own, str) or own is magnitude:
        return 1.0 if own == "random" else math.sqrt(size)
    return float(size)


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
    if not isinstance(found, Tensor) or tuple(found.shape) != (layer.values.shape[0],):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise SpecError(
            f"The 'score' parameter must give a tensor of one number for each unit of '{name}', shape "
            f"({layer.values.shape[0]},). Got {got}."
        )
    return found.detach().cpu().double().numpy()
