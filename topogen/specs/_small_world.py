"""Small worlds: ring lattices with some connections moved, bipartite (BSW) and square (Watts-Strogatz)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import DEAD_NEURONS, Claim
from topogen._spec import AbstractSpec, stream
from topogen._topology import as_pattern
from topogen.specs._extra_edges import checked_extra, with_extra_edges
from topogen.specs._layerwise import connections_of, degree_claims
from topogen.specs._patterns import circulant, pattern_of, ranges
from topogen.specs._subsets import subsets

__all__ = ["BipartiteSmallWorld", "WattsStrogatz"]

Keys = npt.NDArray[np.int64]

_BSW = "Zhang et al., Brain network science modelling of sparse neural networks (arXiv:2501.19107), BSW"
_WS = "Watts & Strogatz, Collective dynamics of small-world networks (1998), with loops"
_MAX_ROUNDS = 100  # of moves; what is left then belongs to neurons that are joined to all others


@dataclass(frozen=True, slots=True, kw_only=True)
class BipartiteSmallWorld(AbstractSpec):
    r"""Bipartite small world (BSW): every neuron joined to those opposite to it, and a share of connections moved.

    With a = min(n_{k-1}, n_k) and b = max(n_{k-1}, n_k), neuron j of the larger side is joined to :math:`K_j` neurons
    in a row, cyclically, of the smaller side, from :math:`\lfloor j a / b - K_j / 2 \rfloor` on. Then a random share of
    all connections is taken away, and as many are put at random places that are free.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    density : float, in [0, 1]
        Of every layer; round(density * n_{k-1} * n_k) connections, shared out evenly among the larger side.
    rewire : float, in [0, 1]
        The share of connections that move; 0 is the bare ring, 1 is `ErdosRenyi`.

    Raises
    ------
    SpecError
        If a value is out of range.

    Notes
    -----
    The number of connections is certain, and exactly round(rewire * connections) of them move (the authors' program
    moves each with that probability). Without moves nothing is drawn, and the degrees of the larger side differ by one
    at most. O(nnz log nnz) time, O(nnz) memory.

    References
    ----------
    Y. Zhang et al., "Brain network science modelling of sparse neural networks enables Transformers and LLMs to perform
    as fully connected", NeurIPS 2025, arXiv:2501.19107. D. J. Watts, S. H. Strogatz, Nature 1998.

    Examples
    --------
    >>> import topogen as tg
    >>> ring = tg.BipartiteSmallWorld(sizes=[4, 8], density=0.25, rewire=0.0)
    >>> tg.generate(ring).layers[0].toarray().astype(int)[0].tolist()
    [0, 1, 1, 0, 0, 0, 0, 0]
    """

    sizes: tuple[int, ...]
    density: float
    rewire: float

    def __post_init__(self) -> None:
        owner = "BipartiteSmallWorld"
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", owner, low=1, at_least=2))
        object.__setattr__(self, "density", checks.real(self.density, "density", owner, high=1.0))
        object.__setattr__(self, "rewire", checks.real(self.rewire, "rewire", owner, high=1.0))

    @property
    def connections(self) -> tuple[int, ...]:
        """The number of connections of each layer."""
        return tuple(connections_of(self.density, *self.shape(k)) for k in range(self.depth))

    @property
    def moved(self) -> tuple[int, ...]:
        """How many connections of each layer move."""
        return tuple(round(Fraction(repr(self.rewire)) * count) for count in self.connections)

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a connection moves."""
        return any(self.moved)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k, from the stream ("layer", k) where connections move."""
        n_in, n_out = self.shape(k)
        smaller, larger = min(n_in, n_out), max(n_in, n_out)
        keys = _ring(smaller, larger, self.connections[k])
        if self.moved[k]:
            keys = _moved(keys, self.moved[k], smaller * larger, stream(seed, "layer", k))
        rows = pattern_of(np.searchsorted(keys, np.arange(larger + 1) * smaller), keys % smaller, (larger, smaller))
        return as_pattern(rows if n_in > n_out else rows.T)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, and the exact number of connections."""
        return degree_claims(self.sizes, connections=self.connections, source=_BSW)


