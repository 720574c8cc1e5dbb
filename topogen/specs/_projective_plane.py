"""Incidence of points and lines of a projective plane: the best expander of its degree and size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._claims import GIRTH, Claim
from topogen._spec import AbstractSpec
from topogen.specs._expanders import biregular_claims, connected, sigma_is
from topogen.specs._patterns import regular_rows
from topogen.specs._primes import inverses, prime

__all__ = ["ProjectivePlane"]

_AXIOMS = "projective plane of order q: two points lie on one line, a line has q + 1 points"
_SPECTRUM = "A A^T = q I + J, since two points lie on one line"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectivePlane(AbstractSpec):
    r"""PG(2, q): inputs are the points, outputs the lines of the projective plane over the field of q elements.

    Points and lines are the vectors of :math:`F_q^3` whose first entry that is not zero is 1, in the order (1, a, b),
    (0, 1, c), (0, 0, 1); point x is joined to line y if :math:`x \cdot y = 0 \bmod q`.

    Parameters
    ----------
    q : int
        A prime. (Planes exist for prime powers too; these are not built.)

    Raises
    ------
    SpecError
        If q is no prime, with the nearest one.

    Notes
    -----
    Certain: q^2 + q + 1 inputs and outputs, degree q + 1, one component, girth 6; two inputs share exactly one output.
    All singular values but the first are sqrt q, the least that the trace bound allows: no layer of these sizes and
    degrees is a better expander. The pattern is symmetric. O(nnz) time and memory.

    References
    ----------
    R. M. Tanner, "Explicit concentrators from generalized N-gons", SIAM Journal on Algebraic and Discrete Methods 1984.

    Examples
    --------
    >>> import topogen as tg
    >>> fano = tg.generate(tg.ProjectivePlane(q=2))
    >>> fano.sizes, tg.measures.is_ramanujan(fano, strict=True)
    ((7, 7), True)
    """

    q: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", prime(self.q, "q", "ProjectivePlane"))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, n) with n = q^2 + q + 1."""
        return (self.q**2 + self.q + 1,) * 2

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        n, _ = self.shape(k)
        q = self.q
        lines = _vectors(q)
        x, y, z = lines.T
        # two points of each line span the rest: w, and u + t w for all t
        nil, one = np.zeros_like(x), np.ones_like(x)
        u = np.where(z, (z, nil, -x), np.where(y, (y, -x, nil), (nil, one, nil))).T
        w = np.where(z, (nil, z, -y), (nil, nil, one)).T
        points = np.concatenate([u[:, None] + np.arange(q)[:, None] * w[:, None], w[:, None]], axis=1) % q
        return regular_rows(np.sort(_numbers(points, q), axis=1), n)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, one component, the second singular value sqrt q, and girth 6."""
        return (
            *biregular_claims(self.sizes, self.q + 1, _AXIOMS),
            connected(_AXIOMS),
            *sigma_is(math.sqrt(self.q), _SPECTRUM),
            Claim(measure=GIRTH, bound=6, source="two points share one line; three that do not are a triangle"),
        )


def _vectors(q: int) -> npt.NDArray[np.int64]:
    """Return the normalised vectors in their order: (1, a, b), (0, 1, c), (0, 0, 1)."""
    each = np.arange(q)
    affine = np.stack([np.ones(q * q, np.int64), np.repeat(each, q), np.tile(each, q)], axis=1)
    infinite = np.stack([np.zeros(q, np.int64), np.ones(q, np.int64), each], axis=1)
    return np.concatenate([affine, infinite, [[0, 0, 1]]])


def _numbers(vectors: npt.NDArray[np.int64], q: int) -> npt.NDArray[np.int64]:
    """Return the places of the multiples of some vectors, shape (..., 3), in the order of `_vectors`."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    inverse = inverses(q)[np.where(x, x, y)]
    affine = y * inverse % q * q + z * inverse % q
    return np.where(x, affine, np.where(y, q * q + z * inverse % q, q * q + q))
