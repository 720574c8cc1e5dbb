"""Structured pruning: neurons go, with all their connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._block import BlockSparseLinear
from topogen_torch._rewire import Rewiring, places_of
from topogen_torch._shrinking._follow import chains
from topogen_torch._shrinking._narrow import Layer, ties
from topogen_torch.controllers._base import Controller, Target
from topogen_torch.controllers._places import best, count_of

__all__ = ["PruneNeurons"]

NeuronScore = Callable[[Any, Any], Tensor]


class _Hidden(NamedTuple):
    """The neurons between two layers."""

    before: Target
    behind: Target
    ends: tuple[Layer, Layer]

    @property
    def size(self) -> int:
        return self.ends[0].outputs


class PruneNeurons(Controller):
    """Prune neurons once: of each hidden layer keep those of the highest score, and no connection of the others.

    Neurons are those between two sparse layers of which the one is all that the other feeds, as `shrink` follows a
    model; of convolutions they are channels. What has lost all its connections `shrink` removes.

    Parameters
    ----------
    model : nn.Module
        With at least two topogen layers, one behind the other, and a ``forward`` that `shrink` can follow.
    optimizer : torch.optim.Optimizer, optional
        Its state follows; None where nothing is trained yet.
    density : float, in (0, 1]
        Neurons that stay / neurons there are, in each hidden layer: ``round(density * neurons)``, at least one. Those
        of a `BlockSparseLinear` are counted and pruned in whole blocks.
    score : "norm", callable or mapping
        What a neuron is worth. "norm" is the norm of all its weights, incoming and outgoing; a callable gets the layers
        before and behind and returns one number a neuron; a mapping has a tensor for the name of each layer before.
        The score of a block is the mean of its neurons'. Of equal scores the first stay.
    layers, groups
        See `Controller`. Pruned are the neurons between two layers that are both controlled; the settings are those
        of the layer before.

    Raises
    ------
    SpecError
        If a parameter is none of these, the model cannot be followed, or has no neurons between two such layers.

    Notes
    -----
    The first `step` prunes; later ones do nothing. Weights that stay keep value, gradient and optimizer state bit for
    bit. A bias stays until the model is shrunk; nobody reads it.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10, 5])))
    >>> tt.PruneNeurons(model, density=0.3).step()
    True
    >>> [layer.nnz for layer in model if isinstance(layer, tt.SparseLinear)]
    [60, 15]
    >>> tt.shrink(model)[0]
    SparseLinear(in_features=20, out_features=3, nnz=60, density=1, bias=True)
    """

    _per_layer = ("density", "score")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        density: float,
        score: str | NeuronScore | Mapping[str, Tensor] = "norm",
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        checks.real(density, "density", "PruneNeurons", high=1.0, open_low=True)
        _check_score(score)
        super().__init__(model, optimizer, layers=layers, groups=groups, settings={"density": density, "score": score})
        for group in self._groups:
            checks.real(group.get("density", density), "density", "PruneNeurons", high=1.0, open_low=True)
            _check_score(group.get("score", score))
        self._hidden = self._between()

    def _between(self) -> list[_Hidden]:
        targets = {id(target.layer): target for target in self.targets}
        found = [
            _Hidden(targets[id(before.module)], targets[id(behind.module)], (before, behind))
            for chain in chains(self.model, False, self._owner)[0]
            for before, behind in zip(chain.layers, chain.layers[1:], strict=False)
            if id(before.module) in targets and id(behind.module) in targets
        ]
        if not found:
            raise SpecError(
                f"The 'model' parameter of {self._owner} must have neurons between two sparse layers of which the one "
                f"is all that the other feeds. Got none among {', '.join(repr(t.name) for t in self.targets)}."
            )
        return found

    def _due(self, step: int) -> bool:
        return step == 1

    def _proposal(self, step: int) -> list[Rewiring]:
        kept: dict[str, NDArray[np.bool_]] = {t.name: np.ones(t.stored, np.bool_) for t in self.targets}
        for hidden in self._hidden:
            before, behind = hidden.before, hidden.behind
            gone = ~self._staying(hidden, step)
            kept[before.name] &= ~gone[_neurons(hidden.ends[0], outgoing=False)]
            kept[behind.name] &= ~np.repeat(gone, ties(*hidden.ends)[0])[_neurons(hidden.ends[1], outgoing=True)]
        return [Rewiring.keeping(t.layer, kept[t.name]) for t in self.targets]

    def _staying(self, hidden: _Hidden, step: int) -> NDArray[np.bool_]:
        """Return which neurons stay, (neurons,)."""
        times, tied = ties(*hidden.ends)
        group = tied // times
        scores = self._sound(self._scores(hidden), hidden.before, "norm").reshape(-1, group).mean(1)
        count = max(1, count_of(hidden.before.at("density", step), len(scores)))
        staying = np.zeros(len(scores), np.bool_)
        staying[best(scores, count)] = True
        return np.repeat(staying, group)

    def _scores(self, hidden: _Hidden) -> NDArray[np.float64]:
        score, name = hidden.before.setting("score"), hidden.before.name
        if isinstance(score, str):
            return _norms(hidden)
        if isinstance(score, Mapping) and name not in score:
            raise SpecError(f"The 'score' parameter must have scores for layer '{name}'. Got {sorted(score)}.")
        found = score[name] if isinstance(score, Mapping) else score(hidden.before.layer, hidden.behind.layer)
        if tuple(found.shape) != (hidden.size,):
            raise SpecError(
                f"The 'score' parameter must give one number for each neuron behind '{name}', shape ({hidden.size},). "
                f"Got shape {tuple(found.shape)}."
            )
        return found.detach().cpu().double().numpy()


def _check_score(score: Any) -> None:
    if isinstance(score, str):
        checks.one_of(score, "score", "PruneNeurons", ("norm",))
    elif not (callable(score) or isinstance(score, Mapping)):
        checks.refuse("score", "PruneNeurons", "'norm', a callable or a mapping", score)


def _neurons(end: Layer, *, outgoing: bool) -> NDArray[np.int64]:
    """Return for each unit of a layer its input, or its output; of a block the first."""
    places = places_of(end.module)
    rows, columns = np.divmod(places, end.module._stored_sizes[1])
    if isinstance(end.module, BlockSparseLinear):
        return (rows if outgoing else columns) * end.module.block
    return rows % end.inputs if outgoing else columns


def _norms(hidden: _Hidden) -> NDArray[np.float64]:
    """Return the norm of all weights of each neuron."""
    before, behind = (np.asarray(end.sums(power=2).sum(axis)) for end, axis in zip(hidden.ends, (0, 1), strict=True))
    return np.sqrt(before + behind.reshape(hidden.size, -1).sum(1))