@dataclass(frozen=True, slots=True, kw_only=True)
class WattsStrogatz(AbstractSpec):
    r"""Watts-Strogatz small world as a square, symmetric layer, with every neuron joined to itself too.

    Every neuron is joined to its `neighbours` nearest on each side of a ring. A share of these edges keeps its first
    end and moves the other to a random neuron that it is not joined to. The pattern is the adjacency matrix plus the
    identity; ``Block(WattsStrogatz(...), 32)`` is the published block layout.

    Parameters
    ----------
    n : int >= 1
        The number of neurons, or of blocks, of every layer of nodes.
    neighbours : int, in [0, (n - 1) // 2]
        On each side; the degree of the ring is twice as much.
    rewire : float, in [0, 1]
        The share of edges that move.
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
    Certain: n + 2 n * neighbours + 2 extra connections, a symmetric pattern, at least 1 + neighbours connections for
    every neuron (an edge never leaves its first end), no dead neuron. round(rewire * n * neighbours) edges are chosen;
    one whose first end is joined to all others stays. Edges move together, round by round, where networkx moves them
    one after another: the same model, not the same draws. O(nnz log nnz) time a round, O(nnz) memory; O(n) time for
    each extra edge.

    References
    ----------
    D. J. Watts, S. H. Strogatz, "Collective dynamics of 'small-world' networks", Nature 1998. S. Gray, A. Radford,
    D. P. Kingma, "GPU kernels for block-sparse weights", OpenAI 2017.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.WattsStrogatz(n=100, neighbours=3, rewire=0.2), rng=0)
    >>> net.nnz, (net[0].toarray() == net[0].toarray().T).all()
    (700, np.True_)
    """

    n: int
    neighbours: int
    rewire: float
    layers: int = 1
    extra: int = 0

    def __post_init__(self) -> None:
        n = checks.integer(self.n, "n", "WattsStrogatz", low=1)
        object.__setattr__(self, "n", n)
        owner = f"WattsStrogatz (n = {n})"
        neighbours = checks.integer(self.neighbours, "neighbours", owner, low=0, high=(n - 1) // 2)
        object.__setattr__(self, "neighbours", neighbours)
        object.__setattr__(self, "rewire", checks.real(self.rewire, "rewire", "WattsStrogatz", high=1.0))
        object.__setattr__(self, "layers", checks.integer(self.layers, "layers", "WattsStrogatz", low=1))
        extra = checked_extra(self.extra, "WattsStrogatz", n, n * (1 + 2 * neighbours))
        object.__setattr__(self, "extra", extra)

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, ..., n), one more than there are layers."""
        return (self.n,) * (self.layers + 1)

    @property
    def moved(self) -> int:
        """How many edges of a layer are chosen to move: none where all neurons are joined already."""
        if 2 * self.neighbours + 1 == self.n:
            return 0
        return round(Fraction(repr(self.rewire)) * self.n * self.neighbours)

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether an edge moves or comes in addition."""
        return self.moved + self.extra > 0

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k, from the stream ("layer", k) where edges move or come in addition."""
        self.shape(k)
        ring = circulant(self.n, np.arange(-self.neighbours, self.neighbours + 1))
        if not self.is_random:
            return ring
        rng = stream(seed, "layer", k)
        return with_extra_edges(self._rewired(rng) if self.moved else ring, self.extra, rng)

    def _rewired(self, rng: np.random.Generator) -> sp.csr_array:
        first = np.repeat(np.arange(self.n, dtype=np.int64), self.neighbours)
        second = (first + np.tile(np.arange(1, self.neighbours + 1), self.n)) % self.n
        _move_ends(first, second, subsets(1, first.size, self.moved, rng)[0], self.n, rng)
        loops = np.arange(self.n, dtype=np.int64)
        keys = np.sort(np.concatenate([first * self.n + second, second * self.n + first, loops * self.n + loops]))
        return pattern_of(np.searchsorted(keys, np.arange(self.n + 1) * self.n), keys % self.n, (self.n, self.n))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, connections, density and that no neuron is dead; the degrees where nothing is drawn. All certain."""
        connections = (self.n * (1 + 2 * self.neighbours) + 2 * self.extra,) * self.layers
        degrees = None if self.is_random else (1 + 2 * self.neighbours,) * self.layers
        alive = Claim(measure=DEAD_NEURONS, bound=(0,) * len(self.sizes), source="every neuron is joined to itself")
        return (
            *degree_claims(self.sizes, connections=connections, fan_out=degrees, fan_in=degrees, source=_WS),
            alive,
        )


def _ring(smaller: int, larger: int, count: int) -> Keys:
    """Return the sorted positions j * smaller + i of the connections of the ring, `count` in all."""
    j = np.arange(larger, dtype=np.int64)
    degrees = (j + 1) * count // larger - j * count // larger
    first = (2 * j * smaller - degrees * larger) // (2 * larger)
    return np.sort(np.repeat(j, degrees) * smaller + ranges(first, degrees) % smaller)


def _moved(keys: Keys, moves: int, possible: int, rng: np.random.Generator) -> Keys:
    """Take `moves` of the sorted positions away and return the rest with as many at random free places, sorted."""
    kept: Keys = keys[subsets(1, keys.size, keys.size - moves, rng)[0]]
    ranks: Keys = subsets(1, possible - kept.size, moves, rng)[0]
    # the free place of rank r: r, plus the positions that are kept before it
    free_before: Keys = kept - np.arange(kept.size, dtype=np.int64)
    places: Keys = ranks + np.searchsorted(free_before, ranks, side="right")
    return np.sort(np.concatenate([kept, places]))


def _move_ends(first: Keys, second: Keys, chosen: Keys, n: int, rng: np.random.Generator) -> None:
    """Move the second ends of the chosen edges, in place, to random neurons that make no loop and no double edge."""
    for _ in range(_MAX_ROUNDS):
        if not chosen.size:
            return
        ends = rng.integers(n, size=chosen.size)
        wanted = _undirected(first[chosen], ends, n)
        _, where, times = np.unique(wanted, return_inverse=True, return_counts=True)
        allowed = (times[where] == 1) & (ends != first[chosen]) & ~np.isin(wanted, _undirected(first, second, n))
        second[chosen[allowed]] = ends[allowed]
        chosen = chosen[~allowed]


def _undirected(first: Keys, second: Keys, n: int) -> Keys:
    return np.minimum(first, second) * n + np.maximum(first, second)
