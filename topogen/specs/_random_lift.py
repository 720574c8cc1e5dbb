"""Lifts of complete bipartite graphs, doubled again and again by the best of some random signings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import Claim
from topogen._spec import AbstractSpec, stream
from topogen.measures import second_singular_value
from topogen.specs._expanders import biregular_claims
from topogen.specs._patterns import full, regular_rows

__all__ = ["RandomLift"]

_LIFT = "Bilu & Linial (2006): a 2-lift keeps all degrees and doubles both sides"

_ROUNDING = 1e-9  # what floating point may add to a singular value, with a wide margin


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLift(AbstractSpec):
    r"""A complete bipartite layer, doubled several times: each time the best of some random 2-lifts.

    A 2-lift of B takes two copies of every neuron. A connection i -> j of B becomes straight (copy 0 to 0, 1 to 1) or
    crossed (0 to 1, 1 to 0): with S = +-1 for these, the singular values are those of B and those of the signed
    :math:`B \circ S`. Of `tries` random choices the one with the least second singular value is kept.

    Parameters
    ----------
    fan_out, fan_in : int >= 2
        Degrees; the base has `fan_in` inputs and `fan_out` outputs.
    lifts : int
        In [1, 30]: how often both sides are doubled.
    tries : int >= 1
        How many random 2-lifts each is chosen from.

    Raises
    ------
    SpecError
        If a parameter is out of range.

    Notes
    -----
    Certain: fan_in * 2^lifts inputs, fan_out * 2^lifts outputs, both degrees, no dead neuron. The second singular value
    never falls from one lift to the next. Some signing keeps it within the Ramanujan bound (Marcus, Spielman and
    Srivastava), but a bounded number of random ones need not find it: nothing is promised, `verify` tells. Costs
    `tries` second singular values a lift.

    References
    ----------
    Y. Bilu, N. Linial, "Lifts, discrepancy and nearly optimal spectral gap", Combinatorica 2006; A. Marcus,
    D. Spielman, N. Srivastava, "Interlacing families I: bipartite Ramanujan graphs of all degrees", Annals of
    Mathematics 2015, theorem 5.3.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RandomLift(fan_out=4, fan_in=6, lifts=5), rng=0)
    >>> net.sizes, net.nnz, tg.measures.is_biregular(net)
    ((192, 128), 768, True)
    """

    is_random: ClassVar[bool] = True

    fan_out: int
    fan_in: int
    lifts: int
    tries: int = 10

    def __post_init__(self) -> None:
        for name, low, high in (("fan_out", 2, None), ("fan_in", 2, None), ("lifts", 1, 30), ("tries", 1, None)):
            object.__setattr__(self, name, checks.integer(getattr(self, name), name, "RandomLift", low=low, high=high))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(fan_in * 2^lifts, fan_out * 2^lifts)."""
        return self.fan_in * 2**self.lifts, self.fan_out * 2**self.lifts

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build the layer; try t of lift s draws from the stream ("layer", k, "member", s, "attempt", t)."""
        self.shape(k)
        pattern = full(self.fan_in, self.fan_out)
        for s in range(self.lifts):
            streams = (stream(seed, "layer", k, "member", s, "attempt", t) for t in range(self.tries))
            signings = (rng.random((pattern.shape[0], self.fan_out)) < 0.5 for rng in streams)
            lifted = (_two_lift(pattern, crossed) for crossed in signings)
            pattern = next(lifted) if self.tries == 1 else _best(list(lifted))
        return pattern

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density and that no neuron is dead."""
        return biregular_claims(self.sizes, self.fan_in, _LIFT)


def _best(lifted: list[sp.csr_array]) -> sp.csr_array:
    """Return the first of the lifts whose second singular value is the smallest, rounding aside.

    Lifts are often isomorphic, and which of two equal values comes out smaller depends on the machine.
    """
    values = [second_singular_value(pattern) for pattern in lifted]
    return lifted[next(t for t, value in enumerate(values) if value <= min(values) + _ROUNDING)]


def _two_lift(pattern: sp.csr_array, crossed: npt.NDArray[np.bool_]) -> sp.csr_array:
    """Return the 2-lift of a pattern with rows of one length; copy c of neuron i has number ``c * n + i``."""
    n_in, n_out = pattern.shape
    columns = pattern.indices.reshape(n_in, -1).astype(np.int64)
    copies = np.concatenate([columns + n_out * crossed, columns + n_out * ~crossed])
    return regular_rows(np.sort(copies, axis=1), 2 * n_out)
