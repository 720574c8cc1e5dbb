# pyright: basic
# numba and llvmlite carry no types.
"""Counters that several threads share: how they divide work without locks.

Each phase of a kernel is cut into numbered chunks. A thread claims the next number until none is left, so that it does
not matter how many threads take part, when they arrive, or whether one is held up: what a chunk computes depends on
its number alone.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from topogen.kernels._vector import emitted

__all__ = ["SLOT", "claim", "publish", "wait_until"]

SLOT = 8  # int64 counters, each on a cache line of its own
_SPINS = 200

_I64 = ir.IntType(64)
_give_way = types.ExternalFunction("sched_yield", types.int32()) if os.name == "posix" else None


@emitted
def claim(typingctx, counters, slot):
    """Return ``counters[slot]`` and add 1 to it, in one step."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(context.make_array(counters)(context, builder, args[0]).data, [args[1]])
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "acq_rel")

    return types.int64(counters, types.int64), generate


@emitted
def publish(typingctx, counters, slot, value):
    """Set ``counters[slot]``; whoever sees the new value also sees everything that was written before."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(context.make_array(counters)(context, builder, args[0]).data, [args[1]])
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(counters, types.int64, types.int64), generate


@emitted
def _observe(typingctx, counters, slot):
    def generate(context, builder, signature, args):
        pointer = builder.gep(context.make_array(counters)(context, builder, args[0]).data, [args[1]])
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(counters, types.int64), generate


if _give_way is None:

    @register_jitable
    def wait_until(counters: Any, slot: int, value: int) -> None:
        """Wait until ``counters[slot] >= value``, which a thread that is at work will bring about."""
        while _observe(counters, slot) < value:
            pass

else:

    @register_jitable
    def wait_until(counters: Any, slot: int, value: int) -> None:
        """Wait until ``counters[slot] >= value``, which a thread that is at work will bring about."""
        spins = 0
        while _observe(counters, slot) < value:
            spins += 1
            if spins > _SPINS:  # the other thread may be waiting for this very core
                _give_way()
