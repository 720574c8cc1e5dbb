"""Sums of a batch over its samples: the gradient of a bias."""

from __future__ import annotations

import numpy as np

from topogen.kernels._compile import kernel
from topogen.kernels._tiled import Floats

__all__ = ["add_columns", "column_pieces"]

_PIECE = 256  # columns in one chunk of work
_SAMPLES = 64


@kernel
def column_pieces(sums: Floats) -> int:
    """Return the chunks of work that `add_columns` cuts the sums into; none if no sums are wanted."""
    return (len(sums) + _PIECE - 1) // _PIECE


@kernel
def add_columns(x: Floats, batch: int, piece: int, sums: Floats) -> None:
    """``sums[f] = sum_b x[b, f]`` for one piece of the columns.

    Some samples are added up in the dtype, which vectorises; those sums in float64, so that a large batch loses
    nothing.
    """
    features = len(sums)
    begin, end = piece * _PIECE, min(features, (piece + 1) * _PIECE)
    partial, total = np.empty(end - begin, x.dtype), np.zeros(end - begin, np.float64)
    for start in range(0, batch, _SAMPLES):
        partial[:] = 0
        for s in range(start, min(start + _SAMPLES, batch)):
            for f in range(begin, end):
                partial[f - begin] += x[s * features + f]
        total += partial
    sums[begin:end] = total
