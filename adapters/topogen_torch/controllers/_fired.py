"""Which places of a layer were ever occupied, one bit a place, and which were at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from topogen_torch._passes import mark
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Places, places_of

__all__ = ["Fired"]


class Fired:
    """The history of a layer's pattern, as far as rates need it."""

    def __init__(self, layer: Patterned) -> None:
        n_in, n_out = layer._stored_sizes
        self.possible = n_in * n_out
        self._ever = np.zeros(-(-self.possible // 8), np.uint8)
        self._first = np.zeros_like(self._ever)
        self.note(places_of(layer))
        self._first[:] = self._ever

    def note(self, places: Places) -> None:
        """Mark the places as occupied once."""
        mark(self._ever, places)

    @property
    def rate(self) -> float:
        """Places that were ever occupied / all places."""
        return _ones(self._ever) / self.possible

    def survival(self, layer: Patterned) -> float:
        """Return the share of the first connections that the layer has now; 1 if there were none."""
        places = places_of(layer)
        begun = _ones(self._first)
        return float(((self._first[places >> 3] & _bit(places)) > 0).sum() / begun) if begun else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return both bit sets."""
        return {"ever": torch.from_numpy(self._ever.copy()), "first": torch.from_numpy(self._first.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take both bit sets over."""
        self._ever, self._first = state["ever"].numpy().copy(), state["first"].numpy().copy()


def _bit(places: Places) -> np.ndarray:
    return np.left_shift(1, places & 7, dtype=np.uint8, casting="unsafe")


def _ones(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum())
