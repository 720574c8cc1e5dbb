"""From (batch, features) to feature-major tiles and back: what a stack of sparse layers does once at each end.

Legend: B = batch, F = features, G = groups, S = samples of a group; the B samples fill the groups in order, and zeros
the end of the last.
"""

from __future__ import annotations

import numpy as np

from topogen.errors import SpecError
from topogen.kernels import launch
from topogen.kernels._arguments import Arguments, address
from topogen.kernels._plan import samples_per_group
from topogen.kernels._tiled import Floats
from topogen.kernels._vector import VECTOR_BYTES

__all__ = ["pack", "samples_per_group", "unpack"]


def pack(x_BF: Floats, samples: int, *, out: Floats | None = None, threads: int = 1) -> Floats:
    """Return ``packed[g, f, s] = x[g * samples + s, f]``, 0 beyond the batch.

    Parameters
    ----------
    x_BF : ndarray, shape (B, F), float32 or float64
        The batch; B may be 0.
    samples : int
        S, the samples of a group: a multiple of 16 for float32, of 8 for float64, as `samples_per_group` returns.
    out : ndarray, shape (ceil(B / S), F, S), optional
        Where to write the result.
    threads : int
        How many threads may take part, at least 1.

    Returns
    -------
    ndarray, shape (ceil(B / S), F, S)
        `out`, or a new array.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together, or `samples` is no positive multiple of 16, or 8 for float64.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> packed = kernels.pack(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 16)
    >>> packed.shape, packed[0, 1, :4].tolist()
    ((1, 2, 16), [2.0, 4.0, 6.0, 0.0])
    """
    batch, features = x_BF.shape
    _check_samples("pack", samples, x_BF.itemsize)
    groups = -(-batch // samples)
    if out is None:
        out = np.empty((groups, features, samples), x_BF.dtype)
    check = Arguments("pack", x_BF, threads)
    x, packed = check.floats("x", x_BF, x_BF.size), check.target("out", out, groups * features * samples)
    launch.move_rows(check.nothing, address(x), batch, features, samples, address(packed), True, threads)
    return out


def unpack(packed_GFS: Floats, batch: int, *, out: Floats | None = None, threads: int = 1) -> Floats:
    """Return ``x[g * S + s, f] = packed[g, f, s]`` for the first `batch` samples: undo `pack`.

    Parameters
    ----------
    packed_GFS : ndarray, shape (ceil(B / S), F, S), float32 or float64
        S is a multiple of 16 for float32, of 8 for float64.
    batch : int
        B, at least 0.
    out : ndarray, shape (B, F), optional
        Where to write the result.
    threads : int
        How many threads may take part, at least 1.

    Returns
    -------
    ndarray, shape (B, F)
        `out`, or a new array.

    Raises
    ------
    SpecError
        If dtypes or shapes do not fit together, or S is no positive multiple of 16, or 8 for float64.

    Examples
    --------
    >>> import numpy as np
    >>> from topogen import kernels
    >>> kernels.unpack(kernels.pack(np.array([[1.0, 2.0], [3.0, 4.0]]), 16), 2)
    array([[1., 2.],
           [3., 4.]])
    """
    _, features, samples = packed_GFS.shape
    _check_samples("unpack", samples, packed_GFS.itemsize)
    if out is None:
        out = np.empty((batch, features), packed_GFS.dtype)
    check = Arguments("unpack", packed_GFS, threads)
    packed = check.floats("packed", packed_GFS, -(-batch // samples) * features * samples)
    x = check.target("out", out, batch * features)
    launch.move_rows(check.nothing, address(x), batch, features, samples, address(packed), False, threads)
    return out


def _check_samples(owner: str, samples: int, itemsize: int) -> None:
    lanes = VECTOR_BYTES // itemsize
    if samples < 1 or samples % lanes:
        nearest = max(lanes, -(-samples // lanes) * lanes)
        raise SpecError(
            f"The 'samples' parameter of {owner} must be a positive multiple of {lanes}, such as {nearest}. "
            f"Got {samples}."
        )
