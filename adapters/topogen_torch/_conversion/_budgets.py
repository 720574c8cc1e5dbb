"""Which weights stay: a budget of connections spread over the layers, and the highest scores within each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import topogen as tg
from topogen import checks
from topogen.errors import SpecError
from topogen_torch._conversion._globs import quoted
from topogen_torch._conversion._kinds import Part

__all__ = ["DISTRIBUTIONS", "SCORES", "Plan", "checked_plan", "kept"]

DISTRIBUTIONS = ("erk", "er", "uniform", "global")
SCORES = ("magnitude", "random")


class Plan(NamedTuple):
    """How connections are chosen, every field checked."""

    density: float
    distribution: str
    score: Any  # one of SCORES, or a callable (name, weight) -> scores
    seed: np.random.SeedSequence | None
    whole_kernels: bool


def checked_plan(
    density: Any, distribution: Any, score: Any, seed: np.random.SeedSequence | None, whole_kernels: Any
) -> Plan:
    """Check what the user of sparsify asks for."""
    owner = "sparsify"
    density = checks.real(density, "density", owner, high=1.0, open_low=True)
    distribution = checks.one_of(distribution, "distribution", owner, DISTRIBUTIONS)
    if not callable(score) and not (isinstance(score, str) and score in SCORES):
        checks.refuse("score", owner, "'magnitude', 'random' or a callable (name, weight) -> scores", score)
    if score == "random" and seed is None:
        checks.refuse("rng", owner, "given for score='random'", None, hint="rng=0 would do.")
    return Plan(density, distribution, score, seed, checks.instance(whole_kernels, "whole_kernels", owner, bool))


@torch.no_grad()
def kept(parts: dict[str, Part], draws: dict[str, int], plan: Plan) -> dict[str, Tensor]:
    """Return for each part the mask of the weights that stay, bool, (inputs, outputs, *kernel).

    `draws` says which random draw belongs to each part. Among equal scores the earlier in value ordering stays.
    """
    shapes = [tuple(part.weight.shape) for part in parts.values()]
    sizes = [math.prod(shape) for shape in shapes]
    units = [math.prod(shape[2:]) if plan.whole_kernels else 1 for shape in shapes]
    spread = "uniform" if plan.distribution == "global" else plan.distribution
    counts = tg.connection_counts(shapes, density=plan.density, distribution=spread)
    if sum(counts) < max(units):
        raise SpecError(
            f"The 'density' parameter of sparsify must leave at least {max(units)} of the {sum(sizes):,} weights. "
            f"Got {plan.density!r}; the nearest that does is {max(units) / sum(sizes):.3g}."
        )
    if plan.density == 1:
        return {name: torch.ones(part.turn(part.weight).shape, dtype=torch.bool) for name, part in parts.items()}
    scored = ((name, part, _unit_scores(name, part, draws[name], plan)) for name, part in parts.items())
    if plan.distribution != "global":
        counts = _whole(counts, units) if plan.whole_kernels else counts
        return {
            name: _spread(_highest(scores.flatten(), count // unit).view(scores.shape), part)
            for (name, part, scores), count, unit in zip(scored, counts, units, strict=True)
        }
    return _kept_globally(list(scored), sum(counts), units)


def _kept_globally(scored: Sequence[tuple[str, Part, Tensor]], budget: int, units: Sequence[int]) -> dict[str, Tensor]:
    """Compare the scores of all parts; whole kernels are taken, the highest mean first, as long as they fit."""
    everything = torch.cat([scores.flatten().cpu().double() for _, _, scores in scored])
    if max(units) == 1:
        chosen = _highest(everything, budget)
    else:
        order = everything.argsort(stable=True, descending=True)
        lengths = torch.tensor([scores.numel() for _, _, scores in scored])
        weights = torch.repeat_interleave(torch.tensor(units), lengths)[order]
        chosen = torch.zeros_like(everything, dtype=torch.bool)
        chosen[order[weights.cumsum(0) <= budget]] = True
    pieces = chosen.split([scores.numel() for _, _, scores in scored])
    return {
        name: _spread(piece.view(scores.shape).to(scores.device), part)
        for piece, (name, part, scores) in zip(pieces, scored, strict=True)
    }


def _spread(chosen: Tensor, part: Part) -> Tensor:
    """Return the mask of the weights from the mask of their units: the same, or one entry for a whole kernel."""
    shape = part.turn(part.weight).shape
    return chosen.view(*chosen.shape, *[1] * (len(shape) - chosen.ndim)).expand(shape)


def _whole(counts: list[int], units: Sequence[int]) -> list[int]:
    """Round to whole kernels, down and then up where the remainders are largest, and never above the sum."""
    rounded = [count - count % unit for count, unit in zip(counts, units, strict=True)]
    left = sum(counts) - sum(rounded)
    for k in sorted(range(len(counts)), key=lambda k: (rounded[k] - counts[k]) / units[k]):
        if counts[k] > rounded[k] and units[k] <= left:
            rounded[k] += units[k]
            left -= units[k]
    return rounded


def _unit_scores(name: str, part: Part, draw: int, plan: Plan) -> Tensor:
    """Return the scores of single weights, or with `whole_kernels` of kernels, the mean of their weights' scores."""
    scores = part.turn(_scores(name, part.weight.detach(), draw, plan))
    if plan.whole_kernels and scores.ndim > 2:
        scores = scores.flatten(2).mean(2)
    if scores.isnan().any():
        raise SpecError(
            f"The scores of the weights of {quoted(name)} must not be NaN, which is neither large nor small. "
            f"Got {int(scores.isnan().sum())} of them."
        )
    return scores


def _scores(name: str, weight: Tensor, draw: int, plan: Plan) -> Tensor:
    if plan.score == "magnitude":
        return weight.abs() if weight.dtype == torch.float64 else weight.abs().float()
    if plan.score == "random":
        return torch.from_numpy(tg.stream(plan.seed, "member", draw).random(tuple(weight.shape)))
    scores: Any = plan.score(name, weight)
    wanted = f"a callable whose scores for {quoted(name)} are a real tensor of shape {tuple(weight.shape)}"
    if not isinstance(scores, Tensor):
        checks.refuse("score", "sparsify", wanted, type(scores).__name__)
    if scores.shape != weight.shape or scores.is_complex():
        checks.refuse("score", "sparsify", wanted, f"{scores.dtype} {tuple(scores.shape)}")
    scores = scores.detach().to(weight.device)
    return scores if scores.dtype == torch.float64 else scores.float()


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` highest of a row of scores, the earlier among equals."""
    if count in (0, scores.numel()):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    least = scores.kthvalue(scores.numel() - count + 1).values
    chosen = scores > least
    equal = (scores == least).nonzero().squeeze(1)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen
