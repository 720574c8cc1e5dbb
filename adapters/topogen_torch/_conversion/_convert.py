"""Any torch model with its layers made sparse, and dense again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

import topogen as tg
from topogen import checks
from topogen.errors import SpecError
from topogen_torch._conversion._budgets import Plan, checked_plan, kept
from topogen_torch._conversion._faster import not_faster
from topogen_torch._conversion._given import given_patterns
from topogen_torch._conversion._globs import Entry, covers, entries, quoted, refuse_unmatched
from topogen_torch._conversion._kinds import Choice
from topogen_torch._conversion._sentences import reasons, refuse_wrapped
from topogen_torch._conversion._survey import ALREADY_SPARSE, Candidate, Survey, survey
from topogen_torch._conversion._swap import densified, swapped

__all__ = ["LEFT_DENSE", "densify", "sparsify"]

LEFT_DENSE = "_topogen_left_dense"
"""The attribute of a converted model that says what stayed dense, and why: a dict of names to reasons."""

_log = logging.getLogger("topogen")


def sparsify(
    model: nn.Module,
    *,
    density: float | None = None,
    patterns: Mapping[Any, Any] | None = None,
    distribution: str = "erk",
    score: Any = "magnitude",
    include: Any = "*",
    exclude: Any = (),
    rng: Any = None,
    strict: bool = False,
    only_if_faster: bool = False,
    inplace: bool = False,
    whole_kernels: bool = False,
    sample: Any = None,
) -> nn.Module:
    r"""Return a model whose layers store and compute only some of their connections.

    Parameters
    ----------
    model : nn.Module
        Any model; it may be a single layer. Linear, convolutional, recurrent and attention layers of PyTorch, and the
        ``Conv1D`` of Hugging Face's GPT models, become the topogen layers of the same name.
    density : float, in (0, 1]
        Connections that stay / weights there are, over all layers together that are converted and not named by
        `patterns`. The number of connections is round(density * weights), exactly. The weights with the highest scores
        stay, with their values; 1 keeps all, so that only the class of the layers changes.
    patterns : mapping
        Patterns by name glob or type of module. A value is a matrix of shape (inputs, outputs), for a convolution also
        a list of them, one for each place of the kernel; or a topology or a spec, of one layer for each match, or of as
        many layers as modules match, in their order. The first entry that matches a layer counts. Without `density`
        the layers that no entry names stay dense.
    distribution : {"erk", "er", "uniform", "global"}
        How `density` is spread: see `topogen.connection_counts`; "global" compares the scores of all layers.
    score : {"magnitude", "random"} or callable
        What decides which weights stay. A callable takes a layer's name and its weight, in the layer's own order, and
        returns a real tensor of that shape. Among equal scores the earlier in value ordering stays, row-major over
        (inputs, outputs, kernel).
    include, exclude : name glob, type of module, or a sequence of them
        What is converted: what `include` matches and `exclude` does not. Matching a module covers all that is in it;
        ``*`` matches dots too.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, optional
        Required for random scores and random specs, ignored otherwise. Layer by layer the draws do not depend on what
        else is converted.
    strict : bool
        Whether it is an error if something that `include` and `exclude` select cannot be converted.
    only_if_faster : bool
        Whether to measure each layer beside the dense one, here and now, and to convert those that are faster only:
        forward and backward in training mode, forward in evaluation mode.
    inplace : bool
        Whether to change `model` instead of a copy. If the model is itself the layer, use what is returned.
    whole_kernels : bool
        Whether a convolution keeps or drops whole kernels, each joining one input channel to one output channel: it
        gets one pattern over channels, and computes faster than with one for each place of the kernel, which is what
        it gets otherwise. A kernel's score is the mean of its weights' scores; fewer connections stay than the budget
        has, by less than one kernel.
    sample : Tensor, or tuple, list or mapping of model inputs, optional
        What `only_if_faster` runs a copy of the model on to see what reaches each layer; required by layers that are
        not linear. Linear layers are measured on a batch of 64 without it.

    Returns
    -------
    nn.Module
        Training mode, dtype, device, hooks and ``requires_grad`` stay; biases too, in place as the same parameters.
        The gradients of what is converted are dropped. What was shared is shared.

    Raises
    ------
    SpecError
        If an argument is none of the above, a glob or type matches nothing, a pattern has another shape than its
        layer, a score is NaN, there is nothing to convert, or `strict` finds what cannot be. The model is as it was.

    Notes
    -----
    What stays dense is logged once, as a warning of the logger "topogen", each with its reason: parameters that no
    module of a known class owns (experts of shape (experts, in, out)), weights shared by several modules (an embedding
    and the head tied to it), weights that are computed (parametrizations, weight norm, pruning masks), quantized and
    sharded ones, modules whose shape is not known yet, and weights that another module's ``forward`` reads. `report`
    lists it too. Vectors, as biases and the scales of norms are, stay as they are, and nothing is said of them.

    Time and memory: the weights once more while a layer's are sorted, for "global" those of all layers.

    Examples
    --------
    >>> import torch, topogen_torch as tt
    >>> dense = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> model = tt.sparsify(dense, density=0.1)
    >>> model[0].nnz, model[2].nnz, round(0.1 * (64 * 32 + 32 * 10))
    (165, 72, 237)
    """
    checks.instance(model, "model", "sparsify", nn.Module)
    for name, flag in (("strict", strict), ("only_if_faster", only_if_faster), ("inplace", inplace)):
        checks.instance(flag, name, "sparsify", bool)
    if density is None and patterns is None:
        raise SpecError("sparsify needs 'density', 'patterns' or both. Got neither; density=0.1 would do.")
    seed = tg.as_seed(rng, owner="sparsify")
    plan = None if density is None else checked_plan(density, distribution, score, seed, whole_kernels)
    refuse_wrapped(model, "sparsify")
    found = survey(model)
    given = entries(include, "include"), entries(exclude, "exclude")
    selected, left, stuck = _selected(found, *given, getattr(model, LEFT_DENSE, {}))
    if strict and stuck:
        raise SpecError(
            f"The 'model' parameter of sparsify must be convertible as a whole with strict=True. Got {len(stuck)} that "
            f"cannot be: {reasons(stuck)}. To leave them as they are, name them in 'exclude'."
        )
    if not selected:
        why = reasons({**stuck, **left}) or "it has no weights"
        raise SpecError(f"The 'model' parameter of sparsify must have something to make sparse. Got none: {why}.")
    choices = _choices(found, selected, patterns, plan, seed)
    twins: dict[nn.Module, nn.Module] = {}
    for candidate in selected:
        names = [_full(candidate, part) for part in candidate.parts]
        if any(name in choices for name in names):
            twins[candidate.module] = _built(candidate, [choices.get(name) for name in names])
        else:
            left[candidate.name] = "named by no pattern"
    if only_if_faster:
        pairs = {c.name: (c.module, twins[c.module]) for c in selected if c.module in twins}
        slow = not_faster(model, pairs, sample)
        twins = {dense: sparse for name, (dense, sparse) in pairs.items() if name not in slow}
        stuck |= slow
    result = swapped(model, twins, inplace=inplace)
    if stuck:
        _log.warning("sparsify leaves %d as they are: %s.", len(stuck), reasons(stuck))
    if inplace and result is not model:
        _log.warning("A module cannot change its class in place: use the layer that sparsify returns.")
    dense = {name: reason for name, reason in (left | stuck).items() if reason != ALREADY_SPARSE}
    setattr(result, LEFT_DENSE, {name: dense[name] for name in found.holders if name in dense})
    return result


def densify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Return a model whose topogen layers are dense again, with zeros where there was no connection.

    Parameters
    ----------
    model : nn.Module
        Any model; it may be a single layer. Without topogen layers there is nothing to do.
    inplace : bool
        Whether to change `model` instead of a copy. If the model is itself the layer, use what is returned.

    Returns
    -------
    nn.Module
        It computes the same; ``densify(sparsify(model, density=1.0))`` has the state of `model`, bit by bit. Training
        mode, dtype, device, hooks, ``requires_grad`` and biases stay as `sparsify` keeps them.

    Raises
    ------
    SpecError
        If `model` is no module, or a layer has no dense form (attention with a mask of its own).

    Examples
    --------
    >>> import torch, topogen_torch as tt
    >>> dense = torch.nn.Linear(8, 4)
    >>> back = tt.densify(tt.sparsify(dense, density=1.0))
    >>> type(back).__name__, torch.equal(back.weight, dense.weight)
    ('Linear', True)
    """
    checks.instance(model, "model", "densify", nn.Module)
    checks.instance(inplace, "inplace", "densify", bool)
    refuse_wrapped(model, "densify")
    result = densified(model, inplace=inplace)
    vars(result).pop(LEFT_DENSE, None)
    if inplace and result is not model:
        _log.warning("A module cannot change its class in place: use the layer that densify returns.")
    return result


