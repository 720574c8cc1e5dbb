"""Monarch supports: one digit of a mixed-radix index a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import PATH_CONNECTED, PATHS, SYMMETRIC, Claim
from topogen._spec import AbstractSpec
from topogen.measures import PathCounts
from topogen.specs._layerwise import degree_claims
from topogen.specs._patterns import digit_exchange

__all__ = ["Monarch"]

_MONARCH = "Dao et al., Monarch (arXiv:2204.00595), M = P L P^T R with block-diagonal L and R"
_ONE_PATH = "each layer sets one digit freely, all layers set all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Monarch(AbstractSpec):
    r"""Monarch: block-diagonal layers between which the indices are transposed, so that every pair is joined once.

    Write i in the mixed radices :math:`r_1, ..., r_L`, the first digit of place value 1, the next of :math:`r_1`, and
    so on. Layer k joins i to every j that differs from it in digit k at most.

    Parameters
    ----------
    radices : sequence of at least 1 int >= 2
        (r_1, ..., r_L); n is their product. Two radices (q, p) are the Monarch matrix of p blocks of q x q, then q
        blocks of p x p.

    Raises
    ------
    SpecError
        If a radix is below 2.

    Notes
    -----
    Certain: sizes n, fan-in and fan-out r_k, density mean(r) / n, exactly one path from every input to every output.
    All radices 2 are the `Butterfly`. `RadixNet` with the same radices has equally many connections and paths, and
    steps around a ring where this one changes a digit. O(nnz) time and memory a layer.

    References
    ----------
    T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", ICML 2022,
    arXiv:2204.00595. D. Y. Fu et al., "Monarch Mixer", NeurIPS 2023, arXiv:2310.12109 (more than two radices).

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Monarch(radices=[32, 32]))
    >>> net.sizes, net.nnz, str(tg.measures.path_counts(net))
    ((1024, 1024, 1024), 65536, '1')
    """

    radices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "radices", checks.integers(self.radices, "radices", "Monarch", low=2, at_least=1))

    @property
    def n(self) -> int:
        """The number of neurons of every layer of nodes, the product of the radices."""
        return math.prod(self.radices)

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, ..., n), one more than there are radices."""
        return (self.n,) * (len(self.radices) + 1)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        self.shape(k)
        return digit_exchange(self.n, self.radices[k], math.prod(self.radices[:k]))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, path-connectedness, symmetry and one path a pair, all exact."""
        connections = tuple(self.n * radix for radix in self.radices)
        return (
            *degree_claims(
                self.sizes, connections=connections, fan_out=self.radices, fan_in=self.radices, source=_MONARCH
            ),
            Claim(measure=PATH_CONNECTED, bound=True, source=_ONE_PATH),
            Claim(measure=SYMMETRIC, bound=True, source=_ONE_PATH),
            Claim(measure=PATHS, bound=PathCounts(1, 1), source=_ONE_PATH),
        )
