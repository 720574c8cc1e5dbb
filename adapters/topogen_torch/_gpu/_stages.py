"""What the benchmark of a card does, in which order, and for how long: tasks that `Workers` carry out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from topogen_torch._gpu._accuracy import BOUNDS, KERNELS, TOKENS, Accuracy, accuracies
from topogen_torch._gpu._cases import Case, cases
from topogen_torch._gpu._ceilings import Ceilings, measure_ceilings
from topogen_torch._gpu._goals import SIZE, SPARSITIES
from topogen_torch._gpu._results import Results, row_line
from topogen_torch._gpu._timed import Row, row_of
from topogen_torch._gpu._training_steps import KINDS, MODELS, Steps, training_steps
from topogen_torch._gpu._tune import Trial, Tuned, first_trials, launch_once, tune_pass, tuning_cases
from topogen_torch._gpu._workers import Task

__all__ = ["Outcomes", "Stage", "stages"]

_MOST = 12  # processes that compile
_SECONDS = 45.0  # that a task may take on a card: a kernel that hangs costs no more


class Outcomes(Protocol):
    """`Workers.outcomes`."""

    def __call__(
        self, tasks: Iterable[tuple[Any, Task]], *, processes: int, seconds: float, end: float
    ) -> Iterable[tuple[Any, Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Tasks of one kind.

    `take` puts one result where it belongs and returns what is said of it. `until` is the share of the budget after
    which no task is begun.
    """

    name: str
    tasks: Iterable[tuple[str, Task]]
    take: Callable[[Any], str]
    until: float
    processes: int = 1
    seconds: float = _SECONDS


def stages(results: Results, device: torch.device) -> Iterator[Stage]:
    """Yield the stages of a benchmark, what matters most first, and say in `results` what is planned."""
    settings, on_card = results.settings, device.type == "cuda"
    chosen = list(cases(settings["sizes"], settings["blocks"], settings["sparsities"]))
    results.planned = [(case, kernel) for case in chosen for kernel in case.kernels]
    width = min(settings["sizes"], key=lambda size: abs(size - SIZE))
    for stage in (
        _ceilings(results, on_card),
        _checks(results, device, width),
        _tuning(results, width),
        _layers(results, f"layers of {width}", [each for each in results.planned if each[0].n == width], 0.8),
        _training(results, on_card, width),
        _layers(results, "other layers", [each for each in results.planned if each[0].n != width], 1.0),
    ):
        yield stage if on_card else replace(stage, processes=1, seconds=600.0)


def _ceilings(results: Results, on_card: bool) -> Stage:
    def take(found: Ceilings) -> str:
        results.ceilings = found
        return ""

    sizes = {} if on_card else {"size": 64, "copied": 1 << 16}
    return Stage(name="ceilings", tasks=[("ceilings", partial(measure_ceilings, **sizes))], take=take, until=0.2)


def _checks(results: Results, device: torch.device, width: int) -> Stage:
    """Check every kernel, and compile on all cores what the next stage would compile one by one."""
    settings = results.settings

    def take(found: list[Accuracy] | None) -> str:
        results.accuracies.extend(found or ())
        return "\n".join(f"WRONG: {each}" for each in found or () if not each.holds)

    tokens = TOKENS if device.type == "cuda" else 20
    tasks: list[tuple[str, Task]] = [
        (f"check of {way}, blocks of {block}, {arithmetic}",
         partial(accuracies, [block], tokens=tokens, arithmetics=[arithmetic], ways=[way]))
        for arithmetic in BOUNDS for block in settings["blocks"] for way in KERNELS
    ]  # fmt: skip
    dtype = getattr(torch, settings["dtype"])
    trials = [
        trial
        for case, kernel in (_tuned_cases(results, width) if settings["tune"] else [])
        for trial in first_trials(case, kernel, settings["tokens"], dtype, device)
    ]
    for trial in {_compiled_as(trial): trial for trial in trials}.values():
        launch = partial(_try_once, trial, settings["tokens"], dtype)
        tasks.append((f"trial of {trial.config} for {trial.case}", launch))
    processes = max(1, min(_MOST, (os.cpu_count() or 1) - 2))
    return Stage(name="checks and compilation", tasks=tasks, take=take, until=0.4, processes=processes)


def _tuning(results: Results, width: int) -> Stage:
    settings, card = results.settings, results.facts.get("card", "")

    def take(found: Tuned | None) -> str:
        if found is None:
            return "a pass that cannot be tuned"
        results.tuned.append(found)
        return f"{found.key}: {found.default_seconds / found.seconds:.2f}x by {found.config}"

    dtype = getattr(torch, settings["dtype"])
    tasks: list[tuple[str, Task]] = [
        (
            f"tuning of pass {place} of {case}",
            partial(tune_pass, case, kernel, place, settings["tokens"], dtype, card, 2),
        )
        for case, kernel in (_tuned_cases(results, width) if settings["tune"] else [])
        for place in range(3)
    ]
    return Stage(name="tuning", tasks=tasks, take=take, until=0.65, seconds=2 * _SECONDS)


def _layers(results: Results, name: str, planned: list[tuple[Case, str]], until: float) -> Stage:
    settings = results.settings

    def take(found: Row) -> str:
        results.rows.append(found)
        return row_line(found, results.ceilings, results.ceiling)

    def tasks() -> Iterator[tuple[str, Task]]:
        for case, kernel in planned:
            # A capture that fails costs a process: once is enough.
            bsr_as_graph = all(row.bsr is None or row.bsr.as_graph for row in results.rows)
            yield f"{case}, {kernel}", partial(row_of, case, kernel, settings["tokens"], dtype, bsr_as_graph)

    dtype = getattr(torch, settings["dtype"])
    return Stage(name=name, tasks=tasks(), take=take, until=until)


def _training(results: Results, on_card: bool, width: int) -> Stage:
    settings = results.settings

    def take(found: Steps) -> str:
        results.steps.append(found)
        return str(found)

    block = min(settings["blocks"], key=lambda size: abs(size - 64))
    sparsity = 0.9 if on_card else 0.95  # of 4 x 4 blocks one is left
    sizes = {"block": block, "width": width, "tokens": settings["tokens"], "depth": 4 if on_card else 1}
    tasks: list[tuple[str, Task]] = [
        (f"training of a {kind} {model}", partial(training_steps, model, kind, sparsity=sparsity, **sizes))
        for model in MODELS
        for kind in KINDS
    ]
    return Stage(name="training", tasks=tasks, take=take, until=0.9)


def _tuned_cases(results: Results, width: int) -> list[tuple[Case, str]]:
    """Return the layers of `width` neurons for whose density there is a goal, and RadiX layers."""
    blocks = results.settings["blocks"]
    layers = [each for block in blocks for each in tuning_cases([width], [block], tuple(SPARSITIES[block]))]
    return [each for each in dict.fromkeys(layers) if each[0].pattern == "random" or each[0].block <= 64]


def _compiled_as(trial: Trial) -> tuple[Any, ...]:
    """Return what the code of a trial depends on."""
    return trial.kernel, trial.place, trial.case.block, replace(trial.config, split_k=1, group=1)


def _try_once(trial: Trial, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    """Launch a setting that may be more than the card has: then tuning leaves it out, and nothing has failed."""
    try:
        launch_once(trial, tokens, dtype, device)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"{trial.config} for {trial.case}: {text}", flush=True)
