# pyright: basic
# numba and llvmlite carry no types.
"""Vector instructions on bfloat16 samples, which become float32 in registers.

A bfloat16 is the upper half of a float32. Legend, beside that of `topogen.kernels._vector`: a *pair* holds 32 samples
of one neuron in 64 bytes, 16 words of 32 bits: sample b in the lower half of word b, sample 16 + b in the upper half.
One load, one shift and one mask give two vectors of float32, for half the memory traffic of two loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types

from topogen.kernels._vector import _Emitter, emitted, gradients_by

__all__ = ["MAX_PAIRS", "PAIR", "pack_square", "pair_gradients", "pair_product", "to_short", "write_square"]

PAIR = 32  # samples
MAX_PAIRS = 3
_CHAINS = {2: 4, 4: 2, 6: 1}  # sums that run side by side, for so many vectors
_HALF = 16  # bits
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _widened(builder: Any, short: Any) -> Any:
    """Return the float32 that a bfloat16, given as its 16 bits, stands for."""
    bits = builder.shl(builder.zext(short, _I32), ir.Constant(_I32, _HALF))
    return builder.bitcast(bits, ir.FloatType())


class _PairEmitter(_Emitter):
    """Loads pairs where the other one loads vectors of float32; offsets are in words, and all pairs are full."""

    def load_tile(self, pointer: Any, offset: Any, count: int, mask: Any) -> list[Any]:
        """Return `count` vectors of float32, an even number."""
        builder, words = self.builder, ir.VectorType(_I32, self.lanes)
        shift, upper = (ir.Constant(words, [number] * self.lanes) for number in (_HALF, 0xFFFF0000))
        vectors = []
        for j in range(count // 2):
            address = builder.gep(pointer, [builder.add(offset, ir.Constant(_I64, j * self.lanes))])
            both = builder.load(builder.bitcast(address, words.as_pointer()))
            both.align = 4
            vectors += [builder.bitcast(builder.shl(both, shift), self.vector)]
            vectors += [builder.bitcast(builder.and_(both, upper), self.vector)]
        return vectors

    def each_width(self, vectors: Any, tail: Any) -> Iterator[tuple[int, Any]]:
        """Yield the numbers of vectors that a tile may have, without a mask; see the other one."""
        for count in range(2, 2 * MAX_PAIRS + 1, 2):
            with self.builder.if_then(self.builder.icmp_signed("==", vectors, ir.Constant(_I64, count))):
                yield count, None


pair_gradients = gradients_by(_PairEmitter)


def _shortened(emit: Any, number: Any) -> Any:
    """Return the bfloat16 nearest to a float32, of two the even one; a NaN stays one. Or so for a vector of them."""
    builder, wide = emit.builder, _I32 if number.type == emit.element else ir.VectorType(_I32, emit.lanes)
    narrow = _I16 if wide == _I32 else ir.VectorType(_I16, emit.lanes)

    def constant(value):
        return ir.Constant(wide, value if wide == _I32 else [value] * emit.lanes)

    bits = builder.bitcast(number, wide)
    odd = builder.and_(builder.lshr(bits, constant(_HALF)), constant(1))
    rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
    kept = builder.select(builder.fcmp_unordered("uno", number, number), constant(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(kept, constant(_HALF)), narrow)


def _transposed(emit: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of a square of as many rows as a vector has lanes."""
    step = 1
    while step < emit.lanes:  # swap the off-diagonal quarters of every 2 step x 2 step square
        upper = [emit.lanes + j - step if j & step else j for j in range(emit.lanes)]
        lower = [emit.lanes + j if j & step else j + step for j in range(emit.lanes)]
        for i in range(emit.lanes):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = emit.shuffle(a, b, upper), emit.shuffle(a, b, lower)
        step *= 2
    return rows


@emitted
def to_short(typingctx, number):
    """Return the bfloat16 nearest to a float32, of two the even one, as uint16; a NaN stays one."""

    def generate(context, builder, signature, args):
        return _shortened(_Emitter(context, builder, types.float32), args[0])

    return types.uint16(types.float32), generate


