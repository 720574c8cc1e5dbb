"""Relays: neurons that only pass their input on, so that an edge that skips layers fits the chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen.errors import SpecError

__all__ = ["Relays", "checked_relays"]

Relays = tuple[npt.NDArray[np.int64], ...]


def checked_relays(relays: Any, sizes: Sequence[int], layers: Sequence[sp.csr_array] | None) -> Relays:
    """Return `relays` as one increasing int64 row of neuron indices for each layer of nodes.

    None is no relays at all. A relay passes on one input, so that it must have exactly one incoming connection; that is
    looked up in `layers`, or believed where `layers` is None because they are built on access only.
    """
    if relays is None:
        return tuple(np.empty(0, np.int64) for _ in sizes)
    requirement = f"one row of neuron indices for each of the {len(sizes)} layers of nodes"
    given = checks.row(relays, "relays", "Topology", requirement)
    if len(given) != len(sizes):
        raise SpecError(f"The 'relays' parameter of Topology must be {requirement}. Got {len(given)} rows.")
    rows = tuple(_indices(row, k, n) for k, (row, n) in enumerate(zip(given, sizes, strict=True)))
    if rows[0].size:
        raise SpecError(
            "The 'relays[0]' parameter of Topology must be empty, since an input has nothing to pass on. "
            f"Got {rows[0].size} relays."
        )
    if layers is not None:
        for k, row in enumerate(rows[1:], start=1):
            if row.size:
                _check_fan_in(row, layers[k - 1], k)
    return rows


def _indices(given: Any, k: int, n: int) -> npt.NDArray[np.int64]:
    requirement = f"increasing neuron indices in [0, {n - 1}]"
    try:
        row = np.asarray(given)
    except ValueError:  # ragged
        checks.refuse(f"relays[{k}]", "Topology", requirement, given)
    if row.shape == (0,):
        return np.empty(0, np.int64)
    if row.ndim != 1 or row.dtype.kind not in "iu" or row[0] < 0 or row[-1] >= n or (row[1:] <= row[:-1]).any():
        checks.refuse(f"relays[{k}]", "Topology", requirement, given)
    return row.astype(np.int64)


def _check_fan_in(row: npt.NDArray[np.int64], layer: sp.csr_array, k: int) -> None:
    fan_in = np.bincount(layer.indices, minlength=layer.shape[1])[row]
    wrong = np.flatnonzero(fan_in != 1)
    if wrong.size:
        raise SpecError(
            f"The 'relays[{k}]' parameter of Topology must be neurons with one incoming connection each. "
            f"Got neuron {row[wrong[0]]} with {fan_in[wrong[0]]}."
        )
