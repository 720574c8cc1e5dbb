"""The chordal cycle: a ring in which every residue is joined to its inverse as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from topogen._claims import Claim
from topogen._spec import AbstractSpec
from topogen.specs._expanders import biregular_claims, connected
from topogen.specs._patterns import regular_rows
from topogen.specs._primes import inverses, prime

__all__ = ["ChordalCycle"]

_DEFINITION = "Lubotzky, Discrete Groups, Expanding Graphs and Invariant Measures (1994), theorem 4.4.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChordalCycle(AbstractSpec):
    r"""The chordal cycle as one square layer of degree 3: x is joined to x - 1, x + 1 and its inverse modulo p.

    0 counts as its own inverse.

    Parameters
    ----------
    p : int
        3, or a prime that is 2 or 3 mod 5. For all others 5 is a square modulo p, so that some inverse is a
        neighbour on the ring, and the three connections are not distinct.

    Raises
    ------
    SpecError
        If p is no such prime, with the nearest one.

    Notes
    -----
    Certain: p inputs and outputs, degree 3, one component; the pattern is symmetric. The second singular value stays
    below 3 by some constant for all p, by Selberg's theorem, which names none that can be checked here: about 2.9 is
    measured. A random layer of degree 3 comes close to 2.83. O(p) time and memory.

    References
    ----------
    A. Lubotzky, "Discrete Groups, Expanding Graphs and Invariant Measures", 1994, theorem 4.4.2.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.generate(tg.ChordalCycle(p=7))[0].indices.reshape(7, 3).tolist()[:4]
    [[0, 1, 6], [0, 1, 2], [1, 3, 4], [2, 4, 5]]
    """

    p: int

    def __post_init__(self) -> None:
        kind = "a prime that is 2 or 3 mod 5, so that no inverse is a neighbour on the ring"
        object.__setattr__(
            self, "p", prime(self.p, "p", "ChordalCycle", kind=kind, fits=lambda n: n > 2 and n % 5 in (2, 3))
        )

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(p, p)."""
        return self.p, self.p

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        p, _ = self.shape(k)
        x = np.arange(p)
        return regular_rows(np.sort(np.stack([(x - 1) % p, (x + 1) % p, inverses(p)], axis=1), axis=1), p)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density and one component."""
        return (*biregular_claims(self.sizes, 3, _DEFINITION), connected("a ring of odd length"))
