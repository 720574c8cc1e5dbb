"""The Ramanujan graphs of Lubotzky, Phillips and Sarnak, as layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._claims import Claim
from topogen._spec import AbstractSpec
from topogen.errors import SpecError
from topogen.specs._expanders import biregular_claims, connected, sigma_at_most
from topogen.specs._patterns import ranges, regular_rows
from topogen.specs._primes import inverses, is_prime, prime

__all__ = ["LPS"]

_THEOREM = "Lubotzky, Phillips & Sarnak, Ramanujan graphs (1988), theorem 4.1"
_KIND = "a prime that is 1 mod 4"

Matrices = npt.NDArray[np.int64]  # of shape (..., 4): the entries a, b, c, d of [[a, b], [c, d]] modulo q


@dataclass(frozen=True, slots=True, kw_only=True)
class LPS(AbstractSpec):
    r"""The Ramanujan graph X^{p,q} as one square layer of degree p + 1.

    The p + 1 integer solutions of :math:`a^2 + b^2 + c^2 + d^2 = p` with a odd and positive and b, c, d even give the
    matrices :math:`\begin{pmatrix} a + i b & c + i d \\ -c + i d & a - i b \end{pmatrix}` modulo q, where
    :math:`i^2 = -1`. A matrix g, up to scalars, is joined to g s for each of these s.

    Parameters
    ----------
    p : int
        A prime, 1 mod 4. The degree is p + 1.
    q : int
        Another prime, 1 mod 4; the p + 1 matrices must be distinct modulo q, up to scalars, which q > 2 sqrt p ensures.

    Raises
    ------
    SpecError
        If p or q is no such prime, with the nearest one; if they are equal; or if two of the matrices coincide or one
        is the identity, with a q for which they do not.

    Notes
    -----
    Certain: q (q^2 - 1) / 2 inputs and as many outputs, all degrees p + 1, one component, and a second singular value
    of at most 2 sqrt p, which is Ramanujan's bound. If p is no square modulo q, X^{p,q} is bipartite: inputs are the
    classes of matrices whose determinant is a square, outputs the others. If it is one, X^{p,q} lives on the former
    alone, and the layer is its adjacency matrix. O(q^3 + nnz log p) time, O(q^3 + nnz) memory.

    References
    ----------
    A. Lubotzky, R. Phillips, P. Sarnak, "Ramanujan graphs", Combinatorica 1988, theorem 4.1.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.LPS(p=5, q=13))
    >>> net.sizes, round(tg.measures.second_singular_value(net), 4)
    ((1092, 1092), 4.2497)
    """

    p: int
    q: int

    def __post_init__(self) -> None:
        for name in ("p", "q"):
            value = prime(getattr(self, name), name, "LPS", kind=_KIND, fits=lambda n: n % 4 == 1)
            object.__setattr__(self, name, value)
        if self.p == self.q:
            raise SpecError(f"The parameters 'p' and 'q' of LPS must be two different primes. Got {self.p} twice.")
        if not _is_simple(self.p, self.q):
            enough = next(
                q for q in range(math.isqrt(4 * self.p) + 1, 2**31) if q % 4 == 1 and is_prime(q) and q != self.p
            )
            raise SpecError(
                f"The 'q' parameter of LPS must keep the p + 1 = {self.p + 1} matrices distinct and none the identity, "
                f"up to scalars mod q, as every q > 2 sqrt p = {2 * math.sqrt(self.p):.4g} does. Got {self.q}; "
                f"{enough} would do."
            )

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, n) with n = q (q^2 - 1) / 2."""
        return (self.q * (self.q**2 - 1) // 2,) * 2

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build the layer; the seed is ignored."""
        n, _ = self.shape(k)
        q = self.q
        squares = np.zeros(q, np.bool_)
        squares[np.arange(q) ** 2 % q] = True
        group = _group(q)
        special = squares[_determinants(group, q)]
        inputs = group[special]
        outputs = inputs if squares[self.p % q] else group[~special]
        place = np.full(q**3 + q**2, -1, np.int64)
        place[_codes(outputs, q)] = np.arange(n)
        columns = [place[_codes(_products(inputs, s, q), q)] for s in _generators(self.p, q)]
        return regular_rows(np.sort(np.stack(columns, axis=1), axis=1), n)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, one component, and a second singular value of at most 2 sqrt p."""
        return (
            *biregular_claims(self.sizes, self.p + 1, _THEOREM),
            connected(_THEOREM),
            sigma_at_most(2 * math.sqrt(self.p), _THEOREM),
        )


def _is_simple(p: int, q: int) -> bool:
    """Whether no two of the p + 1 matrices are the same and none is the identity, up to scalars modulo q."""
    if q * q > 4 * p:
        return True
    if p + 1 > q * (q * q - 1) // 2:  # more than there are classes
        return False
    # were one the identity, so would be its conjugate (a, -b, -c, -d), and two would be the same
    return len(np.unique(_codes(_generators(p, q), q))) == p + 1


def _generators(p: int, q: int) -> Matrices:
    """Return the p + 1 matrices modulo q, in the order of their quadruples."""
    i = next(pow(x, (q - 1) // 4, q) for x in range(2, q) if pow(x, (q - 1) // 2, q) == q - 1)
    a, b, c, d = _four_squares(p).T
    return np.stack([a + i * b, c + i * d, -c + i * d, a - i * b], axis=-1) % q


def _four_squares(p: int) -> npt.NDArray[np.int64]:
    """Return the p + 1 quadruples with a^2 + b^2 + c^2 + d^2 = p, a odd and positive, b, c, d even (Jacobi)."""
    root = math.isqrt(p)
    odd, even = np.arange(1, root + 1, 2), np.arange(-(root // 2) * 2, root + 1, 2)
    first, second = _pairs(odd, even), _pairs(even, even)
    sums = np.square(second).sum(axis=1)
    second, sums = second[np.argsort(sums, kind="stable")], np.sort(sums)
    missing: npt.NDArray[np.int64] = p - np.square(first).sum(axis=1)
    low = np.searchsorted(sums, missing, "left")
    times = np.searchsorted(sums, missing, "right") - low
    return np.concatenate([np.repeat(first, times, axis=0), second[ranges(low, times)]], axis=1)


def _pairs(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return all pairs of an entry of x and one of y, shape (len(x) * len(y), 2)."""
    return np.stack([np.repeat(x, len(y)), np.tile(y, len(x))], axis=1)


def _group(q: int) -> Matrices:
    """Return all invertible matrices up to scalars, the first entry that is not zero being 1; ascending in `_codes`."""
    b, (c, d) = np.repeat(np.arange(q), q * q), np.divmod(np.arange(q**3) % q**2, q)
    affine = np.stack([np.ones_like(b), b, c, d], axis=1)
    infinite = affine[: q * q] * [0, 0, 1, 1] + [0, 1, 0, 0]
    every = np.concatenate([affine, infinite])
    return every[_determinants(every, q) != 0]


def _determinants(matrices: Matrices, q: int) -> npt.NDArray[np.int64]:
    a, b, c, d = _entries(matrices)
    return (a * d - b * c) % q


def _products(matrices: Matrices, s: Matrices, q: int) -> Matrices:
    """Return the matrices times the matrix s."""
    a, b, c, d = _entries(matrices)
    return np.stack([a * s[0] + b * s[2], a * s[1] + b * s[3], c * s[0] + d * s[2], c * s[1] + d * s[3]], axis=-1) % q


def _codes(matrices: Matrices, q: int) -> npt.NDArray[np.int64]:
    """Return one number in [0, q^3 + q^2) for each class of multiples of an invertible matrix."""
    a, b, c, d = _entries(matrices)
    scale = inverses(q)[np.where(a, a, b)]
    b, c, d = b * scale % q, c * scale % q, d * scale % q
    return np.where(a, (b * q + c) * q + d, q**3 + c * q + d)


def _entries(matrices: Matrices) -> tuple[Matrices, Matrices, Matrices, Matrices]:
    return matrices[..., 0], matrices[..., 1], matrices[..., 2], matrices[..., 3]
