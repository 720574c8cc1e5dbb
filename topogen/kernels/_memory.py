# pyright: basic
# numba and llvmlite carry no types.
"""Arrays by address: numba takes half a microsecond to unpack an array that it is given, and nothing for a number."""

from __future__ import annotations

import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils

from topogen.kernels._compile import kernel
from topogen.kernels._tiled import Floats, Ints
from topogen.kernels._vector import emitted

__all__ = ["floats_at", "ints_at"]


@emitted
def _pointer(typingctx, address):
    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@kernel
def floats_at(address: int, length: int, like: Floats) -> Floats:
    """Return the array of `length` numbers at `address`, of the dtype of the array `like`; none at address 0."""
    return carray(_pointer(address), (length if address else 0,), like.dtype)


@kernel
def ints_at(address: int, length: int) -> Ints:
    """Return the array of `length` int32 at `address`; none at address 0."""
    return carray(_pointer(address), (length if address else 0,), np.int32)
