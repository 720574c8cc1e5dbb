"""Which rows of a sparse matrix share most of their columns, found from the matrix alone.

A *plan* is one int32 array. For a matrix of R rows it has ``P = ceil(R / 4)`` panels, and holds

- ``members``, 4 P: the rows of each panel, then R for each that the last one lacks;
- ``bounds``, P + 1: where in the plan the entries of each panel begin, and those of the last one end;
- the entries, one for each column that members share or have alone: a code (`topogen.kernels._panel_vector`), and in a
  plan made with a permutation the place of the first value and the distance to that of the next member;
- a few zeros that the kernels may read but do not use.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from topogen.kernels._compile import kernel
from topogen.kernels._panel_vector import LOOKAHEAD, MEMBERS, PLACED

__all__ = ["plan_panels"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

# Of the connections so many must lie in entries of all four members, in a plan for products and in one for gradients:
# measured, below that rows are as fast. The gradients of rows that are neighbours anyway find their samples in the
# first-level cache unless they have many columns; those of other rows only if they have few.
_SHARED = {"product": 0.7, "gradients": 0.8}
_SHORTEST = {"neighbours": 128, "apart": 32}  # columns of a row, on average
_ENOUGH = 0.97  # a share that no other order need try to beat
_JUDGED = 1 << 16  # connections that are looked at to judge one order
_SAMPLED = 64  # rows, and columns of each, that are looked at to guess an order
_COMMON = 0.3  # of the gaps between columns are as wide as a stride that is tried
_MARKS = 6  # columns in which rows that are taken for equal agree
_GOLDEN = 0.6180339887  # its multiples spread the marks so unevenly that copies within a row do not fool them
_LIMIT = _BEYOND = 1 << 31
_NO_BOUNDS: Longs = np.empty(0, np.int64)
_NO_INTS: Ints = np.empty(0, np.int32)


def plan_panels(indptr: Ints, indices: Ints, permutation: Ints | None = None) -> Ints | None:
    """Group the rows of a compressed sparse matrix into panels of four that share most of their columns.

    Parameters
    ----------
    indptr, indices : ndarray of int32, shapes (rows + 1,) and (nnz,)
        The matrix, canonical. It is not checked.
    permutation : ndarray of int32, shape (nnz,), optional
        Connection k has the value ``values[permutation[k]]``: for `multiply_panels`, whose rows are outputs while the
        values lie in the order of the inputs. `gradients_panels` wants a plan without one.

    Returns
    -------
    ndarray of int32, or None
        What the kernels need to know of the columns, and of the permutation: about 3 bytes a connection with one and 1
        byte without, where all is shared. None where no order that is tried lets rows share enough, or rows are too
        short for `gradients_panels` to pay: `multiply` and `gradients` are as fast then.

    Notes
    -----
    Tried are the given order; equal rows side by side; rows that lie as far apart as most neighbouring columns of a
    row, since circulants and RadiX-Nets repeat themselves there; and, where rows are narrow, the order of their first
    columns. A sample of panels judges each, so that a matrix without structure costs little more than one look at it.
    The panels of the best order are then counted in full. Nothing is drawn at random.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> indptr, indices = np.arange(0, 10, 2, dtype=np.int32), np.array([0, 3] * 4, np.int32)  # 4 rows, columns 0 and 3
    >>> kernels.plan_panels(indptr, indices, np.arange(8, dtype=np.int32)) is None
    False
    >>> kernels.plan_panels(indptr[:5] // 2, np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32)) is None
    True
    """
    rows, nnz = len(indptr) - 1, len(indices)
    places = _NO_INTS if permutation is None else permutation
    panels = -(-rows // MEMBERS)
    size = PLACED * nnz + (MEMBERS + 1) * panels + LOOKAHEAD + 1  # at most
    if nnz == 0 or size >= _LIMIT:
        return None
    judged = min(panels, max(8, _JUDGED * rows // (MEMBERS * nnz)))
    sample = np.linspace(0, panels - 1, judged).astype(np.int64)
    best, best_share, neighbours = None, _SHARED["product" if len(places) else "gradients"], True
    for number, order in enumerate(_orders(indptr, indices)):
        members = np.append(order, [rows] * (MEMBERS - 1))[MEMBERS * sample[:, None] + np.arange(MEMBERS)]
        _, shared, connections = _merge(indptr, indices, places, members, _NO_BOUNDS, _NO_INTS)
        share = MEMBERS * shared / max(connections, 1)
        if share >= best_share:
            best, best_share, neighbours = order, share, number == 0
        if best_share > _ENOUGH:
            break
    if best is None:
        return None
    if not len(places) and nnz < _SHORTEST["neighbours" if neighbours else "apart"] * rows:
        return None
    return _plan(indptr, indices, places, _in_panels(best))


def _orders(indptr: Ints, indices: Ints) -> Iterator[Longs]:
    """Yield orders of the rows in which neighbours may share columns, the likeliest first."""
    natural = np.arange(len(indptr) - 1)
    yield natural
    like = _first_alike(indptr, indices)
    has_twins = MEMBERS * np.count_nonzero(like != natural) > len(natural)
    if has_twins:
        yield _chained(like, 1)
    for stride in _strides(indptr, indices):
        yield _chained(natural, stride)
        if has_twins:
            yield _chained(like, stride)
    first, last = _ends(indptr, indices)
    if 4 * np.median(last - first) < last.max():
        yield np.lexsort((last, first))


def _chained(like: Longs, stride: int) -> Longs:
    """Return rows `stride` apart one after the other, each followed by those that are like it."""
    return np.lexsort((like // stride, like % stride))


def _first_alike(indptr: Ints, indices: Ints) -> Longs:
    """Return for each row the first one that has as many columns and agrees in a few of them."""
    begin, length = indptr[:-1].astype(np.int64), np.diff(indptr).astype(np.int64)
    mark = length.astype(np.uint64)
    for k in range(_MARKS):
        place = np.minimum(begin + (length * (k * _GOLDEN % 1)).astype(np.int64), len(indices) - 1)
        mark = (mark ^ indices[place].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mark ^= mark >> np.uint64(29)
    return _first_equal(mark, np.full(1 << (2 * len(mark)).bit_length(), -1))


def _strides(indptr: Ints, indices: Ints) -> list[int]:
    """Return the gaps above 1 that are common between neighbouring columns of a sample of rows."""
    sample = np.unique(np.linspace(0, len(indptr) - 2, _SAMPLED).astype(np.int64))
    gaps = [np.diff(indices[indptr[row] : indptr[row + 1]][:_SAMPLED]) for row in sample]
    found, counts = np.unique(np.concatenate(gaps), return_counts=True)
    return [int(gap) for gap in found[(found > 1) & (counts > _COMMON * counts.sum())]]


def _ends(indptr: Ints, indices: Ints) -> tuple[Longs, Longs]:
    """Return the first and the last column of each row; a row without any borrows its neighbour's."""
    last = len(indices) - 1
    first, final = (indices[np.clip(place, 0, last)].astype(np.int64) for place in (indptr[:-1], indptr[1:] - 1))
    return first, np.maximum(first, final)


def _in_panels(order: Longs) -> Longs:
    """Cut an order into panels, shape (P, 4), rising in each; those with the first rows come first."""
    members = np.full((-(-len(order) // MEMBERS), MEMBERS), len(order))
    members.ravel()[: len(order)] = order
    members.sort(axis=1)
    return members[np.argsort(members[:, 0], kind="stable")]


def _plan(indptr: Ints, indices: Ints, places: Ints, members: Longs) -> Ints | None:
    """Write the plan, unless the sample of panels promised too much."""
    panels = len(members)
    if int(_ends(indptr, indices)[1].max()) >= _LIMIT >> (MEMBERS + 1):
        return None
    entries = np.empty(len(indices) * (PLACED if len(places) else 1), np.int32)
    bounds = np.zeros(panels + 1, np.int64)
    _, shared, connections = _merge(indptr, indices, places, members, bounds, entries)
    if MEMBERS * shared < _SHARED["product" if len(places) else "gradients"] * connections:
        return None
    head = np.concatenate((members.ravel(), bounds + (MEMBERS + 1) * panels + 1)).astype(np.int32)
    return np.concatenate((head, entries[: bounds[-1]], np.zeros(LOOKAHEAD, np.int32)))


@kernel
def _first_equal(marks: NDArray[np.uint64], table: Longs) -> Longs:
    """Return for each place the first one with the same mark; `table` is a hash table full of -1."""
    first, mask = np.empty(len(marks), np.int64), len(table) - 1
    for k in range(len(marks)):
        slot = np.int64(marks[k] >> np.uint64(32)) & mask
        while table[slot] >= 0 and marks[table[slot]] != marks[k]:
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = k
        first[k] = table[slot]
    return first


@kernel
def _merge(
    indptr: Ints, indices: Ints, places: Ints, members: Longs, bounds: Longs, entries: Ints
) -> tuple[int, int, int]:
    """Return how many entries panels have, how many of them all members share, and the connections.

    Write the entries and where each panel's end, unless those arrays have length 0.
    """
    place, end = np.empty(MEMBERS, np.int64), np.empty(MEMBERS, np.int64)
    written = shared = connections = 0
    size = PLACED if len(places) else 1
    for p in range(len(members)):
        for i in range(MEMBERS):
            row = members[p, i]
            place[i], end[i] = (indptr[row], indptr[row + 1]) if row < len(indptr) - 1 else (0, 0)
            connections += end[i] - place[i]
        while True:
            column = _BEYOND
            for i in range(MEMBERS):
                if place[i] < end[i]:
                    column = min(column, np.int64(indices[place[i]]))
            if column == _BEYOND:
                break
            bits = taken = 0
            first = step = previous = np.int64(0)
            for i in range(MEMBERS + 1):
                has = i < MEMBERS and place[i] < end[i] and indices[place[i]] == column
                value = np.int64(places[place[i]]) if has and size > 1 else np.int64(0)
                uneven = has and taken > 1 and value - previous != step  # an entry knows one distance
                if taken and (uneven or i == MEMBERS):
                    if len(entries):
                        entries[size * written] = column << MEMBERS | bits
                        if size > 1:
                            entries[size * written + 1], entries[size * written + 2] = first, step
                    written += 1
                    shared += taken == MEMBERS
                    bits = taken = 0
                if has:
                    first = value if taken == 0 else first
                    step = value - previous if taken == 1 else (step if taken else np.int64(0))
                    previous = value
                    bits |= 1 << i
                    taken += 1
                    place[i] += 1
        if len(bounds):
            bounds[p + 1] = size * written
    return written, shared, connections
