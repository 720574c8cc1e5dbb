"""The same graph under other names: neurons relabelled, or the direction reversed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import (
    COMPONENTS,
    CONNECTIONS,
    DEAD_NEURONS,
    DEFAULT_MEASURES,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    PATH_CONNECTED,
    PATHS,
    SIZES,
    SYMMETRIC,
    Claim,
    Measure,
)
from topogen._spec import AbstractSpec, child, stream
from topogen.specs._patterns import pattern_of

__all__ = ["Permute", "Transpose"]

# What a measure may say about a layer that depends on the names of its neurons cannot be known, so that only what is
# known not to depend on them is promised.
_OF_THE_GRAPH = frozenset(DEFAULT_MEASURES)


@dataclass(frozen=True, slots=True)
class Permute(AbstractSpec):
    """The same graph with its neurons relabelled at random: the hidden ones, and on request the ends.

    Parameters
    ----------
    spec : AbstractSpec
        What is relabelled.
    inputs, outputs : bool
        Whether the first and the last layer of nodes are relabelled too; the layers of nodes between them always are.

    Raises
    ------
    SpecError
        If `spec` is no spec, or a flag is no bool.

    Notes
    -----
    Neuron i of layer j of nodes is neuron p_j(i) of `spec`, where p_j is a uniform permutation, the draw
    ("permutation", j): the two layers that meet in it agree, and each is still built alone. `spec` draws from the seed
    that ("member", 0) names, so that a Permute in a Permute is a draw of its own.

    The two graphs are isomorphic, and every promise about sizes, connections, density, degrees, path-connectedness,
    symmetry, paths, dead neurons and components is kept. Promises of other kinds may depend on the labels and are
    dropped. O(nnz log nnz) time and O(nnz) memory a layer.

    Examples
    --------
    >>> import topogen as tg
    >>> spec = tg.Permute(tg.RadixNet(systems=[[2, 2, 2]]))
    >>> net = tg.generate(spec, rng=0)
    >>> tg.verify(net).holds, net == tg.generate(spec.spec)
    (True, False)
    """

    spec: AbstractSpec
    _: KW_ONLY
    inputs: bool = False
    outputs: bool = False

    def __post_init__(self) -> None:
        checks.instance(self.spec, "spec", "Permute", AbstractSpec, "an")
        for name in ("inputs", "outputs"):
            checks.one_of(getattr(self, name), name, "Permute", (False, True))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the spec inside."""
        return self.spec.sizes

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the spec inside is, or some layer of nodes is relabelled."""
        return self.spec.is_random or any(map(self.moves, range(self.depth + 1)))

    def moves(self, j: int) -> bool:
        """Whether layer j of nodes is relabelled; one neuron alone is not."""
        chosen = self.inputs if j == 0 else self.outputs if j == self.depth else True
        return chosen and self.sizes[j] > 1

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k of the spec inside and relabel both its sides."""
        shape = self.shape(k)
        layer = self.spec.layer(k, None if seed is None else child(seed, "member", 0))
        if self.moves(k):
            layer = layer[self._order(k, seed)]
        if self.moves(k + 1):
            order = self._order(k + 1, seed)
            label = np.empty_like(order)
            label[order] = np.arange(len(order))
            relabelled = sp.csr_array((layer.data, label[layer.indices], layer.indptr), shape=shape)
            relabelled.sort_indices()
            layer = relabelled
        return pattern_of(layer.indptr, layer.indices, shape)

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the layers inside."""
        return self.spec.layer_bytes()

    def claims(self) -> tuple[Claim, ...]:
        """Promise what is promised inside, where it is about the graph and not about its labels."""
        return tuple(claim for claim in self.spec.claims() if claim.measure in _OF_THE_GRAPH)

    def _order(self, j: int, seed: np.random.SeedSequence | None) -> npt.NDArray[np.int64]:
        return stream(seed, "permutation", j).permutation(self.sizes[j])


@dataclass(frozen=True, slots=True)
class Transpose(AbstractSpec):
    """The same graph with every connection reversed: the outputs are the inputs.

    Parameters
    ----------
    spec : AbstractSpec
        What is reversed.

    Raises
    ------
    SpecError
        If `spec` is no spec.

    Notes
    -----
    Layer k is the transpose of layer L - 1 - k of `spec`, which draws from the very seed that it is given. Promises
    about sizes, connections, degrees and dead neurons are read from back to front, fan-in for fan-out; those about
    density, path-connectedness, symmetry, paths and components are kept as they are. Promises of other kinds are
    dropped. O(nnz) time and memory a layer.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Transpose(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1])))
    >>> net.sizes, tg.verify(net).holds
    ((100, 300, 800), True)
    """

    spec: AbstractSpec

    def __post_init__(self) -> None:
        checks.instance(self.spec, "spec", "Transpose", AbstractSpec, "an")

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the spec inside, from back to front."""
        return self.spec.sizes[::-1]

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the spec inside is."""
        return self.spec.is_random

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer inside and transpose it."""
        shape = self.shape(k)
        columns = self.spec.layer(self.depth - 1 - k, seed).tocsc()
        return pattern_of(columns.indptr, columns.indices, shape)

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the layers, or of those inside where these take more."""
        return tuple(map(max, AbstractSpec.layer_bytes(self), self.spec.layer_bytes()[::-1]))

    def claims(self) -> tuple[Claim, ...]:
        """Promise what is promised inside, read from back to front."""
        return tuple(_REVERSED[claim.measure](claim) for claim in self.spec.claims() if claim.measure in _REVERSED)


def _kept(claim: Claim) -> Claim:
    return claim


def _backwards(measure: Measure) -> Callable[[Claim], Claim]:
    """Return what turns a claim about layer after layer into one about `measure`, from back to front."""

    def reverse(claim: Claim) -> Claim:
        bound: Any = claim.bound
        return Claim(
            measure=measure,
            bound=bound[::-1],
            source=claim.source,
            relation=claim.relation,
            probability=claim.probability,
        )

    return reverse


_REVERSED: dict[Measure, Callable[[Claim], Claim]] = {
    SIZES: _backwards(SIZES),
    CONNECTIONS: _backwards(CONNECTIONS),
    FAN_OUT: _backwards(FAN_IN),
    FAN_IN: _backwards(FAN_OUT),
    DEAD_NEURONS: _backwards(DEAD_NEURONS),
    DENSITY: _kept,
    PATH_CONNECTED: _kept,
    SYMMETRIC: _kept,
    PATHS: _kept,
    COMPONENTS: _kept,
}
