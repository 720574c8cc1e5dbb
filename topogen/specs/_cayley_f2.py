"""Cayley graphs of F_2^n, whose whole spectrum is integers read off the characters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import COMPONENTS, Claim
from topogen._spec import AbstractSpec
from topogen.errors import SpecError
from topogen.specs._expanders import biregular_claims, sigma_is
from topogen.specs._patterns import regular_rows

__all__ = ["CayleyF2"]

_DEFINITION = "definition of a Cayley graph"
_SPECTRUM = "Babai, Spectra of Cayley graphs (1979): the characters y are eigenvectors, of sum over g of (-1)^<y, g>"


@dataclass(frozen=True, slots=True, kw_only=True)
class CayleyF2(AbstractSpec):
    r"""A Cayley graph of :math:`F_2^n` as one square layer: x is joined to x + g for every generator g.

    Vectors are the ints of n bits, and x + g is their exclusive or.

    Parameters
    ----------
    n : int
        In [1, 30]: there are 2^n inputs and outputs.
    generators : sequence of int
        At least one, in [0, 2^n), distinct. 0 joins every input to the output of its own number. Kept ascending.

    Raises
    ------
    SpecError
        If n or a generator is out of range, or one is given twice.

    Notes
    -----
    Certain: degree d, the number of generators; components, 2^n over the number of sums of an even number of
    generators; and the second singular value, the largest :math:`|\sum_g (-1)^{\langle y, g \rangle}|` over y != 0, an
    integer. With generators for which it is small, that of a linear code of which all words have about half of the
    length as weight, the layer is an expander; a fixed degree never is, since n generators are needed to connect.
    The claims cost O(n 2^n), building O(d log d 2^n).

    References
    ----------
    L. Babai, "Spectra of Cayley graphs", Journal of Combinatorial Theory B 1979; N. Alon, Y. Roichman, "Random Cayley
    graphs and expanders", Random Structures and Algorithms 1994.

    Examples
    --------
    >>> import topogen as tg
    >>> cube = tg.CayleyF2(n=3, generators=[0, 1, 2, 4])
    >>> net = tg.generate(cube)
    >>> net[0][[5]].indices.tolist(), round(tg.measures.second_singular_value(net), 9)
    ([1, 4, 5, 7], 2.0)
    """

    n: int
    generators: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checks.integer(self.n, "n", "CayleyF2", low=1, high=30))
        given = checks.integers(self.generators, "generators", "CayleyF2", low=0, high=2**self.n - 1, at_least=1)
        twice = sorted({g for g in given if given.count(g) > 1}) if len(set(given)) < len(given) else []
        if twice:
            raise SpecError(f"The 'generators' parameter of CayleyF2 must be distinct. Got {twice[0]} more than once.")
        object.__setattr__(self, "generators", tuple(sorted(given)))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(2^n, 2^n)."""
        return (2**self.n,) * 2

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        size, _ = self.shape(k)
        neighbours = np.arange(size)[:, None] ^ np.array(self.generators)
        return regular_rows(np.sort(neighbours, axis=1), size)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, the components, and the second singular value."""
        eigenvalues = np.abs(_character_sums(self.n, self.generators))
        pieces = int(np.count_nonzero(eigenvalues == len(self.generators)))
        return (
            *biregular_claims(self.sizes, len(self.generators), _DEFINITION),
            Claim(measure=COMPONENTS, bound=pieces, source="one for each character that is constant on the generators"),
            *sigma_is(float(eigenvalues[1:].max()), _SPECTRUM),
        )


def _character_sums(n: int, generators: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the sum over g of (-1)^<y, g> for every y, by the fast Walsh-Hadamard transform."""
    sums = np.zeros(2**n, np.int64)
    sums[list(generators)] = 1
    for bit in range(n):
        pairs = sums.reshape(-1, 2, 2**bit)
        sums = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
    return sums
