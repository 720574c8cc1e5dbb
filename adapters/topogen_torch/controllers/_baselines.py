"""What a score has to beat: its opposite, and itself with the connections mixed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor

from topogen import as_seed, checks, stream
from topogen_torch._patterned import Patterned
from topogen_torch.controllers.criteria import Score, magnitude

__all__ = ["inverted", "shuffled"]

_STREAM = 101  # first word of the keys under which scores are dealt out


@overload
def inverted(score: str | Score) -> Score: ...
@overload
def inverted(score: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
def inverted(score: Any) -> Any:
    """Return the opposite of a score: what it would prune first stays.

    Parameters
    ----------
    score : "magnitude", callable or mapping
        As `OneShot` takes it.

    Returns
    -------
    callable or dict
        A mapping gives a dict of negated tensors, anything else a callable.

    Raises
    ------
    SpecError
        If `score` is none of these.

    Notes
    -----
    A score that means something does far better than its opposite: J. Frankle et al., "Pruning neural networks at
    initialization: why are we missing the mark?", ICLR 2021, section 5.

    Examples
    --------
    >>> import torch, topogen_torch as tt
    >>> tt.inverted({"0": torch.tensor([1.0, 2.0])})["0"].tolist()
    [-1.0, -2.0]
    """
    if isinstance(score, Mapping):
        return {name: -own for name, own in score.items()}
    return _Inverted(_function(score, "inverted"))


@overload
def shuffled(score: str | Score, rng: Any) -> Score: ...
@overload
def shuffled(score: Mapping[str, Tensor], rng: Any) -> dict[str, Tensor]: ...
def shuffled(score: Any, rng: Any) -> Any:
    """Return a score whose numbers are dealt out anew within each layer.

    Every layer keeps as many connections as with the score itself, in random places: what is left of a method when only
    its choice of densities counts.

    Parameters
    ----------
    score : "magnitude", callable or mapping
        As `OneShot` takes it.
    rng : int, numpy.random.SeedSequence or Generator
        A layer of a mapping draws by its name. A callable draws by the layer's pattern, so that a run that is stopped
        and resumed deals as it would have, and so do equal patterns.

    Returns
    -------
    callable or dict
        A mapping gives a dict of permuted tensors, anything else a callable.

    Raises
    ------
    SpecError
        If `score` is none of these, or there is no `rng`.

    Examples
    --------
    >>> import torch, topogen_torch as tt
    >>> sorted(tt.shuffled({"0": torch.tensor([1.0, 2.0, 3.0])}, rng=0)["0"].tolist())
    [1.0, 2.0, 3.0]
    """
    seed = as_seed(rng, owner="shuffled")
    if seed is None:
        checks.refuse("rng", "shuffled", "an int, a SeedSequence or a Generator", rng)
    if isinstance(score, Mapping):
        return {name: _dealt(own, seed, name.encode()) for name, own in score.items()}
    return _Shuffled(_function(score, "shuffled"), seed)


class _Inverted:
    """The opposite of a score. `__qualname__` is what a controller's state knows it by."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.__qualname__ = f"inverted({_name(score)})"

    def __call__(self, layer: Patterned) -> Tensor:
        return -self.score(layer)


class _Shuffled:
    """A score dealt out anew. `__qualname__` is what a controller's state knows it by."""

    def __init__(self, score: Score, seed: np.random.SeedSequence) -> None:
        self.score, self._seed = score, seed
        self.__qualname__ = f"shuffled({_name(score)}, rng={seed.entropy}, {seed.spawn_key})"

    def __call__(self, layer: Patterned) -> Tensor:
        return _dealt(self.score(layer), self._seed, bytes(layer.pattern_hash.tolist()))


def _dealt(own: Tensor, seed: np.random.SeedSequence, key: bytes) -> Tensor:
    order = stream(seed, _STREAM, *key).permutation(len(own))
    return own[torch.from_numpy(order).to(own.device)]


def _name(score: Score) -> str:
    return getattr(score, "__qualname__", type(score).__name__)


def _function(score: Any, owner: str) -> Score:
    if score == "magnitude":
        return magnitude
    if not callable(score):
        checks.refuse("score", owner, "'magnitude', a callable or a mapping", score)
    return cast(Score, score)
