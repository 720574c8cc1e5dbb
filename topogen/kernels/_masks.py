# pyright: basic
# numba and llvmlite carry no types.
"""Words as masks of 64 places: which of 64 numbers are large, and where a word has its lowest bit."""

from __future__ import annotations

from llvmlite import ir
from numba import types

from topogen.kernels._vector import _I64, _Emitter, _i64, emitted

__all__ = ["WORD", "large", "lowest_bit"]

WORD = 64


@emitted
def large(typingctx, numbers, start, bound):
    """Return the mask of those of ``numbers[start : start + 64]`` whose absolute value is above `bound`; NaN is."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, numbers.dtype)
        pointer, limit = emit.pointer(numbers, args[0], args[1]), emit.splat(args[2])
        word = _i64(0)
        for lane in range(0, WORD, emit.lanes):
            vector = emit.load(pointer, _i64(lane))
            size = emit._call(f"llvm.fabs.v{emit.lanes}f{emit.bits}", emit.vector, [vector])
            bits = builder.bitcast(builder.fcmp_unordered(">", size, limit), ir.IntType(emit.lanes))
            word = builder.or_(word, builder.shl(builder.zext(bits, _I64), _i64(lane)))
        return word

    return types.uint64(numbers, types.int64, numbers.dtype), generate


@emitted
def lowest_bit(typingctx, word):
    """Return the number of the lowest bit that is set in a word; one is."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate
