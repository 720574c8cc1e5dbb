"""From the settings of a method to the controller that carries them out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import topogen as tg
from topogen import checks
from topogen_torch._layers import SparseLinear
from topogen_torch._training._given import REQUIRED, filled
from topogen_torch.controllers import (
    SET,
    SNFS,
    Controller,
    GradualMagnitude,
    LotteryTicket,
    Movement,
    OneShot,
    ProximalL1,
    RigL,
    SynFlow,
    Threshold,
    grasp_scores,
    growth,
    inverted,
    shuffled,
    snip_scores,
    synflow_scores,
)
from topogen_torch.controllers._structured import PruneNeurons
from topogen_torch.data import DataSet

__all__ = [
    "Call",
    "cubic",
    "grasp",
    "l1",
    "lottery",
    "movement",
    "neurons",
    "one_shot",
    "rigl",
    "set_",
    "snfs",
    "snip",
    "synflow",
    "threshold",
]

_SCORES = ("magnitude", "random", "snip", "grasp", "synflow")
_NEURONS = 103  # names, below a method's seed, the draw of neurons; `shuffled` has 101
_TEMPERATURE = 200  # GraSP's authors divide the logits by it


@dataclass(frozen=True, slots=True)
class Call:
    """What a method is built from.

    Attributes
    ----------
    settings : mapping
        Checked ones, with the method's name.
    model, optimizer
        Of a method that acts before training the optimizer is None.
    steps, epochs : int
        Of the schedule.
    data : DataSet
    seed : SeedSequence
        Of what the method draws.
    baseline : {None, "shuffled", "inverted"}
        What it does with its scores instead of following them.
    """

    settings: Mapping[str, Any]
    model: nn.Module
    optimizer: Any
    steps: int
    epochs: int
    data: DataSet
    seed: np.random.SeedSequence
    baseline: str | None = None

    @property
    def owner(self) -> str:
        """As error sentences call the method."""
        return f"the method {self.settings['name']!r}"

    def share(self, name: str) -> int:
        """Return the step at a share of the run."""
        return self.step_at(self.settings[name], name)

    def step_at(self, share: Any, name: str) -> int:
        """Return the step at a share of the run, given as the setting `name`."""
        return round(checks.real(share, name, self.owner, high=1.0) * self.steps)

    @property
    def every(self) -> int:
        """Steps between two updates."""
        given = self.settings["update_every"]
        if given == "epoch":
            return self.steps // self.epochs
        if isinstance(given, str):
            checks.refuse("update_every", self.owner, "an int >= 1 or 'epoch'", given)
        return checks.integer(given, "update_every", self.owner, low=1)

    def number(self, name: str, *, end: int | None = None) -> Any:
        """Return a setting that is a number, or {"shape": ..., "initial": ..., "final": ...} over the run."""
        return self._number(self.settings[name], name, end)

    def chosen(self, *, end: int | None = None) -> dict[str, Any]:
        """Return the layers that are controlled, and the settings of groups of them."""
        groups = checks.row(self.settings["groups"], "groups", self.owner, "a list of mappings")
        for group in groups:
            if not isinstance(group, Mapping):
                checks.refuse("groups", self.owner, "a list of mappings", self.settings["groups"])
        numbers = [
            {
                key: value if key in ("layers", "score") else self._number(value, key, end)
                for key, value in group.items()
            }
            for group in groups
        ]
        for layers in (self.settings["layers"], *(group.get("layers", "*") for group in groups)):
            if not _are_names(layers):
                checks.refuse("layers", self.owner, "a pattern of names, or a list of them", layers)
        return {"layers": self.settings["layers"], "groups": numbers}

    def _number(self, given: Any, name: str, end: int | None) -> Any:
        """Return a schedule that ends with the run, or at `end`, where a mapping was given, and a number as it is."""
        if isinstance(given, Mapping):
            values = filled(given, {"shape": "cosine", "initial": REQUIRED, "final": 0.0}, f"{name} in {self.owner}")
            return tg.Schedule(**values, begin_step=0, end_step=self.steps if end is None else end)
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            checks.refuse(name, self.owner, "a number, or a schedule such as cosine(0.5, 0.1)", given)
        return given

    def judged(self, score: Any) -> Any:
        """Return a score as the baseline has it."""
        if self.baseline is None:
            return score
        return inverted(score) if self.baseline == "inverted" else shuffled(score, rng=self.seed)

    def grown(self, rule: Any) -> dict[str, Any]:
        """Return how connections grow, as the baseline has it: shuffled scores of empty places are a draw."""
        return {"grow": rule} if self.baseline is None else {"grow": growth.at_random, "rng": self.seed}


def _are_names(given: Any) -> bool:
    names = given if isinstance(given, (list, tuple)) else [given]
    return all(isinstance(name, str) for name in names)


# ---- methods that move connections


def set_(call: Call) -> Controller:
    """Build SET."""
    fraction = call.number("drop_fraction")
    return SET(
        call.model, call.optimizer, rng=call.seed, update_every=call.every, drop_fraction=fraction, **call.chosen()
    )


def rigl(call: Call) -> Controller:
    """Build RigL."""
    return RigL(
        call.model, call.optimizer, end_step=max(1, call.share("end")), update_every=call.every,
        drop_fraction=call.number("drop_fraction"), **call.grown(growth.by_gradient), **call.chosen(),
    )  # fmt: skip


def snfs(call: Call) -> Controller:
    """Build sparse momentum."""
    return SNFS(
        call.model, call.optimizer, end_step=max(1, call.share("end")), update_every=call.every,
        drop_fraction=call.number("drop_fraction"), window=call.settings["window"],
        momentum=call.settings["momentum"], **call.grown(growth.by_gradient), **call.chosen(),
    )  # fmt: skip


# ---- methods that prune while the model trains


class MovementPruning(GradualMagnitude):
    """Gradual pruning by movement, which looks at the gradients before every step of the optimizer."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, judged: Callable[[Any], Any], **settings: Any
    ) -> None:
        self._movement = Movement(model)
        super().__init__(model, optimizer, score=judged(self._movement), **settings)
        optimizer.register_step_pre_hook(lambda *_: self._movement.step())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the method must remember."""
        return {**super().state_dict(), "movement": self._movement.state_dict()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._movement.load_state_dict(state["movement"])


def _gradual(call: Call) -> dict[str, Any]:
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


def cubic(call: Call) -> Controller:
    """Build gradual magnitude pruning."""
    return GradualMagnitude(call.model, call.optimizer, score=call.judged("magnitude"), **_gradual(call))


def movement(call: Call) -> Controller:
    """Build gradual movement pruning."""
    return MovementPruning(call.model, call.optimizer, judged=call.judged, **_gradual(call))


def l1(call: Call) -> Controller:
    """Build proximal L1."""
    return ProximalL1(
        call.model, call.optimizer, strength=call.number("strength"), update_every=call.every,
        metric=call.settings["metric"], **call.chosen(),
    )  # fmt: skip


def threshold(call: Call) -> Controller:
    """Build pruning below a threshold; a share of 0 is the first step."""
    given = call.settings["at"]
    shares = (given,) if isinstance(given, (int, float)) else checks.row(given, "at", call.owner, "shares of the run")
    steps = [max(1, call.step_at(share, "at")) for share in shares]
    if not steps or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
        checks.refuse(
            "at", call.owner, f"rising shares of the run that name different ones of {call.steps} steps", given
        )
    return Threshold(call.model, call.optimizer, quality=call.number("quality"), steps=steps, **call.chosen())


def lottery(call: Call) -> Controller:
    """Build iterative magnitude pruning with rewinding; each round takes the whole schedule."""
    rounds = checks.integer(call.settings["rounds"], "rounds", call.owner, low=1)
    if (back := call.settings["rewind_to"]) == 1:
        checks.refuse("rewind_to", call.owner, "a finite number in [0, 1)", back)
    names = ("rewind", "optimizer_state", "scope")
    return LotteryTicket(
        call.model, call.optimizer, rounds=rounds, round_steps=call.steps,
        drop_fraction=call.number("drop_fraction", end=rounds), rewind_to=min(call.share("rewind_to"), call.steps - 1),
        score=call.judged("magnitude"), **{name: call.settings[name] for name in names}, **call.chosen(end=rounds),
    )  # fmt: skip


# ---- methods that prune before training


def one_shot(call: Call) -> Controller:
    """Build pruning by any score."""
    name = checks.one_of(call.settings["score"], "score", call.owner, _SCORES)
    own = checks.one_of(call.settings["baseline"], "baseline", call.owner, (None, "shuffled", "inverted"))
    if own is not None and call.baseline is not None:
        checks.refuse("baseline", call.owner, f"None where the baseline {call.baseline!r} is trained beside it", own)
    call = call if own is None else replace(call, baseline=own)
    if call.baseline is not None and name == "random":
        checks.refuse("baseline", call.owner, "None where the score is 'random'", call.baseline)
    return _pruned_by(call, name if name in ("magnitude", "random") else _scores(call, name))


def snip(call: Call) -> Controller:
    """Build pruning by connection sensitivity."""
    return _pruned_by(call, _scores(call, "snip"))


def grasp(call: Call) -> Controller:
    """Build pruning by gradient flow."""
    return _pruned_by(call, _scores(call, "grasp", temperature=_TEMPERATURE))


def _pruned_by(call: Call, score: Any) -> Controller:
    return OneShot(
        call.model, call.optimizer, density=call.settings["density"], score=call.judged(score),
        scope=call.settings["scope"], rng=call.seed, **call.chosen(),
    )  # fmt: skip


def _scores(call: Call, name: str, temperature: float = 1.0) -> dict[str, Tensor]:
    """Return the scores of all connections, from training images that the seed draws: ten a class."""
    if name == "synflow":
        return synflow_scores(call.model, (call.data.features,))
    count = min(len(call.data.train_y), 10 * len(call.data.classes))
    drawn = np.random.default_rng(call.seed).choice(len(call.data.train_y), count, replace=False)
    device = next(call.model.parameters()).device
    x, y = (torch.from_numpy(array[drawn]).to(device) for array in (call.data.train_x, call.data.train_y))
    scores = {"snip": snip_scores, "grasp": grasp_scores}[name]
    return scores(call.model, lambda model: cross_entropy(model(x) / temperature, y))


def synflow(call: Call) -> Controller:
    """Build iterated synaptic flow; shuffled, each layer keeps as many connections as it would, in random places."""
    settings = {name: call.settings[name] for name in ("density", "rounds", "least", "layers")}
    shape = (call.data.features,)
    if call.baseline is None:
        return SynFlow(call.model, call.optimizer, input_shape=shape, **settings)
    pruned = SynFlow(copy.deepcopy(call.model), input_shape=shape, **settings)
    pruned.step()
    kept = [{"layers": target.name, "density": target.stored / target.possible} for target in pruned.targets]
    return OneShot(
        call.model, call.optimizer, density=settings["density"], score="random", layers=settings["layers"], groups=kept,
        rng=call.seed,
    )  # fmt: skip


def neurons(call: Call) -> Controller:
    """Build the pruning of whole neurons."""
    return PruneNeurons(
        call.model, call.optimizer, density=call.settings["density"],
        score="norm" if call.baseline is None else _judged_norms(call), **call.chosen(),
    )  # fmt: skip


def _judged_norms(call: Call) -> Callable[[Any, Any], Tensor]:
    """Return the scores of neurons as the baseline has them: a draw, or less the larger the norm of all weights is."""

    def score(before: SparseLinear, behind: SparseLinear) -> Tensor:
        if call.baseline == "shuffled":
            draw = tg.stream(call.seed, _NEURONS, *bytes(before.pattern_hash.tolist()))
            return torch.from_numpy(draw.permutation(before.out_features))
        incoming, outgoing = (layer.to_scipy().astype(np.float64).power(2) for layer in (before, behind))
        return torch.from_numpy(-np.asarray(incoming.sum(0) + outgoing.sum(1)))

    return score
