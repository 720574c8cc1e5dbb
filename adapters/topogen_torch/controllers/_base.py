"""What every controller is: the one owner of all state of a method that changes connections while a model trains."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topogen import Schedule, as_seed, checks
from topogen.errors import SpecError, TopogenError
from topogen_torch._layout import is_hash_of
from topogen_torch._patterned import Patterned
from topogen_torch._ranks import check_ranks, check_same, retire_wrappers
from topogen_torch._rewire import Rewiring, refuse_sharded, rewire
from topogen_torch._together import together
from topogen_torch.controllers._fired import Fired

__all__ = ["Controller", "Number", "Target", "value_at"]

Number = float | Schedule | Callable[[int], float]  # a hyper-parameter: constant, or a function of the step

_STREAM = 100  # first word of the keys under which controllers draw; topogen's own words are smaller


def value_at(number: Any, step: int) -> float:
    """Return the value of a `Number` at a step."""
    return float(cast(Any, number)(step)) if callable(number) else float(number)


class Target:
    """One layer under a controller, with the settings that hold for it."""

    def __init__(self, name: str, layer: Patterned, settings: Mapping[str, Any], number: int) -> None:
        self.name = name
        self.layer = layer
        self.number = number  # in the order of the model's layers: names the layer's draws
        self._settings = dict(settings)
        self.look()

    @property
    def possible(self) -> int:
        """Places of the stored pattern."""
        n_in, n_out = self.layer._stored_sizes
        return n_in * n_out

    @property
    def stored(self) -> int:
        """Units stored now."""
        return self.layer.values.shape[0]

    def look(self) -> None:
        """Take the pattern that the layer has now for the one that it should have."""
        self._hash = self.layer.pattern_hash
        self._version = _version(self._hash)
        self.seen = bytes(self._hash.tolist())

    @property
    def is_as_seen(self) -> bool:
        """Whether the layer has the pattern that it had at the last look."""
        found = self.layer.pattern_hash
        if found is self._hash and self._version is not None and _version(found) == self._version:
            return True  # nobody has written to it, as nobody has at most steps
        if bytes(found.tolist()) != self.seen:
            return False
        self._hash, self._version = found, _version(found)
        return True

    def setting(self, name: str) -> Any:
        """Return a hyper-parameter as it was given."""
        return self._settings[name]

    def at(self, name: str, step: int) -> float:
        """Return the value of a hyper-parameter at a step."""
        return value_at(self._settings[name], step)


def _version(tensor: Tensor) -> int | None:
    """Return how often the tensor was written to; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version