@emitted
def pack_square(typingctx, pairs, pairs_at, pairs_stride, x, x_at, x_stride):
    """Put together pairs of one word: 16 neurons of 32 samples.

    ``pairs[i, b] = x[b, i] + (x[16 + b, i] << 16)`` for i and b in [0, 16), rows `stride` elements apart.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, types.float32)
        target, origin = emit.pointer(pairs, args[0], args[1]), emit.pointer(x, args[3], args[4])
        shorts, words = ir.VectorType(_I16, emit.lanes), ir.VectorType(_I32, emit.lanes)

        def sample(b):
            address = builder.gep(origin, [builder.mul(args[5], ir.Constant(_I64, b))])
            row = builder.load(builder.bitcast(address, shorts.as_pointer()))
            row.align = 2
            return builder.zext(row, words)

        shift = ir.Constant(words, [_HALF] * emit.lanes)
        rows = [builder.or_(sample(b), builder.shl(sample(b + _HALF), shift)) for b in range(_HALF)]
        for i, row in enumerate(_transposed(emit, rows)):
            address = builder.gep(target, [builder.mul(args[2], ir.Constant(_I64, i))])
            builder.store(row, builder.bitcast(address, words.as_pointer())).align = 4
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(pairs, i64, i64, x, i64, i64), generate


@emitted
def write_square(typingctx, y, y_at, y_stride, block, block_at, block_stride):
    """``y[b, i] = block[i, b]``, rounded to bfloat16, for i and b in [0, 16), rows `stride` elements apart."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, types.float32)
        target, origin = emit.pointer(y, args[0], args[1]), emit.pointer(block, args[3], args[4])
        rows = [emit.load(origin, builder.mul(args[5], ir.Constant(_I64, i))) for i in range(_HALF)]
        for b, row in enumerate(_transposed(emit, rows)):
            short = _shortened(emit, row)
            address = builder.gep(target, [builder.mul(args[2], ir.Constant(_I64, b))])
            builder.store(short, builder.bitcast(address, short.type.as_pointer())).align = 2
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(y, i64, i64, block, i64, i64), generate


@emitted
def pair_product(
    typingctx,
    out,
    out_at,
    start,
    values,
    permutation,
    ordered,
    gather,
    indices,
    begin,
    end,
    source,
    base,
    stride,
    pairs,
):
    """Compute one row of the product, for one tile of samples; `topogen.kernels._vector.row_product` says how.

    `values` are bfloat16, as uint16, and `ordered` float32; `source` are the words of pairs, one neuron `stride` words
    behind the other.
    """

    def generate(context, builder, signature, args):
        emit = _PairEmitter(context, builder, types.float32)
        target = emit.pointer(out, args[0], args[1])
        value_at, place_at, ordered_at = (emit.pointer(signature.args[i], args[i]) for i in (3, 4, 5))
        gathers, index_at = builder.trunc(args[6], ir.IntType(1)), emit.pointer(indices, args[7])
        begin, end, origin, stride = args[8], args[9], emit.pointer(source, args[10], args[11]), args[12]

        def row(count, gathering):
            chains = _CHAINS[count]

            def one(k, sums):
                slot = builder.gep(ordered_at, [k])
                if gathering:
                    number = _widened(builder, builder.load(builder.gep(value_at, [emit.index(place_at, k)])))
                    builder.store(number, slot)
                else:
                    number = builder.load(slot)
                neuron, value = builder.mul(emit.index(index_at, k), stride), emit.splat(number)
                for j, samples in enumerate(emit.load_tile(origin, neuron, count, None)):
                    yield emit.multiply_add(value, samples, sums[j])

            def many(k, sums):
                for c in range(chains):
                    yield from one(builder.add(k, ir.Constant(_I64, c)), sums[c * count :])

            sums = [emit.splat(args[2])] * count + [emit.zero()] * (count * (chains - 1))
            k, sums = emit.loop(begin, end, chains, sums, many)
            _, first = emit.loop(k, end, 1, sums[:count], one)
            total = emit.add_all([first, *(sums[c * count : (c + 1) * count] for c in range(1, chains))])
            emit.store_tile(total, target, None)

        for count, _ in emit.each_width(args[13], None):
            with builder.if_else(gathers) as (yes, no):
                with yes:
                    row(count, gathering=True)
                with no:
                    row(count, gathering=False)
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    signature = types.void(
        out, i64, types.float32, values, permutation, ordered, flag, indices, i64, i64, source, i64, i64, i64
    )  # fmt: skip
    return signature, generate
