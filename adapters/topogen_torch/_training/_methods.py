"""The methods that a command or a recipe can name, and what may be set of each.

A method's settings are plain: numbers, strings, lists and mappings. Times are shares of the run in [0, 1], so that a
recipe keeps its meaning when the number of epochs changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from torch import nn
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._training import _builders as build
from topogen_torch._training._given import REQUIRED, filled, unknown
from topogen_torch._training._train import Method
from topogen_torch.controllers import Controller
from topogen_torch.data import DataSet

__all__ = [
    "METHODS",
    "apply_once",
    "checked_method",
    "epochs_of",
    "is_dynamic",
    "is_once",
    "make_method",
    "prunes",
    "score_baselines",
    "takes",
]

_DRAW = 102  # names, below a run's seed, what a method draws; `_run` has 101


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A method that can be named."""

    build: Callable[[build.Call], Controller]
    defaults: Mapping[str, Any]
    kind: str  # "dynamic" keeps the number of connections, "gradual" prunes while it trains, "once" before
    baselines: tuple[str, ...] = ()  # what it can do with its scores instead of following them


_BOTH = ("shuffled", "inverted")
_CHOSEN = {"layers": "*", "groups": ()}
_GRADUAL = {
    "density": REQUIRED, "begin": 0.0, "end": 0.75, "update_every": None, "distribution": "uniform", "shape": "cubic",
    "scope": "layer", **_CHOSEN,
}  # fmt: skip
_KINDS: dict[str, _Kind] = {
    "set": _Kind(build=build.set_, defaults={"update_every": "epoch", "drop_fraction": 0.3, **_CHOSEN}, kind="dynamic"),
    "rigl": _Kind(
        build=build.rigl,
        defaults={"update_every": 100, "drop_fraction": 0.3, "end": 0.75, **_CHOSEN},
        kind="dynamic",
        baselines=("shuffled",),
    ),
    "snfs": _Kind(
        build=build.snfs,
        defaults={
            "update_every": "epoch", "drop_fraction": 0.5, "end": 1.0, "window": 1, "momentum": 0.9, **_CHOSEN
        },
        kind="dynamic",
        baselines=("shuffled",),
    ),
    "cubic": _Kind(build=build.cubic, defaults=_GRADUAL, kind="gradual", baselines=_BOTH),
    "movement": _Kind(build=build.movement, defaults=_GRADUAL, kind="gradual", baselines=_BOTH),
    "l1": _Kind(
        build=build.l1,
        defaults={"strength": REQUIRED, "update_every": 100, "metric": "plain", **_CHOSEN},
        kind="gradual",
    ),
    "threshold": _Kind(
        build=build.threshold, defaults={"quality": REQUIRED, "at": (0.5,), **_CHOSEN}, kind="gradual"
    ),
    "lottery": _Kind(
        build=build.lottery,
        defaults={
            "rounds": REQUIRED, "drop_fraction": 0.2, "rewind": "weights", "rewind_to": 0.0,
            "optimizer_state": "rewind", "scope": "layer", **_CHOSEN,
        },
        kind="gradual",
        baselines=_BOTH,
    ),
    "oneshot": _Kind(
        build=build.one_shot,
        defaults={"density": REQUIRED, "score": "magnitude", "scope": "layer", "baseline": None, **_CHOSEN},
        kind="once",
        baselines=_BOTH,
    ),
    "snip": _Kind(
        build=build.snip, defaults={"density": REQUIRED, "scope": "global", **_CHOSEN}, kind="once", baselines=_BOTH
    ),
    "grasp": _Kind(
        build=build.grasp, defaults={"density": REQUIRED, "scope": "global", **_CHOSEN}, kind="once", baselines=_BOTH
    ),
    "synflow": _Kind(
        build=build.synflow,
        defaults={"density": REQUIRED, "rounds": 100, "least": 1, "layers": "*"},
        kind="once",
        baselines=("shuffled",),
    ),
    "neurons": _Kind(build=build.neurons, defaults={"density": REQUIRED, **_CHOSEN}, kind="once", baselines=_BOTH),
}  # fmt: skip
METHODS = tuple(_KINDS)


def checked_method(given: Any, owner: str) -> dict[str, Any]:
    """Return a method's settings with all defaults filled in, JSON could hold them; refuse unknown names.

    Parameters
    ----------
    given : str or mapping
        A method's name, or settings with its name as "name".
    owner : str
        Who asks, for the error sentence.
    """
    settings = {"name": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or "name" not in settings:
        checks.refuse("method", owner, "the name of a method, or a mapping with its 'name'", given)
    name = settings["name"]
    if not isinstance(name, str) or name not in _KINDS:
        raise SpecError(f"The 'method' parameter of {owner} must be a method ({unknown(name, METHODS)}). Got {name!r}.")
    own = {key: value for key, value in settings.items() if key != "name"}
    known = filled(own, _KINDS[name].defaults, f"the method {name!r}")
    return {"name": name, **{key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}}


def is_dynamic(method: Any) -> bool:
    """Whether a method keeps the number of connections, so that the same topology left alone is its static twin."""
    return isinstance(method, Mapping) and _KINDS[method["name"]].kind == "dynamic"


def is_once(method: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a method acts once, before training."""
    return isinstance(method, Mapping) and _KINDS[method["name"]].kind == "once"


def prunes(method: Any) -> bool:
    """Whether a method wants more connections to begin with than it ends with."""
    return isinstance(method, Mapping) and _KINDS[method["name"]].kind != "dynamic"


def takes(name: str, setting: str) -> bool:
    """Whether a method of that name, if there is one, has such a setting."""
    return name in _KINDS and setting in _KINDS[name].defaults


def score_baselines(method: Any) -> tuple[str, ...]:
    """Return which of "shuffled" and "inverted" a method can be trained with."""
    return _KINDS[method["name"]].baselines if isinstance(method, Mapping) else ()


def epochs_of(method: Any, epochs: int, steps_per_epoch: int) -> int:
    """Return how many epochs, whole or not, a run of so many has with this method; lottery tickets have rounds."""
    if not isinstance(method, Mapping) or method["name"] != "lottery":
        return epochs
    steps = epochs * steps_per_epoch
    back = min(round(method["rewind_to"] * steps), steps - 1)
    return epochs + method["rounds"] * (epochs - back // steps_per_epoch)


def apply_once(
    settings: Mapping[str, Any], model: nn.Module, data: DataSet, *, seed: int, baseline: str | None = None
) -> None:
    """Let a method that acts before training act."""
    call = build.Call(settings, model, None, 1, 1, data, _draws(seed), baseline)
    _KINDS[settings["name"]].build(call).step()


def make_method(
    settings: Mapping[str, Any], data: DataSet, *, epochs: int, seed: int, baseline: str | None = None
) -> Method:
    """Return what `train` takes as `method`, from checked settings."""

    def method(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        call = build.Call(settings, model, optimizer, steps, epochs, data, _draws(seed), baseline)
        return _KINDS[settings["name"]].build(call)

    return method


def _draws(seed: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_DRAW,))
