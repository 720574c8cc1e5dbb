"""Dense: every connection of a multilayer perceptron."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import (
    COMPONENTS,
    CONNECTIONS,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    PATH_CONNECTED,
    PATHS,
    SIZES,
    SYMMETRIC,
    Claim,
)
from topogen._spec import AbstractSpec
from topogen.measures import PathCounts, Range
from topogen.specs._patterns import full

__all__ = ["Dense"]

_SOURCE = "complete bipartite layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense(AbstractSpec):
    r"""Every neuron joined to every neuron of the next layer: the fully connected baseline.

    :math:`W_k = \mathbf{1}_{n_{k-1} \times n_k}`.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).

    Raises
    ------
    SpecError
        If there are fewer than two sizes or one is below 1.

    Notes
    -----
    Certain: density 1, one connected component, :math:`\prod_{k=1}^{L-1} n_k` paths from every input to every output.
    O(nnz) time and memory.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.generate(tg.Dense(sizes=[784, 300, 10])).nnz
    238200
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "Dense", low=1, at_least=2))

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        return full(*self.shape(k))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density 1, one component, symmetry and the number of paths, all exact."""
        shapes = tuple(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        paths = math.prod(self.sizes[1:-1])
        return (
            Claim(measure=SIZES, bound=self.sizes, source=_SOURCE),
            Claim(measure=CONNECTIONS, bound=tuple(n_in * n_out for n_in, n_out in shapes), source=_SOURCE),
            Claim(measure=FAN_OUT, bound=tuple(Range(n_out, n_out) for _, n_out in shapes), source=_SOURCE),
            Claim(measure=FAN_IN, bound=tuple(Range(n_in, n_in) for n_in, _ in shapes), source=_SOURCE),
            Claim(measure=DENSITY, bound=Fraction(1), source=_SOURCE),
            Claim(measure=PATH_CONNECTED, bound=True, source=_SOURCE),
            Claim(measure=SYMMETRIC, bound=True, source=_SOURCE),
            Claim(measure=PATHS, bound=PathCounts(paths, paths), source=_SOURCE),
            Claim(measure=COMPONENTS, bound=1, source=_SOURCE),
        )
