"""Array-code lifts: rectangular Ramanujan layers written down directly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import GIRTH, Claim
from topogen._spec import AbstractSpec
from topogen.specs._expanders import biregular_claims, connected, sigma_is
from topogen.specs._patterns import regular_rows
from topogen.specs._primes import prime

__all__ = ["ArrayCode"]

_DEFINITION = "Fan, Array codes as low-density parity-check codes (2000), definition"
_SPECTRUM = "Burnwal, Sinha & Vidyasagar, unbalanced Ramanujan bigraphs (arXiv:1910.03937), theorem on array codes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayCode(AbstractSpec):
    r"""The array-code lift B(q, l): one layer of l x q blocks, each a power of the cyclic permutation of q neurons.

    Block (i, j) is :math:`P^{ij}`, where P joins a to a + 1 mod q: input :math:`i q + a` is joined to the q outputs
    :math:`j q + (a + i j) \bmod q`, one for each j.

    Parameters
    ----------
    q : int
        A prime. Fan-out of every input.
    l : int
        In [2, q]. Fan-in of every output.

    Raises
    ------
    SpecError
        If q is no prime, with the nearest one, or l is out of range.

    Notes
    -----
    Certain: sizes (l q, q^2), density 1/q, one component. The singular values are sqrt(l q), once; sqrt q, l (q - 1)
    times; and 0, l - 1 times: sigma_2 / sigma_1 = 1 / sqrt l, and the layer is a Ramanujan bigraph in the weak sense.
    Girth 8 for l = 2, else 6. O(nnz) time and memory.

    References
    ----------
    J. L. Fan, "Array codes as low-density parity-check codes", Turbo Codes 2000; S. P. Burnwal, K. Sinha,
    M. Vidyasagar, "New and explicit constructions of unbalanced Ramanujan bipartite graphs", Ramanujan Journal 2021,
    arXiv:1910.03937.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.ArrayCode(q=5, l=3))
    >>> net.sizes, round(tg.measures.second_singular_value(net) ** 2, 9)
    ((15, 25), 5.0)
    """

    q: int
    l: int  # noqa: E741

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", prime(self.q, "q", "ArrayCode"))
        object.__setattr__(self, "l", checks.integer(self.l, "l", "ArrayCode", low=2, high=self.q))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(l q, q^2)."""
        return self.l * self.q, self.q**2

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        _, n_out = self.shape(k)
        j = np.arange(self.q)
        i, a = np.divmod(np.arange(self.l * self.q), self.q)
        return regular_rows(j * self.q + (a[:, None] + i[:, None] * j) % self.q, n_out)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, one component, the second singular value sqrt q, and the girth."""
        girth = "Fan (2000): blocks i, i' and j, j' close a cycle of four only if (i - i')(j - j') = 0 mod q"
        return (
            *biregular_claims(self.sizes, self.l, _DEFINITION),
            connected(_SPECTRUM),
            *sigma_is(math.sqrt(self.q), _SPECTRUM),
            Claim(measure=GIRTH, bound=8 if self.l == 2 else 6, source=girth),
        )
