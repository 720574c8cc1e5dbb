"""Diagonals: cyclic ones (circulant layers, DynaDiag's layout) and a band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import COMPONENTS, PATH_CONNECTED, Claim
from topogen._spec import AbstractSpec
from topogen._topology import as_pattern
from topogen.measures import Range
from topogen.specs._layerwise import degree_claims
from topogen.specs._patterns import pattern_of, ranges, regular_rows

__all__ = ["Banded", "Diagonal"]

_DYNADIAG = "Tyagi et al., DynaDiag (arXiv:2506.11449), layout of a diagonal"
_COSETS = "what is joined differs by multiples of gcd(n, differences of the offsets)"
_BAND = "definition of a band matrix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal(AbstractSpec):
    r"""Layers of whole cyclic diagonals: circulant where they are square, DynaDiag's layout in general.

    Where the layer does not narrow (n_k >= n_{k-1}) the diagonal of offset t joins i to :math:`(i + t) \bmod n_k`;
    where it narrows, it joins :math:`(j + t) \bmod n_{k-1}` to j. Either way it has min(n_{k-1}, n_k) connections and
    shares none with another offset.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    offsets : sequence of sequences of int
        For each layer its offsets, at least one; distinct modulo max(n_{k-1}, n_k), and kept as sorted residues.

    Raises
    ------
    SpecError
        If the number of lists is not that of the layers, a list is empty, or two offsets mean the same diagonal.

    Notes
    -----
    Certain: K offsets give the smaller side degree K, the larger a degree that the offsets tell, and layer density
    K / max(n_{k-1}, n_k). If all sizes are n, the network is circulant and has gcd(n, differences of the offsets within
    each layer) connected components. A `RadixNet` without widths is a circulant network: its layer of radix r and
    place value nu has the offsets :math:`-j \nu`. O(nnz log K) time, O(nnz) memory.

    References
    ----------
    A. Tyagi et al., "Dynamic Sparse Training of Diagonally Sparse Networks", ICML 2025, arXiv:2506.11449.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Diagonal(sizes=[6, 6], offsets=[[0, 2]]))
    >>> net.nnz, tg.measures.n_components(net)
    (12, 2)
    """

    sizes: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "Diagonal", low=1, at_least=2))
        object.__setattr__(self, "offsets", self._checked_offsets(self.offsets))

    def _checked_offsets(self, offsets: Any) -> tuple[tuple[int, ...], ...]:
        requirement = f"a sequence of {self.depth} sequences of ints, the offsets of each layer"
        given = checks.row(offsets, "offsets", "Diagonal", requirement)
        if len(given) != self.depth:
            checks.refuse("offsets", "Diagonal", requirement, offsets)
        checked: list[tuple[int, ...]] = []
        for k, row in enumerate(given):
            modulus = max(self.shape(k))
            residues = [t % modulus for t in checks.integers(row, f"offsets[{k}]", "Diagonal", at_least=1)]
            if len(set(residues)) < len(residues):
                checks.refuse(f"offsets[{k}]", "Diagonal", f"distinct modulo {modulus}, the larger size", row)
            checked.append(tuple(sorted(residues)))
        return tuple(checked)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        n_in, n_out = self.shape(k)
        smaller, larger = min(n_in, n_out), max(n_in, n_out)
        index = sp.get_index_dtype(maxval=2 * larger)
        targets = np.add.outer(np.arange(smaller, dtype=index), np.array(self.offsets[k], dtype=index)) % larger
        pattern = as_pattern(regular_rows(np.sort(targets, axis=1), larger))
        return pattern if n_out >= n_in else as_pattern(pattern.T)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees and density, and the components where all sizes are equal; all exact."""
        counts = tuple(map(len, self.offsets))
        smaller = tuple(Range(count, count) for count in counts)
        larger = tuple(self._covered(k) for k in range(self.depth))
        widens = tuple(n_out >= n_in for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))
        claims = degree_claims(
            self.sizes,
            connections=tuple(count * min(self.shape(k)) for k, count in enumerate(counts)),
            fan_out=tuple(s if wide else lg for s, lg, wide in zip(smaller, larger, widens, strict=True)),
            fan_in=tuple(lg if wide else s for s, lg, wide in zip(smaller, larger, widens, strict=True)),
            source=_DYNADIAG,
        )
        if len(set(self.sizes)) == 1:
            steps = (t - row[0] for row in self.offsets for t in row)
            claims += (Claim(measure=COMPONENTS, bound=math.gcd(self.sizes[0], *steps), source=_COSETS),)
        return claims

    def _covered(self, k: int) -> Range:
        """Return the range of degrees on the larger side: offset t covers `smaller` neurons from t on, cyclically."""
        smaller, larger = sorted(self.shape(k))
        begins = np.array(self.offsets[k])
        ends = np.sort((begins + smaller) % larger)
        points = np.concatenate([[0], begins, ends])  # the degree changes nowhere else
        wrapped = np.count_nonzero(begins + smaller >= larger)
        begun, ended = (np.searchsorted(steps, points, side="right") for steps in (begins, ends))
        degrees = wrapped + begun - ended
        return Range(int(degrees.min()), int(degrees.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Banded(AbstractSpec):
    r"""Band matrices: i is joined to the neurons from i - lower to i + upper that exist.

    Parameters
    ----------
    n : int >= 1
        The number of neurons of every layer of nodes.
    lower, upper : int, in [0, n - 1]
        How far the band reaches to smaller and to larger indices.
    layers : int >= 1
        How many equal layers follow one another.

    Raises
    ------
    SpecError
        If a value is out of range.

    Notes
    -----
    Certain: :math:`n (1 + l + u) - l (l + 1) / 2 - u (u + 1) / 2` connections a layer; degrees from min(l, u) + 1 to
    min(l + u + 1, n); one connected component, unless l = u = 0, which leaves n. L layers are path-connected exactly
    where L l and L u are n - 1 at least: the first neuron must reach the last, and the last the first. There is no
    wrap-around: see `Diagonal` for that. O(nnz) time and memory.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Banded(n=5, lower=1, upper=1))
    >>> net.nnz, str(tg.measures.fan_in(net)[0])
    (13, '2..3')
    """

    n: int
    lower: int
    upper: int
    layers: int = 1

    def __post_init__(self) -> None:
        n = checks.integer(self.n, "n", "Banded", low=1)
        object.__setattr__(self, "n", n)
        for name in ("lower", "upper"):
            reach = checks.integer(getattr(self, name), name, f"Banded (n = {n})", low=0, high=n - 1)
            object.__setattr__(self, name, reach)
        object.__setattr__(self, "layers", checks.integer(self.layers, "layers", "Banded", low=1))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, ..., n), one more than there are layers."""
        return (self.n,) * (self.layers + 1)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        shape = self.shape(k)
        nodes = np.arange(self.n, dtype=np.int64)
        first = np.maximum(nodes - self.lower, 0)
        lengths = np.minimum(nodes + self.upper, self.n - 1) + 1 - first
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return pattern_of(indptr, ranges(first, lengths), shape)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, components and path-connectedness, all exact."""
        n, lower, upper = self.n, self.lower, self.upper
        count = n * (1 + lower + upper) - lower * (lower + 1) // 2 - upper * (upper + 1) // 2
        degrees = (Range(min(lower, upper) + 1, min(lower + upper + 1, n)),) * self.layers
        components = 1 if lower or upper else n
        connected = self.layers * min(lower, upper) >= n - 1
        return (
            *degree_claims(
                self.sizes, connections=(count,) * self.layers, fan_out=degrees, fan_in=degrees, source=_BAND
            ),
            Claim(measure=COMPONENTS, bound=components, source="i, i + 1 are joined unless the band is the diagonal"),
            Claim(measure=PATH_CONNECTED, bound=connected, source="L layers reach from i - L lower to i + L upper"),
        )
