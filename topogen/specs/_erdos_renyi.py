"""Erdos-Renyi layers with an exact number of connections."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import CONNECTIONS, DENSITY, SIZES, Claim
from topogen._spec import AbstractSpec, stream
from topogen.errors import SpecError
from topogen.specs._patterns import uniform_count

__all__ = ["ErdosRenyi"]

_UNIFORM = "Erdos & Renyi, On random graphs I (1959), the model G(n, M)"
_SET = "Mocanu et al., Sparse evolutionary training (arXiv:1707.04780), equation 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErdosRenyi(AbstractSpec):
    r"""Each layer uniform among all patterns with a given, exact number of connections.

    The number is :math:`\mathrm{round}(d \, n_{k-1} n_k)` for density d, or
    :math:`\min(\mathrm{round}(\varepsilon (n_{k-1} + n_k)), n_{k-1} n_k)` for SET's epsilon.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    density : float or sequence of float, in [0, 1]
        One for all layers, or one a layer. Give either this or `epsilon`.
    epsilon : float >= 0
        SET's sparsity parameter, shared by all layers; a layer that it would overfill is dense.

    Raises
    ------
    SpecError
        If neither or both of `density` and `epsilon` are given, or a value is out of range.

    Notes
    -----
    The number of connections is certain; connectivity is not promised. Connections are drawn without replacement
    (the published SET program draws with replacement and so stores fewer than it asks for). Products with a density
    are rounded exactly, halves to even, as the decimal that was written: 0.1 means 1/10. O(nnz log nnz) time.

    References
    ----------
    P. Erdos, A. Renyi, "On random graphs I", 1959. D. C. Mocanu et al., "Scalable training of artificial neural
    networks with adaptive sparse connectivity inspired by network science", Nature Communications 2018.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.generate(tg.ErdosRenyi(sizes=[784, 300], density=0.1), rng=0).nnz
    23520
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    density: float | tuple[float, ...] | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "ErdosRenyi", low=1, at_least=2))
        if (self.density is None) == (self.epsilon is None):
            raise SpecError(
                f"ErdosRenyi takes either 'density' or 'epsilon'. Got density={self.density}, epsilon={self.epsilon}."
            )
        if self.epsilon is not None:
            object.__setattr__(self, "epsilon", checks.real(self.epsilon, "epsilon", "ErdosRenyi"))
        else:
            object.__setattr__(self, "density", self._checked_density(self.density))

    def _checked_density(self, density: Any) -> float | tuple[float, ...]:
        if isinstance(density, numbers.Real):
            return checks.real(density, "density", "ErdosRenyi", high=1.0)
        requirement = f"a number in [0, 1] or a sequence of {self.depth} of them, one a layer"
        densities = checks.row(density, "density", "ErdosRenyi", requirement)
        if len(densities) != self.depth:
            checks.refuse("density", "ErdosRenyi", requirement, density)
        return tuple(checks.real(d, f"density[{k}]", "ErdosRenyi", high=1.0) for k, d in enumerate(densities))

    @property
    def connections(self) -> tuple[int, ...]:
        """The number of connections of each layer."""
        shapes = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        if self.epsilon is not None:
            factor = _as_written(self.epsilon)
            return tuple(min(round(factor * (n_in + n_out)), n_in * n_out) for n_in, n_out in shapes)
        densities = self.density if isinstance(self.density, tuple) else (self.density,) * self.depth
        return tuple(
            round(_as_written(density or 0.0) * n_in * n_out)
            for density, (n_in, n_out) in zip(densities, shapes, strict=True)
        )

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        return uniform_count(*self.shape(k), self.connections[k], stream(seed, "layer", k))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, and the exact number of connections."""
        source = _UNIFORM if self.epsilon is None else _SET
        possible = sum(n_in * n_out for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))
        return (
            Claim(measure=SIZES, bound=self.sizes, source=source),
            Claim(measure=CONNECTIONS, bound=self.connections, source=source),
            Claim(measure=DENSITY, bound=Fraction(sum(self.connections), possible), source=source),
        )


def _as_written(value: float) -> Fraction:
    """Return the decimal that was written: 0.1 is 1/10, not the nearest binary fraction."""
    return Fraction(repr(value))
