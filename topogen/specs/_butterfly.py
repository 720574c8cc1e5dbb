"""Butterflies: the connections of the fast Fourier transform, and their sum in one layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import COMPONENTS, PATH_CONNECTED, PATHS, SYMMETRIC, Claim
from topogen._spec import AbstractSpec
from topogen.measures import PathCounts
from topogen.specs._layerwise import degree_claims
from topogen.specs._patterns import digit_exchange, regular_rows

__all__ = ["Butterfly", "FlatButterfly"]

_FFT = "Cooley & Tukey, An algorithm for the machine calculation of complex Fourier series (1965)"
_ONE_PATH = "each layer sets one binary digit freely, all layers set all"
_PIXELFLY = "Dao et al., Pixelated butterfly (arXiv:2112.00029), flat butterfly matrices"
_HYPERCUBE = "walks on the hypercube with loops: c(L+1, h) = c(L, h) + h c(L, h-1) + (s-h) c(L, h+1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Butterfly(AbstractSpec):
    r"""Butterfly: m layers of n = 2^m neurons; each layer lets one binary digit of the index change.

    The layer of stride :math:`2^k` joins i to i and to :math:`i \oplus 2^k`, the exclusive or.

    Parameters
    ----------
    n : int, a power of 2, >= 2
        The number of neurons of every layer of nodes.
    strides : {"increasing", "decreasing"}
        Order of the layers: stride 1 first (decimation in time), or n / 2 first (decimation in frequency).

    Raises
    ------
    SpecError
        If `n` is no power of 2, with the nearest one.

    Notes
    -----
    Certain: fan-in and fan-out 2, density 2 / n, exactly one path from every input to every output, whatever the
    order of the strides. A radix-2 `RadixNet` is the cyclic cousin: it joins i to :math:`i - 2^k \bmod n` where the
    butterfly flips a digit. O(n) time and memory a layer.

    References
    ----------
    J. W. Cooley, J. W. Tukey, Mathematics of Computation 1965. T. Dao et al., "Learning fast algorithms for linear
    transforms using butterfly factorizations", ICML 2019, arXiv:1903.05895.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Butterfly(n=1024))
    >>> len(net), net.nnz, str(tg.measures.path_counts(net))
    (10, 20480, '1')
    """

    n: int
    strides: Any = "increasing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _power_of_two(self.n, "n", "Butterfly"))
        object.__setattr__(
            self, "strides", checks.one_of(self.strides, "strides", "Butterfly", ("increasing", "decreasing"))
        )

    @property
    def n_digits(self) -> int:
        """m, the binary logarithm of n: one layer a digit."""
        return self.n.bit_length() - 1

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, ..., n), m + 1 times."""
        return (self.n,) * (self.n_digits + 1)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        self.shape(k)
        return digit_exchange(self.n, 2, 1 << (k if self.strides == "increasing" else self.n_digits - 1 - k))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, path-connectedness, symmetry and one path a pair, all exact."""
        twos = (2,) * self.n_digits
        connections = (2 * self.n,) * self.n_digits
        return (
            *degree_claims(self.sizes, connections=connections, fan_out=twos, fan_in=twos, source=_FFT),
            Claim(measure=PATH_CONNECTED, bound=True, source=_ONE_PATH),
            Claim(measure=SYMMETRIC, bound=True, source=_ONE_PATH),
            Claim(measure=PATHS, bound=PathCounts(1, 1), source=_ONE_PATH),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatButterfly(AbstractSpec):
    r"""Flat butterfly: the first s strides of a butterfly in one layer, the connections of "pixelfly".

    i is joined to i and to :math:`i \oplus 2^k` for k < s. Dense blocks in place of connections,
    ``Block(FlatButterfly(n=16, strides=4), 32)``, make it the flat block butterfly.

    Parameters
    ----------
    n : int, a power of 2, >= 2
        The number of neurons, or of blocks, of every layer of nodes.
    strides : int, in [1, log2 n]
        s, how many of the strides 1, 2, 4, ... are connected.
    layers : int >= 1
        How many equal layers follow one another.

    Raises
    ------
    SpecError
        If `n` is no power of 2, with the nearest one, or another value is out of range.

    Notes
    -----
    Certain: fan-in and fan-out s + 1; :math:`n / 2^s` connected components. A path from i to j is a walk on the
    hypercube with loops, so that the number of paths depends on the Hamming distance of i and j alone; with
    s = log2 n strides, L layers connect every pair exactly where L >= s. O(n s log s) time a layer.

    References
    ----------
    T. Dao et al., "Pixelated Butterfly: Simple and Efficient Sparse Training for Neural Network Models", ICLR 2022,
    arXiv:2112.00029.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.FlatButterfly(n=8, strides=3, layers=3))
    >>> print(tg.measures.path_counts(net))
    6..10
    """

    n: int
    strides: int
    layers: int = 1

    def __post_init__(self) -> None:
        n = _power_of_two(self.n, "n", "FlatButterfly")
        object.__setattr__(self, "n", n)
        strides = checks.integer(self.strides, "strides", f"FlatButterfly (n = {n})", low=1, high=n.bit_length() - 1)
        object.__setattr__(self, "strides", strides)
        object.__setattr__(self, "layers", checks.integer(self.layers, "layers", "FlatButterfly", low=1))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(n, ..., n), one more than there are layers."""
        return (self.n,) * (self.layers + 1)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        self.shape(k)
        index = sp.get_index_dtype(maxval=self.n)
        flips = np.array([0, *(1 << t for t in range(self.strides))], dtype=index)
        return regular_rows(np.sort(np.bitwise_xor.outer(np.arange(self.n, dtype=index), flips), axis=1), self.n)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, components, and the least and largest number of paths, all exact."""
        degrees = (self.strides + 1,) * self.layers
        connections = tuple(self.n * degree for degree in degrees)
        components = self.n >> self.strides
        by_distance = _walks(self.strides, self.layers)
        paths = PathCounts(min(by_distance) if components == 1 else 0, max(by_distance))
        return (
            *degree_claims(self.sizes, connections=connections, fan_out=degrees, fan_in=degrees, source=_PIXELFLY),
            Claim(measure=COMPONENTS, bound=components, source="the first s digits change, the others stay"),
            Claim(measure=PATH_CONNECTED, bound=paths.min > 0, source=_HYPERCUBE),
            Claim(measure=SYMMETRIC, bound=paths.min == paths.max, source=_HYPERCUBE),
            Claim(measure=PATHS, bound=paths, source=_HYPERCUBE),
        )


@cache
def _walks(strides: int, length: int) -> tuple[int, ...]:
    """Return how many walks of `length` steps end at Hamming distance 0, ..., `strides` from where they began."""
    counts = [1] + [0] * strides
    for _ in range(length):
        padded = [0, *counts, 0]
        counts = [padded[h + 1] + h * padded[h] + (strides - h) * padded[h + 2] for h in range(strides + 1)]
    return tuple(counts)


def _power_of_two(value: Any, name: str, owner: str) -> int:
    number = checks.integer(value, name, owner, low=2)
    below = 1 << (number.bit_length() - 1)
    if number != below:
        nearest = below if number - below <= 2 * below - number else 2 * below
        checks.refuse(name, owner, "a power of 2", number, hint=f"The nearest is {nearest}.")
    return number
