"""The methods that a command or a recipe can name: what may be set, and the controller that follows from it.

A method's settings are plain: numbers, strings, lists and mappings. Times are shares of the run in [0, 1], so that a
recipe keeps its meaning when the number of epochs changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import topogen as tg
from topogen import checks
from topogen.errors import SpecError
from topogen_torch._training._train import Method
from topogen_torch.controllers import (
    SET,
    SNFS,
    Controller,
    GradualMagnitude,
    Movement,
    OneShot,
    ProximalL1,
    RigL,
    SynFlow,
    grasp_scores,
    inverted,
    shuffled,
    snip_scores,
    synflow_scores,
)
from topogen_torch.controllers._structured import PruneNeurons
from topogen_torch.data import DataSet

__all__ = [
    "METHODS",
    "apply_once",
    "checked_method",
    "is_dynamic",
    "is_once",
    "make_method",
    "prunes",
    "takes",
    "unknown",
]

_DRAW = 102  # names, below a run's seed, what a method draws; `_run` has 101
_SCORES = ("magnitude", "random", "snip", "grasp", "synflow")
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class _Call:
    """What a method is built from."""

    settings: Mapping[str, Any]
    model: nn.Module
    optimizer: Any  # None for a method that acts before training
    steps: int
    epochs: int
    data: DataSet
    seed: np.random.SeedSequence

    @property
    def owner(self) -> str:
        """As error sentences call the method."""
        return f"the method {self.settings['name']!r}"

    def share(self, name: str) -> int:
        """Return the step at a share of the run."""
        return round(checks.real(self.settings[name], name, self.owner, high=1.0) * self.steps)

    @property
    def every(self) -> int:
        """Steps between two updates."""
        given = self.settings["update_every"]
        if given == "epoch":
            return self.steps // self.epochs
        if isinstance(given, str):
            checks.refuse("update_every", self.owner, "an int >= 1 or 'epoch'", given)
        return checks.integer(given, "update_every", self.owner, low=1)

    def number(self, name: str) -> Any:
        """Return a setting that is a number, or {"shape": ..., "initial": ..., "final": ...} over the run."""
        return _number(self.settings[name], f"{name} in {self.owner}", self.steps)

    def chosen(self) -> dict[str, Any]:
        """Return the layers that are controlled, and the settings of groups of them."""
        groups = [
            {key: _number(value, f"{key} in {self.owner}", self.steps) for key, value in group.items()}
            for group in self.settings["groups"]
        ]
        return {"layers": self.settings["layers"], "groups": groups}


def _number(given: Any, what: str, steps: int) -> Any:
    """Return a schedule over the whole run where a mapping was given, and anything else as it is."""
    if not isinstance(given, Mapping):
        return given
    values = _filled(given, {"shape": "cosine", "initial": _REQUIRED, "final": 0.0}, what)
    return tg.Schedule(**values, begin_step=0, end_step=steps)


class MovementPruning(GradualMagnitude):
    """Gradual pruning by movement, which looks at the gradients before every step of the optimizer."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, **settings: Any) -> None:
        self._movement = Movement(model)
        super().__init__(model, optimizer, score=self._movement, **settings)
        optimizer.register_step_pre_hook(lambda *_: self._movement.step())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the method must remember."""
        return {**super().state_dict(), "movement": self._movement.state_dict()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._movement.load_state_dict(state["movement"])


def _set(call: _Call) -> Controller:
    fraction = call.number("drop_fraction")
    return SET(
        call.model, call.optimizer, rng=call.seed, update_every=call.every, drop_fraction=fraction, **call.chosen()
    )


def _rigl(call: _Call) -> Controller:
    return RigL(
        call.model, call.optimizer, end_step=max(1, call.share("end")), update_every=call.every,
        drop_fraction=call.number("drop_fraction"), **call.chosen(),
    )  # fmt: skip


def _snfs(call: _Call) -> Controller:
    return SNFS(
        call.model, call.optimizer, end_step=max(1, call.share("end")), update_every=call.every,
        drop_fraction=call.number("drop_fraction"), window=call.settings["window"],
        momentum=call.settings["momentum"], **call.chosen(),
    )  # fmt: skip


def _gradual(call: _Call) -> dict[str, Any]:
    """Return what gradual pruning is given, whatever its score; where nothing is asked for, it takes 30 updates."""
    begin, end = call.share("begin"), call.share("end")
    if end < begin:
        checks.refuse("end", call.owner, f"at least begin, {call.settings['begin']:g}", call.settings["end"])
    return {
        "density": call.settings["density"], "begin_step": begin, "end_step": end,
        "update_every": max(1, (end - begin) // 30) if call.settings["update_every"] is None else call.every,
        "distribution": call.settings["distribution"], "shape": call.settings["shape"],
        "scope": call.settings["scope"], **call.chosen(),
    }  # fmt: skip


def _cubic(call: _Call) -> Controller:
    return GradualMagnitude(call.model, call.optimizer, **_gradual(call))


def _movement(call: _Call) -> Controller:
    return MovementPruning(call.model, call.optimizer, **_gradual(call))


def _one_shot(call: _Call) -> Controller:
    name = checks.one_of(call.settings["score"], "score", call.owner, _SCORES)
    baseline = checks.one_of(call.settings["baseline"], "baseline", call.owner, (None, "shuffled", "inverted"))
    score: Any = name if name in ("magnitude", "random") else _before_training(name, call)
    if baseline is not None:
        if name == "random":
            checks.refuse("baseline", call.owner, "None where the score is 'random'", baseline)
        score = inverted(score) if baseline == "inverted" else shuffled(score, rng=call.seed)
    return OneShot(
        call.model, call.optimizer, density=call.settings["density"], score=score, scope=call.settings["scope"],
        rng=call.seed, **call.chosen(),
    )  # fmt: skip


def _before_training(name: str, call: _Call) -> dict[str, Tensor]:
    """Return the scores of all connections, from training images that the seed draws: ten a class."""
    if name == "synflow":
        return synflow_scores(call.model, (call.data.features,))
    count = min(len(call.data.train_y), 10 * len(call.data.classes))
    drawn = np.random.default_rng(call.seed).choice(len(call.data.train_y), count, replace=False)
    device = next(call.model.parameters()).device
    x, y = (torch.from_numpy(array[drawn]).to(device) for array in (call.data.train_x, call.data.train_y))
    scores = {"snip": snip_scores, "grasp": grasp_scores}[name]
    return scores(call.model, lambda model: cross_entropy(model(x), y))


def _synflow(call: _Call) -> Controller:
    settings = {name: call.settings[name] for name in ("density", "rounds", "least", "layers")}
    return SynFlow(call.model, call.optimizer, input_shape=(call.data.features,), **settings)


def _l1(call: _Call) -> Controller:
    return ProximalL1(
        call.model, call.optimizer, strength=call.number("strength"), update_every=call.every,
        metric=call.settings["metric"], **call.chosen(),
    )  # fmt: skip


def _neurons(call: _Call) -> Controller:
    return PruneNeurons(call.model, call.optimizer, density=call.settings["density"], **call.chosen())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A method that can be named."""

    build: Callable[[_Call], Controller]
    defaults: Mapping[str, Any]
    kind: str  # "dynamic" keeps the number of connections, "gradual" prunes while it trains, "once" before


