# pyright: basic
# numba and llvmlite carry no types.
"""How many floating-point operations the processor can do at all: multiply-adds that never leave the registers."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numba import types
from numpy.typing import DTypeLike, NDArray

from topogen.kernels._arguments import Arguments
from topogen.kernels._atomics import SLOT, claim, wait_until
from topogen.kernels._compile import kernel
from topogen.kernels._openmp import Team
from topogen.kernels._spread import spread
from topogen.kernels._team import run
from topogen.kernels._vector import VECTOR_BYTES, _Emitter, emitted

__all__ = ["fma_peak"]

_CHAINS = (6, 12)  # sums side by side: as many as 16 registers of AVX2 hold, and as AVX-512's latency wants
_ROUNDS = 20_000  # of one chunk, less than a tenth of a millisecond
_CHUNKS = 200  # for each thread: long enough for the system to spread the threads out


def fma_peak(dtype: DTypeLike = np.float32, *, threads: int = 1, repeats: int = 10) -> float:
    """Measure the processor's peak: floating-point operations a second, a fused multiply-add being two.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.
    threads : int
        How many threads take part, at least 1.
    repeats : int
        The best of so many runs of about 20 milliseconds.

    Returns
    -------
    float
        FLOP/s.

    Raises
    ------
    SpecError
        If `dtype` is another type, or `threads` less than 1.

    Notes
    -----
    Other work on the machine lowers what is measured: read it as what was to be had at that moment.

    Examples
    --------
    >>> from topogen import kernels
    >>> kernels.fma_peak(repeats=1) > 1e8
    True
    """
    sums = np.zeros(1, dtype)
    Arguments("fma_peak", sums, threads, name="dtype")
    chunks, best = _CHUNKS * threads, 0.0
    for chains in _CHAINS:
        for repeat in range(-1, repeats):
            start = perf_counter()
            run(_multiply_adds, (sums, chains, chunks, _ROUNDS, np.zeros(2 * SLOT, np.int64)), threads)
            seconds = perf_counter() - start
            if repeat >= 0:  # the first compiles, and wakes the threads
                best = max(best, 2 * chains * (VECTOR_BYTES // sums.itemsize) * _ROUNDS * chunks / seconds)
    return best


@kernel
def _multiply_adds(
    team: Team, sums: NDArray[Any], chains: int, chunks: int, rounds: int, counters: NDArray[np.int64]
) -> None:
    if spread(team):
        return
    while claim(counters, 0) < chunks:
        if chains == _CHAINS[0]:
            _few_chains(sums, rounds)
        else:
            _many_chains(sums, rounds)
        claim(counters, SLOT)
    wait_until(counters, SLOT, chunks)


def _in_registers(chains: int):
    @emitted
    def multiply_adds(typingctx, sums, rounds):
        """Run so many multiply-adds on each of the chains; the result is stored, so that none is left out."""

        def generate(context, builder, signature, args):
            emit = _Emitter(context, builder, sums.dtype)
            scalar = builder.load(emit.pointer(sums, args[0]))
            vector = emit.splat(scalar)

            def one(k, running):
                return [emit.multiply_add(vector, vector, each) for each in running]

            begin = context.get_constant(types.int64, 0)
            _, running = emit.loop(begin, args[1], 1, [vector] * chains, one)
            total = emit.add_all([[each] for each in running])[0]
            first = builder.extract_element(total, context.get_constant(types.int32, 0))
            builder.store(builder.fmul(first, scalar), emit.pointer(sums, args[0]))
            return context.get_dummy_value()

        return types.void(sums, types.int64), generate

    return multiply_adds


_few_chains, _many_chains = (_in_registers(chains) for chains in _CHAINS)
