"""Gabber and Galil's expander on the torus."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import CONNECTIONS, DEAD_NEURONS, DENSITY, FAN_IN, FAN_OUT, SIZES, Claim
from topogen._spec import AbstractSpec
from topogen.measures import Range
from topogen.specs._expanders import connected
from topogen.specs._patterns import pattern_of

__all__ = ["GabberGalil"]

_DEFINITION = "Gabber & Galil, Explicit constructions of linear-sized superconcentrators (1981), the five maps"
_MERGED = "the maps meet only where they keep a point, in 4 m places: x or y is 0 or -1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GabberGalil(AbstractSpec):
    r"""Gabber and Galil's graph as one square layer: the points of a torus, joined to where five maps send them.

    Point (x, y), of number :math:`x m + y`, is joined to (x, y), (x, x + y), (x, x + y + 1), (x + y, y) and
    (x + y + 1, y), modulo m. Maps that send a point to the same place make one connection.

    Parameters
    ----------
    m : int
        At least 2; there are m^2 inputs and outputs.

    Raises
    ------
    SpecError
        If m is below 2.

    Notes
    -----
    Certain: 5 m^2 - 4 m connections, fan-in and fan-out 3..5 (3 for m = 2), one component, and any s inputs reach at
    least (1 + c (1 - s / m^2)) s outputs with c = (2 - sqrt 3) / 4: merging double connections keeps the neighbours,
    hence the theorem, but not the equal degrees. Bounds of the second singular value are known for the
    graph with double connections only, and so none is claimed. O(m^2) time and memory.

    References
    ----------
    O. Gabber, Z. Galil, "Explicit constructions of linear-sized superconcentrators", Journal of Computer and System
    Sciences 1981, theorem 2.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.GabberGalil(m=5))
    >>> net.nnz, str(tg.measures.fan_out(net)[0])
    (105, '3..5')
    """

    m: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", checks.integer(self.m, "m", "GabberGalil", low=2, high=2**31 - 1))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(m^2, m^2)."""
        return (self.m**2,) * 2

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        n, _ = self.shape(k)
        m = self.m
        x, y = np.divmod(np.arange(n), m)
        images = [(x, y), (x, x + y), (x, x + y + 1), (x + y, y), (x + y + 1, y)]
        columns = np.sort(np.stack([u % m * m + v % m for u, v in images], axis=1), axis=1)
        fresh = np.diff(columns, axis=1, prepend=-1) > 0
        return pattern_of(np.concatenate([[0], np.cumsum(fresh.sum(axis=1))]), columns[fresh], (n, n))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, the number of connections, the range of degrees, and one component."""
        n, connections = self.m**2, 5 * self.m**2 - 4 * self.m
        degrees = (Range(3, 3 if self.m == 2 else 5),)
        return (
            Claim(measure=SIZES, bound=self.sizes, source=_DEFINITION),
            Claim(measure=CONNECTIONS, bound=(connections,), source=_MERGED),
            Claim(measure=FAN_OUT, bound=degrees, source=_MERGED),
            Claim(measure=FAN_IN, bound=degrees, source=_MERGED),
            Claim(measure=DENSITY, bound=Fraction(connections, n * n), source=_MERGED),
            Claim(measure=DEAD_NEURONS, bound=(0, 0), source="every point is joined to itself"),
            connected("steps of 1 in y from x = 0, and in x from y = 0, and (x, y) to (x, x + y)"),
        )
