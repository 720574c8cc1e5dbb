"""The rows of the study of Alford et al.: which nets are trained, with which settings, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["DENSITIES", "RECIPES", "Row", "all_rows", "source_of"]

DENSITIES = (0.5, 0.25, 0.1, 0.05, 0.01)
"""What pruning leaves: sparsities of 50, 75, 90, 95 and 99 %."""

RECIPES: dict[str, dict[str, Any]] = {
    # The authors' last program: every linear layer is rectified, the one that gives the logits included, and weights
    # are drawn with one deviation, whatever a neuron's fan-in.
    "published": {
        "rectified": True, "initial": "published", "lr": 0.2, "schedule": "constant", "momentum": 0.0,
        "weight_decay": 0.004,
    },
    # the same but for one thing: the logits are not rectified
    "unrectified": {
        "rectified": False, "initial": "published", "lr": 0.2, "schedule": "constant", "momentum": 0.0,
        "weight_decay": 0.004,
    },
    # as this library trains where nothing else is asked for
    "modern": {
        "rectified": False, "initial": "fan-in", "lr": 0.1, "schedule": "cosine", "momentum": 0.9,
        "weight_decay": 1e-4,
    },
}  # fmt: skip

# how long a net is trained, and when it is pruned meanwhile: shares of the run as in the authors' 10,000 steps
_PLANS: dict[tuple[str, str], dict[str, Any]] = {
    ("lenet-300-100", "mnist"): {"epochs": 17, "begin_step": 2000, "end_step": 5000, "update_every": 200},
    ("lenet-5", "mnist"): {"epochs": 5, "begin_step": 600, "end_step": 1500, "update_every": 60},
    ("lenet-5", "cifar10"): {"epochs": 10, "begin_step": 1000, "end_step": 2500, "update_every": 100},
}
_LOWER = {"lr": 0.02}  # with momentum a tenth makes the convolutions of LeNet-5 diverge on CIFAR-10

_QUICK: dict[str, Any] = {"epochs": 3, "begin_step": 360, "end_step": 900, "update_every": 36}

_FIRST_RETRAINING = 10  # seeds of initialisations are none of those that made the structures


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One net, trained and judged.

    Attributes
    ----------
    data : {"mnist", "cifar10"}
    network : {"lenet-300-100", "lenet-5"}
    recipe : str
        Name of the settings below.
    topology : str
        "dense"; "one-time": a dense net pruned after its training, every layer to the density; "one-time global": by
        one threshold for all layers; "iterative": pruned during it; "one-time retrained", "one-time global retrained"
        and "iterative retrained": the structure that pruning left, initialised anew and trained; "random"; "radix";
        "random twin": as many connections in each layer as "radix".
    density : float
        Connections / possible connections of the layers that are sparse.
    factor : int
        Width of the first hidden layer (of LeNet-5: channels of the second convolution) / that of the dense net.
    structure : int
        Seed of the dense net whose pruning left the structure, or of the random pattern; 0 where nothing is drawn.
    seed : int
        Of the initial weights and the order of the images.
    rectified : bool
        Whether the logits pass a rectifier.
    initial : {"published", "fan-in"}
        Weights of one deviation and biases of 0.1, or He's for the actual fan-in and biases of 0.
    lr, schedule, momentum, weight_decay, batch_size, epochs
        As for `train`; the weight decay is that of the linear layers' weights.
    begin_step, end_step, update_every : int
        Of iterative pruning.
    """

    data: str
    network: str
    recipe: str
    topology: str
    density: float
    factor: int
    structure: int
    seed: int
    rectified: bool
    initial: str
    lr: float
    schedule: str
    momentum: float
    weight_decay: float
    batch_size: int
    epochs: int
    begin_step: int
    end_step: int
    update_every: int

    def __str__(self) -> str:
        width = f" width {self.factor}" if self.factor > 1 else ""
        return (
            f"{self.network} {self.data} {self.recipe} {self.topology} density {self.density:g}{width} "
            f"structure {self.structure} seed {self.seed}"
        )


def source_of(row: Row) -> Row:
    """Return the row whose net a pruned structure comes from."""
    if row.topology == "iterative retrained":
        return replace(row, topology="iterative", seed=row.structure)
    return replace(row, topology="dense", density=1.0, seed=row.structure)