_CHOSEN = {"layers": "*", "groups": ()}
_GRADUAL = {
    "density": _REQUIRED, "begin": 0.0, "end": 0.75, "update_every": None, "distribution": "uniform", "shape": "cubic",
    "scope": "layer", **_CHOSEN,
}  # fmt: skip
_KINDS: dict[str, _Kind] = {
    "set": _Kind(build=_set, defaults={"update_every": "epoch", "drop_fraction": 0.3, **_CHOSEN}, kind="dynamic"),
    "rigl": _Kind(
        build=_rigl, defaults={"update_every": 100, "drop_fraction": 0.3, "end": 0.75, **_CHOSEN}, kind="dynamic"
    ),
    "snfs": _Kind(
        build=_snfs,
        defaults={
            "update_every": "epoch", "drop_fraction": 0.5, "end": 1.0, "window": 1, "momentum": 0.9, **_CHOSEN
        },
        kind="dynamic",
    ),
    "cubic": _Kind(build=_cubic, defaults=_GRADUAL, kind="gradual"),
    "movement": _Kind(build=_movement, defaults=_GRADUAL, kind="gradual"),
    "l1": _Kind(
        build=_l1, defaults={"strength": _REQUIRED, "update_every": 100, "metric": "plain", **_CHOSEN}, kind="gradual"
    ),
    "oneshot": _Kind(
        build=_one_shot,
        defaults={"density": _REQUIRED, "score": "magnitude", "scope": "layer", "baseline": None, **_CHOSEN},
        kind="once",
    ),
    "synflow": _Kind(
        build=_synflow, defaults={"density": _REQUIRED, "rounds": 100, "least": 1, "layers": "*"}, kind="once"
    ),
    "neurons": _Kind(build=_neurons, defaults={"density": _REQUIRED, **_CHOSEN}, kind="once"),
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
    filled = _filled(own, _KINDS[name].defaults, f"the method {name!r}")
    return {"name": name, **{key: list(value) if isinstance(value, tuple) else value for key, value in filled.items()}}


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


def apply_once(settings: Mapping[str, Any], model: nn.Module, data: DataSet, *, seed: int) -> None:
    """Let a method that acts before training act."""
    _KINDS[settings["name"]].build(_Call(settings, model, None, 1, 1, data, _draws(seed))).step()


def make_method(settings: Mapping[str, Any], data: DataSet, *, epochs: int, seed: int) -> Method:
    """Return what `train` takes as `method`, from checked settings."""

    def method(model: nn.Module, optimizer: Optimizer, steps: int) -> Controller:
        return _KINDS[settings["name"]].build(_Call(settings, model, optimizer, steps, epochs, data, _draws(seed)))

    return method


def _draws(seed: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_DRAW,))


def unknown(name: Any, known: Collection[str]) -> str:
    """Return what to say of an unknown name: the known one most like it, or all."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"the nearest is {near[0]!r}" if near else f"known: {', '.join(map(repr, known))}"


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the defaults with what was given; refuse what has no default, and what was needed and not given."""
    for key in given:
        if key not in defaults:
            raise SpecError(f"The settings of {what} must be known ones ({unknown(key, defaults)}). Got {key!r}.")
    filled = {**defaults, **given}
    missing = [key for key, value in filled.items() if value is _REQUIRED]
    if missing:
        raise SpecError(f"The settings of {what} must have {missing[0]!r}. Got {dict(given)}.")
    return filled
