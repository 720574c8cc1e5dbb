"""Which cyclic shifts of its inputs and outputs leave a layer as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import as_topology

__all__ = ["ShiftInvariance", "is_circulant", "shift_invariance"]


class ShiftInvariance(NamedTuple):
    """All shifts that leave a layer as it is: those by ``(s * inputs, s * outputs + r * alone)`` for integers s, r.

    A shift by (a, b) moves input i to ``(i + a) % n_in`` and output j to ``(j + b) % n_out``, each side around its own
    end. The shifts that change no connection are a group; this is its one basis in Hermite's normal form.

    Attributes
    ----------
    inputs : int
        The smallest a > 0 for which a shift by (a, b) changes nothing, whatever b; it divides n_in.
    outputs : int
        That b, in [0, alone).
    alone : int
        The smallest c > 0 for which a shift by (0, c), of the outputs alone, changes nothing; it divides n_out.
    """

    inputs: int
    outputs: int
    alone: int

    @property
    def both(self) -> int:
        """The smallest t > 0 for which a shift by (t, t) changes nothing; 1 for a circulant layer."""
        return self.inputs * self.alone // math.gcd(self.alone, self.inputs - self.outputs)


def is_circulant(x: Any) -> bool:
    """Return whether every layer is left as it is when inputs and outputs are shifted by one.

    Input i is connected to output j exactly where ``(i + 1) % n_in`` is connected to ``(j + 1) % n_out``. Of a square
    layer that is the definition of a circulant matrix; of others it is the same with each side around its own end.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    bool

    Notes
    -----
    Exact. O(nnz log nnz) time and O(nnz) memory, one layer at a time. A layer without connections is circulant.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.is_circulant([[1, 1, 0], [0, 1, 1], [1, 0, 1]]), tg.measures.is_circulant([[1, 1], [0, 1]])
    (True, False)
    """
    return all(_is_unchanged(layer, 1, 1) for layer in as_topology(x).layers)


def shift_invariance(x: Any) -> tuple[ShiftInvariance, ...]:
    """Return all cyclic shifts of inputs and outputs that leave each layer as it is.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of ShiftInvariance, length L
        A layer that no shift but the one all around leaves as it is has ``(n_in, 0, n_out)``; a square circulant one
        has (1, 1, n) or, where its rows repeat themselves, a divisor of n in place of n; a convolution of stride s has
        (s, 1, n_out); a layer without connections, or with all, has (1, 0, 1).

    Notes
    -----
    Exact. Both ``inputs`` and ``alone`` are found by dividing their sizes by one prime factor after the other, and
    ``outputs`` by laying one row over another: O(nnz log nnz) for each of the O(log n) tries, times the number of ways
    in which the two rows match, which is one where they do not repeat themselves. O(nnz) memory, one layer at a time.

    Examples
    --------
    >>> import numpy as np, topogen as tg
    >>> net = tg.generate(tg.RadixNet(systems=[[2, 2]], widths=[1, 2, 2]))
    >>> [tuple(shifts) for shifts in tg.measures.shift_invariance(net)]  # the second repeats every 2 of its 8 outputs
    [(1, 1, 4), (1, 1, 2)]
    >>> blocks, = tg.measures.shift_invariance(np.kron(np.eye(3), np.ones((2, 2))))
    >>> blocks, blocks.both
    (ShiftInvariance(inputs=2, outputs=2, alone=6), 2)
    """
    return tuple(_shifts(layer) for layer in as_topology(x).layers)


def _shifts(layer: sp.csr_array) -> ShiftInvariance:
    n_in, n_out = layer.shape
    if not layer.nnz:
        return ShiftInvariance(1, 0, 1)
    alone = _smallest(n_out, lambda c: _is_unchanged(layer, 0, c))

    def partner(a: int) -> int | None:
        return next((b for b in _row_shifts(layer, a, alone) if _is_unchanged(layer, a, b)), None)

    inputs = _smallest(n_in, lambda a: partner(a) is not None)
    outputs = partner(inputs) if inputs < n_in else 0
    assert outputs is not None
    return ShiftInvariance(inputs, outputs, alone)


def _smallest(n: int, works: Callable[[int], bool]) -> int:
    """Return the smallest divisor of n that works, where those that do are the multiples of the smallest.

    That is so for the sizes of shifts: they are a subgroup of the integers modulo n.
    """
    smallest, rest, prime = n, n, 2
    while rest > 1:
        if rest % prime:
            prime = prime + 1 if prime * prime <= rest else rest  # what is left then has no smaller factor
            continue
        rest //= prime
        if smallest % prime == 0 and works(smallest // prime):
            smallest //= prime
    return smallest


def _row_shifts(layer: sp.csr_array, a: int, alone: int) -> Iterator[int]:
    """Yield the shifts, modulo `alone`, that take one row to the one `a` inputs further; no other can fit the rest."""
    n_in, n_out = layer.shape
    fan_out = np.diff(layer.indptr)
    i = int(np.where(fan_out > 0, fan_out, n_out + 1).argmin())  # the shortest row that holds anything
    here, there = _row(layer, i), _row(layer, (i + a) % n_in)
    if len(here) == len(there):
        for b in np.unique((there - here[0]) % alone).tolist():
            if np.array_equal(np.sort((here + b) % n_out), there):
                yield b


def _row(layer: sp.csr_array, i: int) -> npt.NDArray[np.int64]:
    return layer.indices[layer.indptr[i] : layer.indptr[i + 1]].astype(np.int64)


def _is_unchanged(layer: sp.csr_array, a: int, b: int) -> bool:
    """Return whether the layer is the same after a shift of its inputs by a and of its outputs by b."""
    n_in, n_out = layer.shape
    fan_out = np.diff(layer.indptr)
    fan_in = np.bincount(layer.indices, minlength=n_out)
    if not np.array_equal(np.roll(fan_out, a), fan_out) or not np.array_equal(np.roll(fan_in, b), fan_in):
        return False
    sources = (np.repeat(np.arange(n_in, dtype=np.int64), fan_out) + a) % n_in
    shifted = sources * n_out + (layer.indices.astype(np.int64) + b) % n_out
    shifted.sort()
    starts = np.repeat(np.arange(n_in, dtype=np.int64) * n_out, fan_out)
    return np.array_equal(shifted, starts + layer.indices)
