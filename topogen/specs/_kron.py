"""Kronecker products of topologies: with dense widths, with one another, and with square blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import (
    CONNECTIONS,
    DEAD_NEURONS,
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
from topogen._spec import AbstractSpec, child
from topogen.errors import SpecError
from topogen.measures import PathCounts, Range
from topogen.specs._dense import Dense
from topogen.specs._patterns import Order, kron_ones, pattern_of
from topogen.specs._promises import Claims, density, promised

__all__ = ["Block", "Kron"]

_SOURCE = "kron(A, B) kron(C, D) = kron(A C, B D), entries and row sums multiply"


@dataclass(frozen=True, slots=True)
class Kron(AbstractSpec):
    r"""The Kronecker product, layer by layer, of a topology with dense widths or with another topology.

    Layer k is :math:`V_k \otimes W_k`, where :math:`W_k` is a layer of `spec` and :math:`V_k` is
    :math:`\mathbf{1}_{B_{k-1} \times B_k}` for widths :math:`B_0, ..., B_L`, or a layer of the other topology.

    Parameters
    ----------
    spec : AbstractSpec
        The topology that is expanded.
    widths : sequence of int >= 1, or AbstractSpec
        (B_0, ..., B_L), as many as `spec` has sizes; or the other topology, of the same depth.
    order : {"reference", "blocks"}
        "reference" is :math:`V_k \otimes W_k`: the small layer is repeated, neuron b n + i being copy b of i.
        "blocks" is :math:`W_k \otimes V_k`: every connection becomes a contiguous block, neuron i B + b. The same graph
        up to relabelling.

    Raises
    ------
    SpecError
        If the number of widths, or the depth of the other topology, does not fit.

    Notes
    -----
    Sizes, connections, degrees and path counts of the two multiply, and what both promise of these with certainty is
    promised; so are path-connectedness, symmetry and dead neurons. Widths promise what `Dense` does.

    With widths, `spec` draws from the very seed that it is given, so that the small layers are those of `spec` alone;
    of two topologies, `spec` draws from the seed that ("member", 0) names and the other from ("member", 1).
    O(nnz) time and memory a layer.

    Examples
    --------
    >>> import topogen as tg
    >>> radix = tg.RadixNet(systems=[[2, 3]])
    >>> tg.generate(tg.Kron(radix, [1, 4, 2])) == tg.generate(tg.RadixNet(systems=[[2, 3]], widths=[1, 4, 2]))
    True
    >>> net = tg.generate(tg.Kron(radix, tg.RadixNet(systems=[[3, 4]], widths=[1, 5, 1])))
    >>> net.sizes, print(tg.measures.path_counts(net))
    5
    ((72, 360, 72), None)
    """

    spec: AbstractSpec
    widths: tuple[int, ...] | AbstractSpec
    _: KW_ONLY
    order: Any = "reference"

    def __post_init__(self) -> None:
        spec = checks.instance(self.spec, "spec", "Kron", AbstractSpec, "an")
        if isinstance(self.widths, AbstractSpec):
            if self.widths.depth != spec.depth:
                raise SpecError(
                    f"The 'widths' parameter of Kron must be a topology as deep as the first. Got {self.widths.depth} "
                    f"layers, and {spec.depth} in the first."
                )
        else:
            widths = checks.integers(self.widths, "widths", "Kron", low=1)
            if len(widths) != len(spec.sizes):
                requirement = f"a sequence of {len(spec.sizes)} ints, as many as {list(spec.sizes)}"
                checks.refuse("widths", "Kron", requirement, self.widths)
            object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "order", checks.one_of(self.order, "order", "Kron", ("reference", "blocks")))

    @property
    def factor(self) -> AbstractSpec:
        """The other topology; for widths, the dense one of these sizes."""
        return self.widths if isinstance(self.widths, AbstractSpec) else Dense(sizes=self.widths)

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The products of the sizes of the two."""
        return tuple(n * width for n, width in zip(self.spec.sizes, self.factor.sizes, strict=True))

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of the two is."""
        return self.spec.is_random or self.factor.is_random

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k of both and multiply."""
        self.shape(k)
        if not isinstance(self.widths, AbstractSpec):
            return kron_ones(self.spec.layer(k, seed), self.widths[k], self.widths[k + 1], cast(Order, self.order))
        seeds = (None, None) if seed is None else (child(seed, "member", 0), child(seed, "member", 1))
        first, second = self.spec.layer(k, seeds[0]), self.widths.layer(k, seeds[1])
        return kron(first, second) if self.order == "blocks" else kron(second, first)

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the largest of what is built: layers of the two, and their product."""
        product = AbstractSpec.layer_bytes(self)
        return tuple(map(max, product, self.spec.layer_bytes(), self.factor.layer_bytes()))

    def claims(self) -> tuple[Claim, ...]:
        """Multiply what both promise."""
        promises = self.spec.claims(), self.factor.claims()
        claims = [Claim(measure=SIZES, bound=self.sizes, source="definition of Kron")]
        connections = _both(promises, CONNECTIONS)
        if connections is not None:
            products = tuple(a * b for a, b in zip(*connections, strict=True))
            claims.append(Claim(measure=CONNECTIONS, bound=products, source=_SOURCE))
            claims.append(Claim(measure=DENSITY, bound=density(products, self.sizes), source=_SOURCE))
        for measure in (FAN_OUT, FAN_IN):
            ranges = _both(promises, measure)
            if ranges is not None:
                bound = tuple(Range(a.min * b.min, a.max * b.max) for a, b in zip(*ranges, strict=True))
                claims.append(Claim(measure=measure, bound=bound, source=_SOURCE))
        for measure in (PATH_CONNECTED, SYMMETRIC):
            if _both(promises, measure) == (True, True):
                claims.append(Claim(measure=measure, bound=True, source=_SOURCE))
        paths = _both(promises, PATHS)
        if paths is not None:
            a, b = paths
            claims.append(Claim(measure=PATHS, bound=PathCounts(a.min * b.min, a.max * b.max), source=_SOURCE))
        dead = _both(promises, DEAD_NEURONS)
        if dead is not None:
            source = "a pair of neurons lives if both do"
            claims.append(Claim(measure=DEAD_NEURONS, bound=self._dead(*dead), source=source))
        return tuple(claims)

    def _dead(self, first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
        """Count the pairs of neurons in which one is dead."""
        sizes = zip(self.spec.sizes, first, self.factor.sizes, second, strict=True)
        return tuple(n * m - (n - dead_n) * (m - dead_m) for n, dead_n, m, dead_m in sizes)


@dataclass(frozen=True, slots=True)
class Block(AbstractSpec):
    r"""Every neuron becomes b neurons, and every connection a dense b x b block.

    Layer k is :math:`W_k \otimes \mathbf{1}_{b \times b}`: the block of connection i -> j lies in the rows b i, ...,
    b i + b - 1 and the columns b j, ..., b j + b - 1, as block-sparse kernels want it.

    Parameters
    ----------
    spec : AbstractSpec
        The layout of the blocks.
    block : int
        b >= 1, the side of a block.

    Raises
    ------
    SpecError
        If `block` is out of range.

    Notes
    -----
    Bit for bit ``Kron(spec, [b, ..., b], order="blocks")``, and the same promises: sizes and degrees times b, the same
    density, the number of paths times b for every hidden layer. Layer and draws of `spec` are those of `spec` alone.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Block(tg.RadixNet(systems=[[2, 2]]), 16))
    >>> net.sizes, net.density, print(tg.measures.path_counts(net))
    16
    ((64, 64, 64), 0.5, None)
    """

    spec: AbstractSpec
    block: int

    def __post_init__(self) -> None:
        checks.instance(self.spec, "spec", "Block", AbstractSpec, "an")
        object.__setattr__(self, "block", checks.integer(self.block, "block", "Block", low=1))

    @property
    def as_kron(self) -> Kron:
        """The Kronecker product that this is."""
        return Kron(self.spec, (self.block,) * len(self.spec.sizes), order="blocks")

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sizes of the layout, times b."""
        return tuple(n * self.block for n in self.spec.sizes)

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the layout is."""
        return self.spec.is_random

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k of the layout and fill the blocks."""
        self.shape(k)
        return kron_ones(self.spec.layer(k, seed), self.block, self.block, "blocks")

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the layers, which are larger than those of the layout."""
        return self.as_kron.layer_bytes()

    def claims(self) -> tuple[Claim, ...]:
        """Promise what the Kronecker product does."""
        return self.as_kron.claims()


def kron(left: sp.csr_array, right: sp.csr_array) -> sp.csr_array:
    """Return the Kronecker product of two patterns, canonical if both are.

    Row i m + p holds, for each column j of row i of `left`, the columns of row p of `right`, moved by j times the width
    of `right`: they come out sorted. scipy's own product stores zeros where `right` is half full or more.
    """
    (n_in, n_out), (m_in, m_out) = left.shape, right.shape
    i, p = np.repeat(np.arange(n_in), m_in), np.tile(np.arange(m_in), n_in)
    of_left, of_right = np.diff(left.indptr).astype(np.int64), np.diff(right.indptr).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(of_left[i] * of_right[p])])
    outer = _runs(left.indptr[i], of_left[i])  # the connections of `left` that each row of the product takes
    p = np.repeat(p, of_left[i])
    inner = _runs(right.indptr[p], of_right[p])  # and for each of them, those of `right`
    columns = np.repeat(left.indices[outer].astype(np.int64) * m_out, of_right[p]) + right.indices[inner]
    return pattern_of(indptr, columns, (n_in * m_in, n_out * m_out))


def _runs(starts: npt.NDArray[np.integer], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ``start, start + 1, ..., start + length - 1`` for each pair, one run after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _both(promises: tuple[Claims, Claims], measure: Measure) -> tuple[Any, Any] | None:
    """Return what the two promise to be the value of `measure`, if both do."""
    first, second = (promised(claims, measure) for claims in promises)
    return None if first is None or second is None else (first, second)