def _selected(
    found: Survey, include: tuple[Entry, ...], exclude: tuple[Entry, ...], earlier: Mapping[str, str]
) -> tuple[list[Candidate], dict[str, str], dict[str, str]]:
    """Return what the user selects, why the rest is left, and why what was selected cannot be converted.

    `earlier` are the reasons that an earlier conversion has noted: they tell more than that this one passes by.
    """
    refuse_unmatched(include, "include", found)
    refuse_unmatched(exclude, "exclude", found)

    def matched(given: tuple[Entry, ...], name: str) -> bool:
        return any(covers(entry, name, found) for entry in given)

    selected: list[Candidate] = []
    left: dict[str, str] = {}
    for candidate in found.candidates:
        name = candidate.name
        if not matched(include, name):
            left[name] = earlier.get(name, "not matched by 'include'")
        elif matched(exclude, name):
            left[name] = earlier.get(name, "matched by 'exclude'")
        else:
            selected.append(candidate)
    stuck = {name: why for name, why in found.left.items() if matched(include, name) and not matched(exclude, name)}
    left |= {name: why for name, why in found.left.items() if name not in stuck}
    return selected, left, stuck


def _choices(
    found: Survey, selected: list[Candidate], patterns: Any, plan: Plan | None, seed: np.random.SeedSequence | None
) -> dict[str, Choice]:
    """Return the patterns that are given, and those that the scores decide."""
    everything = [_full(candidate, part) for candidate in found.candidates for part in candidate.parts]
    draws = {name: k for k, name in enumerate(everything)}
    parts = {_full(candidate, name): part for candidate in selected for name, part in candidate.parts.items()}
    owners = {_full(candidate, name): candidate.name for candidate in selected for name in candidate.parts}
    choices = {} if patterns is None else given_patterns(patterns, parts, owners, draws, seed, found)
    if plan is None:
        return choices
    rest = {name: part for name, part in parts.items() if name not in choices}
    if not rest:
        checks.refuse("density", "sparsify", "None where 'patterns' names every layer", plan.density)
    for name, part in rest.items():
        if part.weight.is_meta and plan.density < 1 and plan.score != "random":
            raise SpecError(f"The weights of {quoted(name)} must hold data to be scored. Got a tensor on meta.")
    return choices | {name: _choice(mask, plan.whole_kernels) for name, mask in kept(rest, draws, plan).items()}


