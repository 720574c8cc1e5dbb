"""Edges added to a symmetric layer one by one, where there are fewest: what published block layouts call extra."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen.specs._patterns import pattern_of

__all__ = ["checked_extra", "with_extra_edges"]


def checked_extra(extra: Any, owner: str, n: int, connections: int) -> int:
    """Return `extra`, an int that a symmetric layer of n neurons and `connections`, loops among them, has room for."""
    return checks.integer(extra, "extra", f"{owner} (n = {n})", low=0, high=(n * n - connections) // 2)


def with_extra_edges(pattern: sp.csr_array, extra: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a symmetric pattern with as many edges more.

    One after the other, a neuron with the fewest connections, any of these alike, is joined to any neuron, all alike,
    that it is not joined to. O(n) time for each, and O(nnz log nnz) for all.
    """
    if not extra:
        return pattern
    n, _ = pattern.shape
    degrees = np.diff(pattern.indptr)
    added: dict[int, list[int]] = {}
    for _ in range(extra):
        fewest = np.flatnonzero(degrees == degrees.min())
        i = int(fewest[rng.integers(fewest.size)])
        free = np.ones(n, np.bool_)
        free[pattern.indices[pattern.indptr[i] : pattern.indptr[i + 1]]] = False
        free[added.get(i, [])] = False
        others = np.flatnonzero(free)
        j = int(others[rng.integers(others.size)])
        for one, other in ((i, j), (j, i)):
            added.setdefault(one, []).append(other)
            degrees[one] += 1
    old = np.repeat(np.arange(n), np.diff(pattern.indptr)) * n + pattern.indices
    new = [i * n + j for i, row in added.items() for j in row]
    keys = np.sort(np.concatenate([old, np.array(new)]))
    return pattern_of(np.searchsorted(keys, np.arange(n + 1) * n), keys % n, (n, n))
