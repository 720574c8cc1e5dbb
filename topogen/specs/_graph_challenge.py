"""The networks of the Sparse Deep Neural Network Graph Challenge."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import (
    CONNECTIONS,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    PATH_CONNECTED,
    PATHS,
    SIZES,
    SYMMETRIC,
    Claim,
)
from topogen._spec import AbstractSpec, stream
from topogen.errors import SpecError
from topogen.measures import PathCounts, Range
from topogen.specs._patterns import circulant, kron_ones, regular_rows

__all__ = ["GraphChallenge"]

_COPIES = 16  # B_k, the dense width of every layer of nodes
_DEGREE = 2 * _COPIES  # all radices are 2

_DEFINITION = "Kepner et al., Sparse Deep Neural Network Graph Challenge (arXiv:1909.05631), and its official files"
_THEOREM = "one block of radix 2 makes 16^(d-1) J (arXiv:1905.00416); then A J = 32 J and J A = 32 J"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphChallenge(AbstractSpec):
    r"""The networks of the Sparse Deep Neural Network Graph Challenge: RadiX-Nets of radix 2, stacked and shuffled.

    With :math:`N = 16 \cdot 2^d` neurons in every layer of nodes, base layer j, for j = 0, ..., d - 1, is
    :math:`W_j = \mathbf{1}_{16 \times 16} \otimes (I + P^{-2^j})`, where :math:`P` joins i to i + 1 mod :math:`2^d`.
    The layers come in blocks of d. All layers of block b have the rows of the base layers in one order:
    layer b d + j is :math:`\Pi_b W_j`, with the identity as :math:`\Pi_0`.

    Parameters
    ----------
    neurons : int
        N = 16 * 2^d with d >= 1. The challenge has 1024, 4096, 16384 and 65536: d = 6, 8, 10, 12.
    layers : int
        L, a multiple of d. The challenge has 120, 480 and 1920.
    row_classes : array_like of int, shape (L / d, N), optional
        Row i of layer b d + j is row ``row_classes[b][i]`` of the base layer, whose rows repeat with period 2^d: every
        block holds each of 0, ..., 2^d - 1 16 times, in any order. Kept as nested tuples. By default the order of
        every block but the first is drawn, a permutation of the N rows that is uniform.

    Raises
    ------
    SpecError
        If `neurons` is not 16 * 2^d, `layers` no multiple of d, or `row_classes` no such array.

    Notes
    -----
    All claims are certain. Sizes N; fan-in and fan-out 32; density 32 / N. One block in the order
    i mod 2^d makes 16^(d-1) paths from every input to every output; layers before and after it, whatever their order,
    multiply by 32: path-connected, symmetric, 16^(d-1) * 32^(L-d) paths a pair. Row classes with no block in that
    order promise none of the three; a block in another order alone is close to symmetric only. The layers of block b
    share the draw ("block", b). O(nnz) time and memory a layer.

    The patterns alone: in the challenge all weights are 1/16, and all biases -0.3, -0.35, -0.4 or -0.45 for the four
    sizes. `topogen.io.graph_challenge` writes and reads its files.

    References
    ----------
    J. Kepner, S. Alford, V. Gadepally, M. Jones, L. Milechin, R. Robinett, S. Samsi, "Sparse Deep Neural Network Graph
    Challenge", HPEC 2019, arXiv:1909.05631.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.GraphChallenge(neurons=1024, layers=12), rng=0)
    >>> print(tg.measures.path_counts(net))
    2^50
    """

    neurons: int
    layers: int
    row_classes: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        neurons = _checked_neurons(self.neurons)
        object.__setattr__(self, "neurons", neurons)
        depth = self.block_depth
        layers = checks.integer(self.layers, "layers", "GraphChallenge", low=1)
        if layers % depth:
            checks.refuse(
                "layers",
                "GraphChallenge",
                f"a multiple of {depth}, the depth of the base network of {neurons} neurons",
                layers,
                hint=f"The nearest is {max(1, round(layers / depth)) * depth}.",
            )
        object.__setattr__(self, "layers", layers)
        if self.row_classes is not None:
            object.__setattr__(self, "row_classes", self._checked_classes(self.row_classes))

    @property
    def base_size(self) -> int:
        """N' = 2^d = N / 16, the number of classes that the rows fall in."""
        return self.neurons // _COPIES

    @property
    def block_depth(self) -> int:
        """The depth d of the base network, which is the number of layers in a block."""
        return self.base_size.bit_length() - 1

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(N, ..., N), L + 1 times."""
        return (self.neurons,) * (self.layers + 1)

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether there are orders to be drawn: no `row_classes`, and more than one block."""
        return self.row_classes is None and self.layers > self.block_depth

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k, whose block b = k // d draws its order from the stream ("block", b)."""
        self.shape(k)
        block, j = divmod(k, self.block_depth)
        base = circulant(self.base_size, [0, -(2**j)])
        columns = kron_ones(base, 1, _COPIES, "reference").indices.reshape(self.base_size, _DEGREE)
        return regular_rows(columns[self._classes(block, seed)], self.neurons)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees and density; path-connectedness, symmetry and the number of paths where they are proved."""
        degrees = (Range(_DEGREE, _DEGREE),) * self.layers
        claims = [
            Claim(measure=SIZES, bound=self.sizes, source=_DEFINITION),
            Claim(measure=CONNECTIONS, bound=(_DEGREE * self.neurons,) * self.layers, source=_DEFINITION),
            Claim(measure=FAN_OUT, bound=degrees, source=_DEFINITION),
            Claim(measure=FAN_IN, bound=degrees, source=_DEFINITION),
            Claim(measure=DENSITY, bound=Fraction(_DEGREE, self.neurons), source=_DEFINITION),
        ]
        if self.row_classes is None or tuple(range(self.base_size)) * _COPIES in self.row_classes:
            paths = _COPIES ** (self.block_depth - 1) * _DEGREE ** (self.layers - self.block_depth)
            claims += [
                Claim(measure=PATH_CONNECTED, bound=True, source=_THEOREM),
                Claim(measure=SYMMETRIC, bound=True, source=_THEOREM),
                Claim(measure=PATHS, bound=PathCounts(paths, paths), source=_THEOREM),
            ]
        return tuple(claims)

    def _classes(self, block: int, seed: np.random.SeedSequence | None) -> npt.NDArray[np.integer]:
        """Return which row of the base layers each row of the layers of `block` is."""
        if self.row_classes is not None:
            return np.array(self.row_classes[block])
        rows = np.arange(self.neurons) if block == 0 else stream(seed, "block", block).permutation(self.neurons)
        return rows % self.base_size

    def _checked_classes(self, row_classes: Any) -> tuple[tuple[int, ...], ...]:
        shape = (self.layers // self.block_depth, self.neurons)
        try:
            classes: npt.NDArray[Any] = np.asarray(row_classes)
        except ValueError:  # rows of different lengths
            classes = np.empty(0, np.object_)
        if classes.shape != shape or classes.dtype.kind not in "iu":
            got = f"an array of shape {classes.shape} and dtype {classes.dtype}"
            raise SpecError(
                f"The 'row_classes' parameter of GraphChallenge must be ints of shape {shape}, a row for each block of "
                f"{self.block_depth} layers. Got {got if classes.size else 'rows of different lengths or no array'}."
            )
        for block, row in enumerate(classes):
            outside = np.flatnonzero((row < 0) | (row >= self.base_size))
            if outside.size:
                i = int(outside[0])
                name = f"row_classes[{block}][{i}]"
                checks.refuse(name, "GraphChallenge", f"an int in [0, {self.base_size - 1}]", int(row[i]))
            times = np.bincount(row.astype(np.intp), minlength=self.base_size)
            wrong = np.flatnonzero(times != _COPIES)
            if wrong.size:
                raise SpecError(
                    f"The 'row_classes' parameter of GraphChallenge must hold every class {_COPIES} times in every "
                    f"block. Got class {wrong[0]} {times[wrong[0]]} times in row_classes[{block}]."
                )
        return tuple(map(tuple, cast(list[list[int]], classes.tolist())))


def _checked_neurons(neurons: Any) -> int:
    number = checks.integer(neurons, "neurons", "GraphChallenge", low=1)
    if number < 2 * _COPIES or number & (number - 1):
        below = max(2 * _COPIES, 1 << number.bit_length() - 1)
        nearest = min(below, 2 * below, key=lambda power: abs(power - number))
        checks.refuse(
            "neurons", "GraphChallenge", f"{_COPIES} * 2^d with d >= 1", number, hint=f"The nearest is {nearest}."
        )
    return number
