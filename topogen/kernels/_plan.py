"""How the work of one call is cut. It depends on the shapes alone, never on the threads."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from topogen.kernels._vector import MAX_VECTORS, VECTOR_BYTES

__all__ = ["CACHE_BYTES", "Plan", "samples_per_group"]

CACHE_BYTES = 1 << 20  # what the neurons of a tile may take of the second-level cache
_LARGEST_STRIPE = 64  # rows; a smaller matrix is cut into about so many stripes as keep several threads busy
_STRIPES = 16


class Plan(NamedTuple):
    """Groups of samples, cut into tiles; runs of consecutive tiles; stripes of rows.

    A chunk of work is one stripe passing over one run.
    """

    groups: int
    samples: int  # of a group
    last: int  # samples of the last group that exist; the others are padding
    tile: int
    run: int
    stripe: int

    @classmethod
    def of(cls, groups: int, samples: int, last: int, gathered: int, rows: int, itemsize: int) -> Plan:
        """Plan for `gathered` neurons to be read at random, by so many rows."""
        lanes = VECTOR_BYTES // itemsize
        vectors = -(-samples // lanes)
        width = -(-vectors // -(-vectors // _widest(gathered)))
        together = max(1, CACHE_BYTES // (VECTOR_BYTES * width * max(gathered, 1)))
        stripe = min(_LARGEST_STRIPE, max(1, -(-rows // _STRIPES)))
        return cls(groups, samples, last, width * lanes, together, stripe)


@lru_cache(maxsize=1024)
def samples_per_group(batch: int, neurons: int, itemsize: int) -> int:
    """Return into groups of how many samples a batch is best packed for layers of so many neurons.

    A group is one tile: as wide as the cache allows, but no wider than leaves little padding in the last group.

    Parameters
    ----------
    batch : int
        Samples, at least 0.
    neurons : int
        Of the widest layer, at least 0.
    itemsize : int
        Bytes of a number, 4 or 8.

    Returns
    -------
    int
        From 1 to 6 vectors of 64 bytes.

    Examples
    --------
    >>> from topogen import kernels
    >>> kernels.samples_per_group(256, 1024, 4)  # 4 groups without padding, rather than 3 of 96
    64
    """
    lanes = VECTOR_BYTES // itemsize
    vectors = max(1, -(-batch // lanes))
    widest = min(_widest(neurons), vectors)
    return min(range(widest, (widest - 1) // 2, -1), key=lambda width: -vectors % width) * lanes


def _widest(neurons: int) -> int:
    return min(MAX_VECTORS, max(2, CACHE_BYTES // (VECTOR_BYTES * max(neurons, 1))))
