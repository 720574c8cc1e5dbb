# pyright: basic
# numba and llvmlite carry no types.
"""Copies of short runs as vector instructions: numba's own loop costs more than a row of a small image."""

from __future__ import annotations

from numba import types

from topogen.kernels._vector import _Emitter, _i64, emitted

__all__ = ["copy_run"]


@emitted
def copy_run(typingctx, out, out_at, source, source_at, count):
    """``out[out_at + i] = source[source_at + i]`` for i in [0, count); nothing beyond is read or written."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target, origin, end = emit.pointer(out, args[0], args[1]), emit.pointer(source, args[2], args[3]), args[4]

        def one_vector(k, _):
            emit.store(emit.load(origin, k), target, k)
            return ()

        k, _ = emit.loop(_i64(0), end, emit.lanes, (), one_vector)
        with builder.if_then(builder.icmp_signed("<", k, end)):
            mask = emit.mask(builder.sub(end, k))
            emit.store_masked(emit.load_masked(origin, k, mask), target, k, mask)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(out, i64, source, i64, i64), generate