class Controller(ABC):
    """Base of the methods; ``step()`` after each ``optimizer.step()`` is all that a training loop adds.

    Parameters
    ----------
    model : nn.Module
        Holds the layers; what is no topogen layer is left alone.
    optimizer : torch.optim.Optimizer or None
        Holds the layers' values; its state follows the connections. None where nothing is trained.
    layers : str or sequence of str
        Names of the layers to control, as patterns of ``fnmatch``; all by default.
    groups : sequence of mappings
        Settings for some of the layers: ``{"layers": pattern, setting: value, ...}``; later ones win.
    rng : int, numpy.random.SeedSequence or Generator, optional
        For methods that draw. Each draw is named by step and layer, so that nothing but the seed need be kept.

    Notes
    -----
    A method overrides `_due` and `_proposal`, names in `_per_layer` the settings that groups may have of their own, and
    calls ``super().__init__`` with its settings. After every change the number of connections is what the method asked
    for, exactly, in each layer.
    """

    _per_layer: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
        rng: Any = None,
        settings: Mapping[str, Any],
    ) -> None:
        self._owner = type(self).__name__
        checks.instance(model, "model", self._owner, nn.Module)
        if optimizer is not None:
            checks.instance(optimizer, "optimizer", self._owner, Optimizer, "an")
        self.model, self.optimizer = model, optimizer
        self._seed = None if rng is None else as_seed(rng)
        self._settings = dict(settings)
        self._groups = [dict(group) for group in groups]
        self.targets = self._found(layers)
        self._count = 0
        self._check_alike()
        self._fired = {target.name: Fired(target.layer) for target in self.targets}

    # -- what a method adds ------------------------------------------------------------------------------------------

    @abstractmethod
    def _due(self, step: int) -> bool:
        """Whether connections change at the end of this step, counted from 1."""

    @abstractmethod
    def _proposal(self, step: int) -> list[Rewiring]:
        """Return what the layers are to become; nothing is changed here."""

    # -- what a training loop calls ----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Count one training step, and change the connections if it is time. Return whether they changed.

        Raises
        ------
        SpecError
            If a layer's pattern was changed by somebody else; when connections are to change also if a layer is no part
            of the model any more, the optimizer does not hold its values or keeps one state for all of them, or it is
            sharded.
        TopogenError
            If a score is NaN: nothing is changed, and the step is counted. In a process group on every rank, if the
            patterns of two ranks differ after the change; their hashes are named.
        """
        is_due = self._due(self._count + 1)
        if is_due:
            self._check_unchanged()
        else:
            self._check_patterns()
        self._count += 1
        if not is_due:
            return False
        self._carry_out(self._proposal(self._count))
        return True

    def forget(self) -> None:  # noqa: B027
        """Forget what was recorded since the last step, which the optimizer skipped: its gradients count for nothing.

        A loss scale (`torch.amp.GradScaler`) skips a step whose gradients are not finite.
        """

    @property
    def steps(self) -> int:
        """Training steps counted so far."""
        return self._count

    def explored(self) -> dict[str, float]:
        """Return for each layer the share of its places that were ever occupied: the in-time over-parametrisation rate.

        R_s of S. Liu et al., arXiv:2102.02887, section 3.
        """
        return {name: fired.rate for name, fired in self._fired.items()}

    def survival(self) -> dict[str, float]:
        """Return for each layer the share of the connections it began with that it still has."""
        return {target.name: self._fired[target.name].survival(target.layer) for target in self.targets}

    def wanted(self) -> dict[str, int]:
        """Return for each layer the units that the method wants it to have at this step; by default what it has."""
        return {target.name: target.stored for target in self.targets}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the method must remember, as tensors, numbers, strings, lists and dicts."""
        return {
            "method": self._owner,
            "count": self._count,
            "settings": _plain(self._settings),
            "groups": _plain(self._groups),
            "seed": None if self._seed is None else _plain_seed(self._seed),
            "layers": {
                target.name: {"pattern_hash": target.seen.hex(), **self._fired[target.name].state_dict()}
                for target in self.targets
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state: load the model's and the optimizer's first, so that the patterns are those of the state.

        Raises
        ------
        SpecError
            If it is the state of another method, other settings, other layers, or other patterns. Nothing is changed.
        """
        own = self.state_dict()
        for key in own:
            if key not in state:
                raise SpecError(f"The state of {self._owner} must be whole. Got no '{key}'.")
        for key in ("method", "settings", "groups"):
            if state[key] != own[key]:
                raise SpecError(f"The state of {self._owner} must be of the same {key}, {own[key]}. Got {state[key]}.")
        if list(state["layers"]) != list(own["layers"]):
            raise SpecError(
                f"The state of {self._owner} must be of the layers {list(own['layers'])}. Got {list(state['layers'])}."
            )
        for target in self.targets:
            now, entry = bytes(target.layer.pattern_hash.tolist()).hex(), state["layers"][target.name]
            for key in own["layers"][target.name]:
                if key not in entry:
                    raise SpecError(
                        f"The state of {self._owner} must be whole. Got no '{key}' for layer '{target.name}'."
                    )
            stored = entry["pattern_hash"]
            if stored != now and not is_hash_of(target.layer._stored_pattern, stored):
                raise SpecError(
                    f"The state of {self._owner} must belong to the model's pattern in layer '{target.name}', "
                    f"{now[:12]}...: load the model's state first. Got {stored[:12]}..."
                )
        self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that was checked."""
        self._count = state["count"]
        self._seed = state["seed"] and _seed(state["seed"])
        for target in self.targets:
            target.look()
            self._fired[target.name].load_state_dict(state["layers"][target.name])

    # -- what methods share ------------------------------------------------------------------------------------------

    def _carry_out(self, rewirings: Iterable[Rewiring]) -> None:
        self._check_apart()
        before, rewirings = [target.stored for target in self.targets], list(rewirings)
        rewire(rewirings, () if self.optimizer is None else (self.optimizer,))
        retire_wrappers([t.layer for t, count in zip(self.targets, before, strict=True) if t.stored != count])
        histories = {}
        for target in self.targets:
            target.look()
            histories[id(target.layer)] = self._fired[target.name]
        grown = [one.places if one.grown is None else one.grown for one in rewirings]
        notes = [partial(histories[id(one.layer)].note, own) for one, own in zip(rewirings, grown, strict=True)]
        together(notes, size=sum(map(len, grown)))
        check_ranks(self.model)

    def _stream(self, target: Target) -> np.random.Generator:
        """Return the generator for what is drawn for a layer in this step."""
        assert self._seed is not None
        key = (*self._seed.spawn_key, _STREAM, self._count, target.number)
        return np.random.default_rng(np.random.SeedSequence(self._seed.entropy, spawn_key=key))

    def _sound(self, scores: np.ndarray, target: Target, what: str) -> np.ndarray:
        """Return the scores, or refuse the whole rewiring where one of them is no number."""
        if np.isnan(scores.max(initial=-np.inf)):
            count = int(np.isnan(scores).sum())
            raise TopogenError(
                f"{self._owner} changes nothing at step {self._count}: {count} of {scores.size} scores by {what} in "
                f"layer '{target.name}' are NaN. A learning rate that is too large, or a loss that is not finite, "
                "are the usual causes."
            )
        return scores

    def _found(self, layers: str | Sequence[str]) -> tuple[Target, ...]:
        """Return the layers whose names match, each with its settings."""
        every = {name or "(model)": m for name, m in self.model.named_modules() if isinstance(m, Patterned)}
        if not every:
            raise SpecError(
                f"The 'model' parameter of {self._owner} must have sparse layers. Got none: "
                "topogen_torch.sparsify(model, density=1.0) makes them of dense ones."
            )
        chosen = set(_matching(layers, every, "layers", self._owner))
        settings = {name: dict(self._settings) for name in every}
        for group in self._groups:
            own = {key: value for key, value in group.items() if key != "layers"}
            if not set(own) <= set(self._per_layer) or "layers" not in group:
                raise SpecError(
                    f"The 'groups' parameter of {self._owner} must have mappings of 'layers' and any of "
                    f"{sorted(self._per_layer)}, since the other settings are those of all layers. Got {sorted(group)}."
                )
            for name in _matching(group["layers"], every, "groups", self._owner):
                settings[name] |= own
        targets = tuple(
            Target(name, layer, settings[name], number)
            for number, (name, layer) in enumerate(every.items())
            if name in chosen
        )
        self._check_held(targets)
        return targets

    def _check_alike(self) -> None:
        """In a process group, refuse what would make the ranks do different things."""
        state = {"settings": _plain(self._settings), "groups": _plain(self._groups), "layers": len(self.targets)}
        seed = None if self._seed is None else _plain_seed(self._seed)
        device = self.targets[0].layer.pattern_hash.device
        check_same(f"settings of {self._owner}", repr(state), device)
        check_same(f"seed of {self._owner}", repr(seed), device)

    def _check_held(self, targets: Iterable[Target]) -> None:
        for target in targets:
            refuse_sharded(target.layer, f"'{target.name}'")
        if self.optimizer is None:
            return
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        missing = [target.name for target in targets if id(target.layer.values) not in held]
        if missing:
            raise SpecError(
                f"The 'optimizer' parameter of {self._owner} must hold the values of every layer that it controls. "
                f"It lacks those of {', '.join(repr(name) for name in missing)}."
            )

    def _check_unchanged(self) -> None:
        for target in self.targets:
            if not _is_in(self.model, target):
                raise SpecError(
                    f"{self._owner} must control layers of its model. The one that was '{target.name}' is in it no "
                    f"more: make a new {self._owner}."
                )
        self._check_patterns()
        self._check_held(self.targets)

    def _check_patterns(self) -> None:
        """Refuse patterns that somebody else has changed."""
        for target in self.targets:
            if not target.is_as_seen:
                raise SpecError(
                    f"{self._owner} must be the only one to change the layers that it controls. "
                    f"The pattern of '{target.name}' was changed since its last step: make a new {self._owner}, or "
                    "load its state after the model's."
                )

    def _check_apart(self) -> None:
        """Refuse an optimizer that has state for all parameters in a row, as L-BFGS does: it could not follow."""
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            length = sum(parameter.numel() for parameter in group["params"])
            for parameter in group["params"]:
                for name, entry in self.optimizer.state.get(parameter, {}).items():
                    if isinstance(entry, Tensor) and entry.shape == (length,) and parameter.numel() < length:
                        raise SpecError(
                            "The optimizer of a rewired layer must keep the state of each parameter apart. "
                            f"{type(self.optimizer).__name__} keeps '{name}', {length} numbers of all of them in a row."
                        )


def _is_in(model: nn.Module, target: Target) -> bool:
    """Whether the layer is in the model: where it was, as a rule, or else inside something that was put around it."""
    try:
        found = model.get_submodule("" if target.name == "(model)" else target.name)
    except AttributeError:
        found = None
    return found is target.layer or any(module is target.layer for module in model.modules())


def _matching(patterns: str | Sequence[str], names: Iterable[str], parameter: str, owner: str) -> list[str]:
    """Return the names that match any of the patterns; a pattern that matches none is refused."""
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    names = list(names)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(
                f"The '{parameter}' parameter of {owner} must name sparse layers, {', '.join(map(repr, names))}. "
                f"Got {pattern!r}, which matches none."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]


def _plain(value: Any) -> Any:
    """Return settings as what a state dict may hold; a function is known by its name only, a tensor by its digest."""
    if isinstance(value, Schedule):
        return {"schedule": asdict(value)}
    if isinstance(value, Tensor):
        entries = value.detach().cpu().flatten().contiguous().view(torch.uint8)
        return {"tensor": hashlib.sha256(entries.numpy().tobytes()).hexdigest()}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):  # which torch.load(weights_only=True) refuses
        return value.item()
    if callable(value):
        return {
            "function": f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
        }
    return value


def _plain_seed(seed: np.random.SeedSequence) -> dict[str, Any]:
    entropy = seed.entropy if isinstance(seed.entropy, (Sequence, np.ndarray)) else [seed.entropy]
    return {"entropy": [str(word) for word in entropy], "spawn_key": [int(word) for word in seed.spawn_key]}


def _seed(plain: Mapping[str, Any]) -> np.random.SeedSequence:
    words = [int(word) for word in plain["entropy"]]
    return np.random.SeedSequence(words[0] if len(words) == 1 else words, spawn_key=tuple(plain["spawn_key"]))
