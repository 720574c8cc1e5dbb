"""Paley graphs, as layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from topogen._claims import Claim
from topogen._spec import AbstractSpec
from topogen.specs._expanders import biregular_claims, connected, sigma_is
from topogen.specs._patterns import circulant
from topogen.specs._primes import prime

__all__ = ["Paley"]

_DEFINITION = "Paley (1933): half of the residues other than 0 are squares"
_SPECTRUM = "Gauss sums: the eigenvalues but the first are (-1 +- sqrt p) / 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paley(AbstractSpec):
    r"""The Paley graph as one square layer: i is joined to i + s mod p for every square s that is not 0.

    Parameters
    ----------
    p : int
        A prime, 1 mod 4. (Paley graphs of prime powers, and the directed ones of primes that are 3 mod 4, are not
        built.)

    Raises
    ------
    SpecError
        If p is no such prime, with the nearest one.

    Notes
    -----
    Certain: p inputs and outputs, degree (p - 1) / 2, one component; the pattern is symmetric, and its second singular
    value is (1 + sqrt p) / 2. Dense, about one half, hence a test case rather than a sparse layer. O(nnz log p) time.

    References
    ----------
    R. E. A. C. Paley, "On orthogonal matrices", Journal of Mathematics and Physics 1933.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Paley(p=13))
    >>> net[0][[0]].indices.tolist()
    [1, 3, 4, 9, 10, 12]
    """

    p: int

    def __post_init__(self) -> None:
        kind = "a prime that is 1 mod 4"
        object.__setattr__(self, "p", prime(self.p, "p", "Paley", kind=kind, fits=lambda n: n % 4 == 1))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(p, p)."""
        return self.p, self.p

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        n, _ = self.shape(k)
        return circulant(n, np.unique(np.arange(1, n // 2 + 1) ** 2 % n))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, one component, and the second singular value (1 + sqrt p) / 2."""
        return (
            *biregular_claims(self.sizes, (self.p - 1) // 2, _DEFINITION),
            connected("1 and p - 1 are squares, and p is odd"),
            *sigma_is((1 + math.sqrt(self.p)) / 2, _SPECTRUM),
        )
