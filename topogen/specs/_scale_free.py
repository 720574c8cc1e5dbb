"""Scale-free layers: preferential attachment, as a square layer (Barabasi-Albert) and between two sides (BSF)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import COMPONENTS, DEAD_NEURONS, Claim
from topogen._spec import AbstractSpec, stream
from topogen.specs._extra_edges import checked_extra, with_extra_edges
from topogen.specs._layerwise import connections_of, degree_claims
from topogen.specs._patterns import pattern_of

__all__ = ["BarabasiAlbert", "BipartiteScaleFree"]

Ends = npt.NDArray[np.int64]

_BSF = "Zhang et al., Brain network science modelling of sparse neural networks (arXiv:2501.19107), BSF"
_RACE = 16  # at most so many pairs for each connection are scored one by one; of more, connections are drawn
_BA = "Barabasi & Albert, Emergence of scaling in random networks (1999), with loops and a complete core"


@dataclass(frozen=True, slots=True, kw_only=True)
class BarabasiAlbert(AbstractSpec):
    r"""Barabasi-Albert preferential attachment as a square, symmetric layer with a few hubs.

    The first m neurons are joined to each other. Then neurons come one by one, and each is joined to m different
    earlier ones: the first that comes to the first m, every later one by draws from the ends of the edges that have
    come so far, so that a neuron is taken with a probability proportional to its degree. The pattern is the adjacency
    matrix plus the identity; ``Block(BarabasiAlbert(...), 32)`` is the published block layout.

    Parameters
    ----------
    n : int >= 2
        The number of neurons, or of blocks, of every layer of nodes.
    m : int, in [1, n - 1]
        Edges that a neuron comes with.
    layers : int >= 1
        How many layers follow one another, each a draw of its own.
    extra : int >= 0
        Edges that are added to each layer, one after the other: a neuron with the fewest connections is joined to a
        random one that it is not joined to.

    Raises
    ------
    SpecError
        If a value is out of range, or there is no room for `extra`.

    Notes
    -----
    Certain: :math:`m^2 + (n - m)(1 + 2 m)` connections and 2 for each extra edge, a symmetric pattern, at least m + 1
    connections for every neuron outside the core, one component. The tail of the degrees falls as :math:`k^{-3}` for
    large n, which is no claim about one draw. A loop over the n neurons, vectorised over m: O(n m log m) time; O(n)
    for each extra edge.

    References
    ----------
    A.-L. Barabasi, R. Albert, "Emergence of scaling in random networks", Science 1999. S. Gray, A. Radford,
    D. P. Kingma, "GPU kernels for block-sparse weights", OpenAI 2017.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.BarabasiAlbert(n=100, m=3), rng=0)
    >>> net.nnz, tg.measures.n_components(net)
    (688, 1)
    """

    is_random: ClassVar[bool] = True

    n: int
    m: int
    layers: int = 1
    extra: int = 0

    def __post_init__(self) -> None:
        n = checks.integer(self.n, "n", "BarabasiAlbert", low=2)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "m", checks.integer(self.m, "m", f"BarabasiAlbert (n = {n})", low=1, high=n - 1))
        object.__setattr__(self, "layers", checks.integer(self.layers, "layers", "BarabasiAlbert", low=1))
        object.__setattr__(self, "extra", checked_extra(self.extra, "BarabasiAlbert", n, self._attached))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, ..., n), one more than there are layers."""
        return (self.n,) * (self.layers + 1)

    @property
    def _attached(self) -> int:
        """The number of connections of a layer without the extra ones."""
        return self.m**2 + (self.n - self.m) * (1 + 2 * self.m)

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        self.shape(k)
        n, m, rng = self.n, self.m, stream(seed, "layer", k)
        old = _attachments(n, m, rng)
        new = np.repeat(np.arange(m, n, dtype=np.int64), m)
        core = np.arange(m, dtype=np.int64)
        loops = np.arange(m, n, dtype=np.int64)
        keys = np.concatenate([new * n + old, old * n + new, np.add.outer(core * n, core).ravel(), loops * n + loops])
        keys.sort()
        attached = pattern_of(np.searchsorted(keys, np.arange(n + 1) * n), keys % n, (n, n))
        return with_extra_edges(attached, self.extra, rng)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, connections, density, one component and that no neuron is dead, all certain."""
        count = self._attached + 2 * self.extra
        return (
            *degree_claims(self.sizes, connections=(count,) * self.layers, source=_BA),
            Claim(measure=COMPONENTS, bound=1, source="every neuron is joined to itself and to an earlier one"),
            Claim(measure=DEAD_NEURONS, bound=(0,) * len(self.sizes), source="every neuron is joined to itself"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BipartiteScaleFree(AbstractSpec):
    r"""Bipartite scale-free (BSF): a few hubs on both sides, by the degrees of a Barabasi-Albert graph.

    With a and b neurons on the two sides and :math:`M = \mathrm{round}(d\, a\, b)` connections, a Barabasi-Albert graph
    of a + b neurons and :math:`\max(1, \lfloor M / (a + b) \rfloor)` edges a neuron is drawn, and its neurons are dealt
    to the two sides at random. With their degrees as weights w, M different connections are drawn one after the other,
    i -> j with a probability proportional to :math:`w_i w_j`.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    density : float, in [0, 1]
        Of every layer; round(density * n_{k-1} * n_k) connections.

    Raises
    ------
    SpecError
        If a value is out of range.

    Notes
    -----
    The number of connections is certain. The expected degrees of thin layers are proportional to those of the
    Barabasi-Albert graph; the authors' program keeps these degrees exactly and reconnects edges within one side, which
    the two sides' degrees, being unequal in sum, allow only in part. O(nnz log nnz) time a round for thin layers.

    References
    ----------
    Y. Zhang et al., "Brain network science modelling of sparse neural networks enables Transformers and LLMs to perform
    as fully connected", NeurIPS 2025, arXiv:2501.19107. F. Chung, L. Lu, "Connected components in random graphs with
    given expected degree sequences", Annals of Combinatorics 2002.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.generate(tg.BipartiteScaleFree(sizes=[784, 300], density=0.1), rng=0).nnz
    23520
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    density: float

    def __post_init__(self) -> None:
        owner = "BipartiteScaleFree"
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", owner, low=1, at_least=2))
        object.__setattr__(self, "density", checks.real(self.density, "density", owner, high=1.0))

    @property
    def connections(self) -> tuple[int, ...]:
        """The number of connections of each layer."""
        return tuple(connections_of(self.density, *self.shape(k)) for k in range(self.depth))

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        n_in, n_out = self.shape(k)
        count = self.connections[k]
        rng = stream(seed, "layer", k)
        weights = rng.permutation(_degrees(n_in + n_out, max(1, count // (n_in + n_out)), rng))
        keys = _weighted_pairs(weights[:n_in], weights[n_in:], count, rng)
        return pattern_of(np.searchsorted(keys, np.arange(n_in + 1) * n_out), keys % n_out, (n_in, n_out))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, and the exact number of connections."""
        return degree_claims(self.sizes, connections=self.connections, source=_BSF)


def _degrees(n: int, m: int, rng: np.random.Generator) -> Ends:
    """Return the degrees of the n neurons of a Barabasi-Albert graph, without core and loops."""
    degrees = np.bincount(_attachments(n, m, rng), minlength=n)
    degrees[m:] += m
    return degrees


def _weighted_pairs(left: Ends, right: Ends, count: int, rng: np.random.Generator) -> Ends:
    """Draw `count` different pairs (i, j), one after the other by weight left[i] * right[j]; sorted i * n_out + j.

    Drawing with repetition until there are enough different ones, and taking the first arrivals of independent
    exponential times, are two ways to the same distribution; the second sees every pair and suits dense layers.
    """
    possible = left.size * right.size
    if count * _RACE >= possible:
        arrivals = rng.exponential(size=possible) / np.multiply.outer(left, right).ravel()
        return np.sort(np.argsort(arrivals, kind="stable")[:count])
    sides = [np.cumsum(weights) for weights in (left, right)]
    keys = np.empty(0, np.int64)
    while keys.size < count:
        i, j = (
            np.searchsorted(total, rng.integers(total[-1], size=count - keys.size), side="right") for total in sides
        )
        keys = np.sort(np.concatenate([keys, i * right.size + j]), kind="stable")
        keys = keys[np.diff(keys, prepend=-1) > 0]
    return keys


def _attachments(n: int, m: int, rng: np.random.Generator) -> Ends:
    """Return the m earlier neurons that each of the neurons m, ..., n - 1 is joined to, in a row."""
    ends = np.empty(2 * m * (n - m), np.int64)  # both ends of all edges so far
    ends[:m], ends[m : 2 * m] = np.arange(m), m
    for filled in range(2 * m, ends.size, 2 * m):
        ends[filled : filled + m] = _first_distinct(ends[:filled], m, rng)
        ends[filled + m : filled + 2 * m] = m + filled // (2 * m)
    return ends.reshape(n - m, 2, m)[:, 0].ravel()


def _first_distinct(ends: Ends, m: int, rng: np.random.Generator) -> Ends:
    """Draw from `ends` until there are m different neurons, which is all of them at the latest."""
    drawn = np.empty(0, np.int64)
    while True:
        drawn = np.concatenate([drawn, ends[rng.integers(ends.size, size=m + 4)]])
        neurons, first = np.unique(drawn, return_index=True)
        if neurons.size >= m:
            return drawn[np.sort(first)[:m]]
