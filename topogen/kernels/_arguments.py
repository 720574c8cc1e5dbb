"""What compiled code relies on: flat, contiguous, writable arrays of one dtype and of the right length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topogen.errors import SpecError
from topogen.kernels._tiled import Floats, Ints
from topogen.kernels.launch import NOTHING

__all__ = ["NO_INTS", "Arguments", "address"]

_INT32 = np.dtype(np.int32)
NO_INTS: Ints = np.empty(0, np.int32)


class Arguments:
    """Checks the arguments of one call and flattens them.

    An array that is None becomes one of length 0. One that is read-only is copied, since numba would compile every
    kernel once more for its type.
    """

    def __init__(self, owner: str, x: NDArray[Any], threads: int, *, name: str = "x") -> None:
        self.owner = owner
        if x.dtype not in NOTHING:
            raise SpecError(f"The '{name}' parameter of {owner} must be an array of float32 or float64. Got {x.dtype}.")
        self.dtype, self.nothing = x.dtype, NOTHING[x.dtype]
        if threads < 1:
            raise SpecError(f"The 'threads' parameter of {owner} must be an int >= 1. Got {threads}.")

    def floats(self, name: str, array: NDArray[Any] | None, size: int) -> Floats:
        """Return numbers that are read."""
        return self.nothing if array is None else self._flat(name, array, size, self.dtype)

    def target(self, name: str, array: NDArray[Any] | None, size: int) -> Floats:
        """Return an array that is written."""
        if array is not None and not array.flags.writeable:
            raise SpecError(f"The '{name}' parameter of {self.owner} must be writable. Got a read-only array.")
        return self.floats(name, array, size)

    def ints(self, name: str, array: NDArray[Any] | None, size: int) -> Ints:
        """Return indices."""
        return NO_INTS if array is None else self._flat(name, array, size, _INT32)

    def _flat(self, name: str, array: NDArray[Any], size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        flags = array.flags
        if array.dtype != dtype or not flags.c_contiguous:
            kind, got = f"a C-contiguous array of {dtype}", "a strided one" if array.dtype == dtype else array.dtype
            raise SpecError(f"The '{name}' parameter of {self.owner} must be {kind}. Got {got}.")
        if array.size != size:
            raise SpecError(f"The '{name}' parameter of {self.owner} must have {size} elements. Got {array.size}.")
        return array.reshape(-1) if flags.writeable else array.flatten()


def address(array: NDArray[Any]) -> int:
    """Return where the numbers of a contiguous array are, 0 if it has none. The caller keeps the array alive."""
    return array.ctypes.data if array.size else 0
