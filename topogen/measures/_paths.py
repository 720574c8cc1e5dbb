"""How many paths lead from an input to an output: exact, whatever the size of the number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import Topology, as_topology
from topogen.measures._twins import Groups, distinct_inputs, keys, merge_twins, singletons

__all__ = ["PathCounts", "is_symmetric", "path_counts"]

_BLOCK_BYTES = 2**26  # of path counts at once: where all inputs need more, they are carried through in turns


@dataclass(frozen=True, slots=True, repr=False)
class PathCounts:
    """The smallest and the largest number of paths over all pairs of an input and an output.

    Attributes
    ----------
    min, max : int
        Exact.

    Examples
    --------
    >>> import topogen as tg
    >>> print(tg.measures.PathCounts(36, 36), tg.measures.PathCounts(0, 36), tg.measures.PathCounts(2**590, 3**590))
    36 0..36 2^590..3.17e281 (282 digits)
    >>> print(tg.measures.PathCounts(10**20, 10**20 + 7))
    1.00e20 (21 digits) + 0..7
    """

    min: int
    max: int

    def __str__(self) -> str:
        low, high = _shown(self.min), _shown(self.max)
        if self.min == self.max:
            return low
        return f"{low}..{high}" if low != high else f"{low} + 0..{_shown(self.max - self.min)}"

    def __repr__(self) -> str:
        return f"PathCounts(min={_shown(self.min)}, max={_shown(self.max)})"


def path_counts(x: Any) -> PathCounts:
    """Return the smallest and the largest number of paths from an input to an output.

    The number of paths from i to j is entry (i, j) of the product of the layers as matrices of zeros and ones.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    PathCounts
        Exact Python integers. ``.min`` is 0 where some input does not reach some output.

    Notes
    -----
    No floats. Counts are kept in base ``2**b``, where b is such that a sum over all predecessors of a neuron cannot
    leave an int64; digits are added as they are needed. Inputs are carried once for each distinct row of the partial
    product and neurons once for each distinct column of a layer, so that a chain whose partial product has become
    constant costs one vector product a layer. At worst ``nnz * n_0`` additions a layer and digit; a few times 64 MiB
    are held.

    Examples
    --------
    >>> import topogen as tg
    >>> print(tg.measures.path_counts([[[1, 1], [1, 1]]] * 21))
    1048576
    """
    topology = as_topology(x)
    bits = 62 - max(topology.sizes).bit_length()
    extremes = [
        (_extreme(digits, bits, np.min), _extreme(digits, bits, np.max)) for digits in _products(topology, bits)
    ]
    return PathCounts(min(low for low, _ in extremes), max(high for _, high in extremes))


def is_symmetric(x: Any) -> bool:
    """Return whether the number of paths is the same for every pair of an input and an output.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    bool
        True for a chain without any path too: the number is 0 for every pair.

    Notes
    -----
    Exact, by the algorithm of `path_counts`.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.is_symmetric([[1, 1], [1, 1]]), tg.measures.is_symmetric([[1, 0], [1, 1]])
    (True, False)
    """
    counts = path_counts(x)
    return counts.min == counts.max


class _Partial(NamedTuple):
    """The numbers of paths from some inputs to the neurons of layer k of nodes; equal rows and twins only once.

    ``digits`` has shape (groups of neurons, digits of a number, rows), the least digit first.
    """

    k: int
    digits: npt.NDArray[np.int64]
    groups: Groups


def _products(topology: Topology, bits: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield all distinct entries of the product, as digits in base ``2**bits``: arrays of shape (digits, entries).

    Rows are carried through the whole chain before the next ones are begun, as many at once as fit in `_BLOCK_BYTES`.
    """
    inputs = distinct_inputs(topology).first
    first, groups = merge_twins(topology.layers[0][inputs], singletons(len(inputs)))
    n_out = len(groups.first)
    rows = max(1, _BLOCK_BYTES // (8 * n_out))
    for start in range(0, len(inputs), rows):
        digits = np.ascontiguousarray(first[start : start + rows].toarray().T).reshape(n_out, 1, -1)
        waiting = [_Partial(1, digits, groups)]
        while waiting:
            partial = waiting.pop()
            if partial.k == len(topology):
                yield partial.digits.transpose(1, 0, 2).reshape(partial.digits.shape[1], -1)
            else:
                waiting += _advance(partial, topology.layers[partial.k], bits)


def _advance(partial: _Partial, layer: sp.csr_array, bits: int) -> list[_Partial]:
    """Multiply by a layer: return the rows for which there was no room, if any, and then the product of the others."""
    from topogen.kernels import carry, predecessor_sums

    columns, groups = merge_twins(layer, partial.groups)
    (n_in, depth, rows), n_out = partial.digits.shape, len(groups.first)
    fit = max(1, _BLOCK_BYTES // (8 * depth * max(n_in, n_out)))
    left = [partial._replace(digits=partial.digits[:, :, fit:])] if rows > fit else []
    values = np.ascontiguousarray(partial.digits[:, :, :fit]).reshape(n_in, -1)
    sums = np.empty((n_out, values.shape[1]), np.int64)
    predecessor_sums(columns.indptr, columns.indices, columns.data, values, sums)
    digits = sums.reshape(n_out, depth, -1)
    if carry(digits, bits):
        digits = np.concatenate([digits, np.zeros_like(digits[:, :1])], axis=1)
        carry(digits, bits)
    return [*left, _Partial(partial.k + 1, _distinct_rows(digits), groups)]


def _distinct_rows(digits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return one of equal rows (last axis) each: inputs with the same number of paths to every neuron go on as one."""
    n, depth, rows = digits.shape
    flat = digits.reshape(n * depth, rows)
    _, first, of = np.unique(np.einsum("j,jr->r", keys(n * depth), flat), return_index=True, return_inverse=True)
    if len(first) == rows or not np.array_equal(flat[:, first[of]], flat):
        return digits
    return np.ascontiguousarray(digits[:, :, first])


def _extreme(digits: npt.NDArray[np.int64], bits: int, pick: Callable[[npt.NDArray[np.int64]], np.int64]) -> int:
    """Return the smallest or largest of the numbers whose digits are the columns of `digits`, least digit first."""
    value = 0
    for row in range(len(digits) - 1, -1, -1):
        best = pick(digits[row])
        digits = digits[:, digits[row] == best]
        value = (value << bits) | int(best)
    return value


def _shown(value: int) -> str:
    """Return a count as text: in full below 10^15, else as a power of two or rounded, with its number of digits."""
    if value < 10**15:
        return str(value)
    if value.bit_count() == 1:
        return f"2^{value.bit_length() - 1}"
    number = Decimal(value)  # str() refuses ints of more than 4300 digits
    mantissa, _, exponent = f"{number:.2e}".partition("e+")
    return f"{mantissa}e{exponent} ({number.adjusted() + 1} digits)"
