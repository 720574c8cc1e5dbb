"""Bipartite receptive fields: every neuron of the smaller side draws partners near its place on the larger side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import Claim
from topogen._spec import AbstractSpec, stream
from topogen._topology import as_pattern
from topogen.measures import Range
from topogen.specs._layerwise import SMALLER_SIDE, connections_of, degree_claims
from topogen.specs._patterns import pattern_of

__all__ = ["BipartiteReceptiveField"]

_BRF = "Zhang et al., Brain network science modelling of sparse neural networks (arXiv:2501.19107), BRF"
_CHUNK = 1 << 20  # scores that are held at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class BipartiteReceptiveField(AbstractSpec):
    r"""Bipartite receptive field (BRF): connections near the diagonal, the more so the smaller the spread r.

    With a = min(n_{k-1}, n_k) and b = max(n_{k-1}, n_k), neuron i of the smaller side draws its :math:`k_i` partners
    without replacement, j with weight :math:`(1 + d_{ij})^{-(1 - r) / r}`, where :math:`d_{ij}` is the distance
    of j, around the ring of b, from the centre :math:`\lfloor i b / a \rfloor`. r = 1 is uniform; r = 0 takes the k_i
    nearest, the smaller index on a tie.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    density : float, in [0, 1]
        Of every layer; round(density * n_{k-1} * n_k) connections, shared out evenly among the smaller side.
    spread : float, in [0, 1]
        r.
    centres : {"even", "code"}
        "code" puts the centre at :math:`i \lfloor b / a \rfloor`, as the authors' program does: the centres then miss
        the end of the larger side, which loses neurons. For reproducing published runs only.

    Raises
    ------
    SpecError
        If a value is out of range.

    Notes
    -----
    Certain: the number of connections, and degrees on the smaller side that differ by one at most. With spread 0
    nothing is drawn. The paper fixes the degrees of the outputs, the program those of the smaller side, as here: they
    differ where a layer widens. Every pair is scored: O(n_{k-1} n_k log b) time, O(nnz) memory.

    References
    ----------
    Y. Zhang et al., "Brain network science modelling of sparse neural networks enables Transformers and LLMs to perform
    as fully connected", NeurIPS 2025, arXiv:2501.19107.

    Examples
    --------
    >>> import topogen as tg
    >>> field = tg.BipartiteReceptiveField(sizes=[4, 8], density=0.25, spread=0.0)
    >>> tg.generate(field).layers[0].toarray().astype(int)[1].tolist()
    [0, 1, 1, 0, 0, 0, 0, 0]
    """

    sizes: tuple[int, ...]
    density: float
    spread: float
    centres: Any = "even"

    def __post_init__(self) -> None:
        owner = "BipartiteReceptiveField"
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", owner, low=1, at_least=2))
        object.__setattr__(self, "density", checks.real(self.density, "density", owner, high=1.0))
        object.__setattr__(self, "spread", checks.real(self.spread, "spread", owner, high=1.0))
        object.__setattr__(self, "centres", checks.one_of(self.centres, "centres", owner, ("even", "code")))

    @property
    def connections(self) -> tuple[int, ...]:
        """The number of connections of each layer."""
        return tuple(connections_of(self.density, *self.shape(k)) for k in range(self.depth))

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether partners are drawn."""
        return self.spread > 0

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k, from the stream ("layer", k) where partners are drawn."""
        n_in, n_out = self.shape(k)
        smaller, larger = min(n_in, n_out), max(n_in, n_out)
        i = np.arange(smaller, dtype=np.int64)
        degrees = (i + 1) * self.connections[k] // smaller - i * self.connections[k] // smaller
        centres = i * larger // smaller if self.centres == "even" else i * (larger // smaller)
        rng = stream(seed, "layer", k) if self.is_random else None
        columns = np.concatenate(list(self._partners(centres, degrees, larger, rng)))
        rows = pattern_of(np.concatenate([[0], np.cumsum(degrees)]), columns, (smaller, larger))
        return as_pattern(rows if n_out >= n_in else rows.T)

    def _partners(
        self,
        centres: npt.NDArray[np.int64],
        degrees: npt.NDArray[np.int64],
        larger: int,
        rng: np.random.Generator | None,
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the sorted partners of some neurons of the smaller side after the other.

        The k smallest of independent exponential times with rates w are a draw of k without replacement by weight w.
        """
        step = max(1, _CHUNK // larger)
        longest = int(degrees.max())
        for begin in range(0, centres.size, step):
            chunk = slice(begin, begin + step)
            apart = np.abs(np.arange(larger) - centres[chunk, np.newaxis])
            distance = np.minimum(apart, larger - apart)
            if rng is None:
                scores = distance
            else:
                exponent = min((1 - self.spread) / self.spread, 1e300)  # infinity times log 1 would be no number
                scores = np.log(rng.exponential(size=distance.shape)) + exponent * np.log1p(distance)
            nearest = np.argsort(scores, axis=1, kind="stable")[:, :longest]
            nearest[np.arange(longest) >= degrees[chunk, np.newaxis]] = larger  # sorts behind those that are taken
            nearest.sort(axis=1)
            yield nearest[nearest < larger]

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, connections, density and the degrees of the smaller side, all certain."""
        smaller = tuple(min(self.shape(k)) for k in range(self.depth))
        bound = tuple(
            Range(count // size, -(-count // size)) for count, size in zip(self.connections, smaller, strict=True)
        )
        return (
            *degree_claims(self.sizes, connections=self.connections, source=_BRF),
            Claim(measure=SMALLER_SIDE, bound=bound, source=_BRF),
        )
