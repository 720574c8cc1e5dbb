"""Layers cut into equal parts: block diagonal, and N of every M inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import COMPONENTS, PATH_CONNECTED, Claim, Measure
from topogen._spec import AbstractSpec, stream
from topogen._topology import Topology, as_pattern
from topogen.errors import SpecError
from topogen.measures import Range
from topogen.specs._layerwise import degree_claims, each_layer, layer_ints
from topogen.specs._patterns import regular_rows
from topogen.specs._subsets import subsets

__all__ = ["BlockDiagonal", "NOfM"]

_BLOCKS = "definition of a block-diagonal layer, the linear form of a grouped convolution"
_SPARSE_CORES = "Mishra et al., Accelerating sparse deep neural networks (arXiv:2104.08378), N:M sparsity"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDiagonal(AbstractSpec):
    r"""Layers of dense blocks along the diagonal: grouped layers, in which the groups do not mix.

    With g blocks, i is joined to j where :math:`\lfloor g i / n_{k-1} \rfloor = \lfloor g j / n_k \rfloor`.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    blocks : int or sequence of int
        g, one for all layers or one a layer; a divisor of n_{k-1} and of n_k.

    Raises
    ------
    SpecError
        If `blocks` does not divide the sizes beside it, with the nearest number that does.

    Notes
    -----
    Certain: fan-in n_{k-1} / g, fan-out n_k / g, layer density 1 / g; the network has as many connected components as
    the greatest common divisor of its numbers of blocks. Only with one component can it be path-connected, and with a
    layer of a single block it is. `Monarch` mixes the groups. O(nnz) time and memory a layer.

    References
    ----------
    A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet classification with deep convolutional neural networks", 2012
    (grouped layers).

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.BlockDiagonal(sizes=[12, 24, 24], blocks=[4, 6]))
    >>> net.nnz, tg.measures.n_components(net)
    (168, 2)
    """

    sizes: tuple[int, ...]
    blocks: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "BlockDiagonal", low=1, at_least=2))
        object.__setattr__(self, "blocks", layer_ints(self.blocks, "blocks", "BlockDiagonal", self.sizes, high=min))
        for k, blocks in enumerate(self.groups):
            common = math.gcd(self.sizes[k], self.sizes[k + 1])
            if common % blocks:
                name = "blocks" if isinstance(self.blocks, int) else f"blocks[{k}]"
                small = [d for d in range(1, math.isqrt(common) + 1) if common % d == 0]
                fitting = small + [common // d for d in small]
                raise SpecError(
                    f"The '{name}' parameter of BlockDiagonal must divide both sizes of layer {k}, "
                    f"{self.sizes[k]} and {self.sizes[k + 1]}. Got {blocks}; the nearest that does is "
                    f"{min(fitting, key=lambda d: abs(d - blocks))}."
                )

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of blocks of each layer."""
        return each_layer(self.blocks, self.depth)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        n_in, n_out = self.shape(k)
        rows, columns = n_in // self.groups[k], n_out // self.groups[k]
        index = sp.get_index_dtype(maxval=n_out)
        first = np.arange(n_in, dtype=index) // rows * columns
        return regular_rows(np.add.outer(first, np.arange(columns, dtype=index)), n_out)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density and components, all exact; path-connectedness where it is decided."""
        fan_in = tuple(n_in // g for n_in, g in zip(self.sizes[:-1], self.groups, strict=True))
        fan_out = tuple(n_out // g for n_out, g in zip(self.sizes[1:], self.groups, strict=True))
        connections = tuple(n_out * fan_in for n_out, fan_in in zip(self.sizes[1:], fan_in, strict=True))
        components = math.gcd(*self.groups)
        claims = degree_claims(self.sizes, connections=connections, fan_out=fan_out, fan_in=fan_in, source=_BLOCKS)
        source = "borders that all layers share split the network"
        claims += (Claim(measure=COMPONENTS, bound=components, source=source),)
        if components > 1:
            claims += (Claim(measure=PATH_CONNECTED, bound=False, source=source),)
        elif 1 in self.groups:
            claims += (Claim(measure=PATH_CONNECTED, bound=True, source="one layer is dense, no neuron is dead"),)
        return claims


@dataclass(frozen=True, slots=True)
class _ConnectionsPerGroup:
    """Measures the connections of an output with each group of m inputs in a row; a value, so that claims compare."""

    m: int

    def __call__(self, topology: Topology) -> tuple[Range, ...]:
        return tuple(self._of(layer) for layer in topology)

    def _of(self, layer: sp.csr_array) -> Range:
        n_in, n_out = layer.shape
        inputs = np.repeat(np.arange(n_in, dtype=np.int64), np.diff(layer.indptr))
        counts = np.bincount(inputs // self.m * n_out + layer.indices, minlength=-(-n_in // self.m) * n_out)
        return Range(int(counts.min()), int(counts.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class NOfM(AbstractSpec):
    """N:M sparsity: every output takes n of every m inputs in a row, which n being random.

    The groups run along the inputs, the inner dimension of the product: down the columns of our patterns, along the
    rows of a torch weight. 2:4 is what sparse tensor cores multiply.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L), all but the last multiples of `m`.
    n : int, in [1, m]
        Connections of an output in each group.
    m : int >= 1
        Inputs of a group.

    Raises
    ------
    SpecError
        If `n` exceeds `m`, or a size is no multiple of `m`, with the nearest one.

    Notes
    -----
    Certain: exactly n connections for every output and every group, hence fan-in n_{k-1} n / m and density n / m. All
    choices are equally likely and independent. Positions that training has found are no spec: make a `Topology` of
    them. O(nnz log nnz) time, O(nnz) memory.

    References
    ----------
    A. Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378. A. Zhou et al., "Learning N:M
    fine-grained structured sparse neural networks from scratch", ICLR 2021, arXiv:2102.04010.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.NOfM(sizes=[8, 2], n=2, m=4), rng=0)
    >>> net.layers[0].toarray().T.astype(int).reshape(2, 2, 4).sum(axis=2).tolist()
    [[2, 2], [2, 2]]
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "NOfM", low=1, at_least=2))
        object.__setattr__(self, "m", checks.integer(self.m, "m", "NOfM", low=1))
        object.__setattr__(self, "n", checks.integer(self.n, "n", f"NOfM (m = {self.m})", low=1, high=self.m))
        for k, size in enumerate(self.sizes[:-1]):
            if size % self.m:
                nearest = max(self.m, (size + self.m // 2) // self.m * self.m)
                requirement = f"a multiple of m = {self.m}, the groups of inputs"
                checks.refuse(f"sizes[{k}]", "NOfM", requirement, size, hint=f"The nearest is {nearest}.")

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        n_in, n_out = self.shape(k)
        rng = stream(seed, "layer", k)
        groups = n_in // self.m
        within = subsets(n_out * groups, self.m, self.n, rng).reshape(n_out, groups, self.n)
        inputs = (within + np.arange(groups)[:, np.newaxis] * self.m).reshape(n_out, groups * self.n)
        return as_pattern(as_pattern(regular_rows(inputs, n_in)).T)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, connections, density, fan-in and the connections of every group, all certain."""
        fan_in = tuple(n_in // self.m * self.n for n_in in self.sizes[:-1])
        connections = tuple(n_out * degree for n_out, degree in zip(self.sizes[1:], fan_in, strict=True))
        measure = Measure(f"connections per {self.m} inputs", _ConnectionsPerGroup(self.m))
        return (
            *degree_claims(self.sizes, connections=connections, fan_in=fan_in, source=_SPARSE_CORES),
            Claim(measure=measure, bound=(Range(self.n, self.n),) * self.depth, source=_SPARSE_CORES),
        )