def _choice(mask: Tensor, whole_kernels: bool) -> Choice:
    """Return the mask of a weight, (inputs, outputs, *kernel), as one pattern, or as one for each place of a kernel.

    Which of the two does not depend on the mask, so that a layer can take the state of one with another density.
    """
    if mask.ndim == 2:
        return tg.as_pattern(mask.cpu().numpy())
    places = mask.flatten(2).cpu().numpy()
    if whole_kernels:
        return tg.as_pattern(places[:, :, 0])
    return [tg.as_pattern(places[:, :, k]) for k in range(places.shape[2])]


def _built(candidate: Candidate, chosen: Sequence[Choice | None]) -> nn.Module:
    """Return the sparse layer; a part for which nothing is chosen keeps all its connections."""
    parts = candidate.parts
    choices = {
        name: tg.as_pattern(np.ones(part.shape, bool)) if choice is None else choice
        for (name, part), choice in zip(parts.items(), chosen, strict=True)
    }
    layer = candidate.kind.build(candidate.module, choices)
    for part in parts.values():
        trained = candidate.module.get_parameter(part.source).requires_grad
        layer.get_parameter(part.values).requires_grad_(trained)
    return layer


def _full(candidate: Candidate, part: str) -> str:
    return f"{candidate.name}.{part}".strip(".")