def all_rows(quick: bool) -> Sequence[Row]:
    """Return the rows in the order in which they are measured: LeNet-300-100 first, and one seed of all before two."""
    if quick:
        plan = _Plan("lenet-300-100", "mnist", _QUICK)
        return [
            row
            for recipe in ("published", "unrectified")
            for row in (*plan.pruned(recipe, 0), *plan.given(recipe, 0, factors=(2, 10)))
        ]
    return [*_lenet_300_100(), *_lenet_5("mnist"), *_lenet_5("cifar10")]


def _lenet_300_100() -> Iterator[Row]:
    plan = _Plan("lenet-300-100", "mnist")
    for structure in (0, 1, 2):
        for recipe in RECIPES:
            yield from plan.pruned(recipe, structure)
            yield from plan.retrained(recipe, structure, seeds=(0,), ways=("one-time global",))
            yield from plan.given(recipe, structure, factors=(2, 10))
        if structure == 0:  # one structure from several initialisations
            for recipe in ("published", "unrectified"):
                yield from plan.retrained(recipe, structure, seeds=(1, 2))
    for seed in (0, 1, 2):
        yield plan.row("published", "random", density=0.01, factor=100, seed=seed)


def _lenet_5(data: str) -> Iterator[Row]:
    plan = _Plan("lenet-5", data)
    for recipe in RECIPES:
        yield from plan.pruned(recipe, 0)
        yield from plan.given(recipe, 0, factors=(2,))
    for recipe in ("published", "unrectified"):
        yield from plan.retrained(recipe, 0, seeds=(1, 2))
        yield plan.row(recipe, "random", density=0.1, factor=10)


@dataclass(frozen=True)
class _Plan:
    """A network on a data set, and for how long it is trained."""

    network: str
    data: str
    steps: dict[str, Any] | None = None

    def row(
        self, recipe: str, topology: str, *, density: float = 1.0, factor: int = 1, structure: int = 0, seed: int = 0
    ) -> Row:
        """Return a row; of a random pattern the seed is that of the structure too."""
        steps = self.steps or _PLANS[self.network, self.data]
        settings = RECIPES[recipe] | (_LOWER if (self.network, recipe) == ("lenet-5", "modern") else {})
        return Row(
            data=self.data, network=self.network, recipe=recipe, topology=topology, density=density, factor=factor,
            structure=seed if topology in ("random", "random twin") else structure, seed=seed, batch_size=100,
            **settings, **steps,
        )  # fmt: skip

    def pruned(self, recipe: str, structure: int) -> Iterator[Row]:
        """Yield a dense net, what the ways of pruning leave of it, and that trained anew once."""
        own = {"structure": structure, "seed": structure}
        yield self.row(recipe, "dense", **own)
        for topology in ("one-time", "one-time global", "iterative"):
            for density in DENSITIES:
                yield self.row(recipe, topology, density=density, **own)
        yield from self.retrained(recipe, structure, seeds=(0,))

    def retrained(
        self, recipe: str, structure: int, *, seeds: Sequence[int], ways: Sequence[str] = ("one-time", "iterative")
    ) -> Iterator[Row]:
        """Yield the structures that these ways of pruning left, with new initial weights."""
        for topology in (f"{way} retrained" for way in ways):
            for density in DENSITIES:
                for seed in seeds:
                    new = _FIRST_RETRAINING + seed
                    yield self.row(recipe, topology, density=density, structure=structure, seed=new)

    def given(self, recipe: str, seed: int, *, factors: Sequence[int]) -> Iterator[Row]:
        """Yield the nets whose structure is not learned: at constant size, then at a constant number of connections."""
        for density in (0.5, 0.1, 0.05, 0.01):
            yield self.row(recipe, "random", density=density, seed=seed)
        if self.network == "lenet-5":
            yield self.row(recipe, "radix", density=0.1, seed=seed)
            yield self.row(recipe, "random twin", density=0.1, seed=seed)
        else:
            yield self.row(recipe, "radix", density=0.5, seed=seed)
            yield self.row(recipe, "radix", density=0.1, seed=seed)
        for factor in factors:
            yield self.row(recipe, "random", density=1 / factor, factor=factor, seed=seed)
            if self.network == "lenet-300-100":
                yield self.row(recipe, "radix", density=1 / factor, factor=factor, seed=seed)
