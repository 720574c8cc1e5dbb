"""Above which density a sparse layer multiplies densely, from the same values.

What loses first is the forward product: dense matrix code uses each number that it loads for several products, a sparse
row for one. The fused backward pass takes one pass where a dense layer takes two products, and is level with them even
at 95 %, before a dense one has spread the values out and gathered the gradients: it is never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["BREAK_EVEN", "announce", "may_be_dense", "multiplies_densely", "never_dense", "never_dense_now"]

# Measured with tests/benchmarks/bench_break_even.py on one core of a Zen 5 EPYC (AVX-512), torch 2.13 with MKL, random
# patterns, November 2026: 0.54 to 0.66 in float32 and 0.43 to 0.62 in float64, for 1024 and 2048 neurons and 32 to 1024
# samples, with no trend in either.
BREAK_EVEN = 0.6
# Below these the sparse kernel keeps up longer, and BLAS rounds differently with another number of threads.
_LEAST_BATCH = 32
_LEAST_SIZE = 512

_allowed = ContextVar("topogen_dense_allowed", default=True)
_announced = False


def may_be_dense(nnz: int, n_in: int, n_out: int) -> bool:
    """Whether there is a batch for which this layer multiplies densely."""
    return min(n_in, n_out) >= _LEAST_SIZE and nnz > BREAK_EVEN * n_in * n_out


def multiplies_densely(batch: int, nnz: int, n_in: int, n_out: int) -> bool:
    """Whether the layer multiplies this batch densely: a matter of density, shape and batch, never of threads."""
    return _allowed.get() and batch >= _LEAST_BATCH and may_be_dense(nnz, n_in, n_out)


def never_dense_now() -> bool:
    """Whether the caller stands inside `never_dense`."""
    return not _allowed.get()


@contextmanager
def never_dense() -> Generator[None]:
    """Within this context every sparse layer multiplies sparsely, however dense its pattern is.

    Outside of it, a `SparseLinear` of at least 512 inputs and outputs, more than 60 % dense, spreads 128 rows at a time
    out into a dense matrix and multiplies at least 32 samples by that: the same values, gradients and state dict;
    faster; and rounded as BLAS rounds. A full pattern is a dense matrix already, and is multiplied as one in any case.

    Examples
    --------
    >>> import torch, topogen_torch as tt
    >>> layer = tt.SparseLinear(torch.rand(512, 512).numpy() < 0.9)
    >>> with tt.never_dense():
    ...     y = layer(torch.randn(64, 512))
    """
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def announce(nnz: int, n_in: int, n_out: int, rows: int, itemsize: int) -> None:
    """Say, once in a process, that a layer multiplies densely, why, and what it costs."""
    global _announced
    if _announced:
        return
    _announced = True
    logging.getLogger("topogen").warning(
        "SparseLinear (%d x %d, density %.3g) is above its break-even density, %g, and multiplies densely, which is "
        "faster; each call takes %s bytes for %d rows of the matrix. topogen_torch.never_dense() switches it off.",
        n_in, n_out, nnz / (n_in * n_out), BREAK_EVEN, f"{rows * n_out * itemsize:,}", rows,
    )  # fmt: skip
