# pyright: basic
# numba and llvmlite carry no types.
"""Products of small dense blocks as vector instructions, with running sums that stay in registers.

A block is a row-major square of numbers in a flat array: rows = inputs, columns = outputs. Two families, by what lies
side by side in a vector. *Strips*: neighbouring neurons of one sample, as (batch, features) stores them; a strip is 1
to `STRIP` vectors, so many columns of a block at once. *Tiles*: neighbouring samples of one neuron, packed as
`topogen.kernels._vector` says, of 1 to `TILE_VECTORS` vectors; for blocks that do not fill vectors.

Either way several rows of sums are computed together, so that each vector that is loaded serves all of them, and that
there always is a multiply-add to do while others wait for their result. There are 32 vector registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from topogen.kernels._vector import _I32, _Emitter, _i64, emitted

__all__ = [
    "STRIP",
    "TILE_VECTORS",
    "add_outer_products",
    "add_product",
    "add_tile_product",
    "copy_rows",
    "tile_outer_products",
]

STRIP = 4
TILE_VECTORS = 4

# How many rows of sums at once, by the vectors of a row: the most that registers hold first, then what is left over.
_STRIP_ROWS = {1: (16, 4, 1), 2: (8, 2, 1), 3: (8, 2, 1), 4: (6, 2, 1)}
_OUTER_ROWS = {1: (16, 8), 2: (8,), 3: (8,), 4: (4,)}
_TILE_ROWS = {1: (8, 4, 1), 2: (8, 4, 1), 3: (8, 4, 1), 4: (4, 1)}
_SQUARE = (4, 1)
_AHEAD = 16  # blocks: in the order of the outputs each lies somewhere else, and memory takes so long to answer


def _each(builder: Any, value: Any, last: int) -> Iterator[int]:
    """Yield 1 to `last`; what is emitted meanwhile runs if that is the `value`."""
    for count in range(1, last + 1):
        with builder.if_then(builder.icmp_signed("==", value, _i64(count))):
            yield count


def _in_groups(emit: _Emitter, count: Any, sizes: Sequence[int], body: Callable[[Any, int], None]) -> None:
    """``body(first, size)`` for groups of rows that cover [0, count), large ones as long as they fit."""
    first: Any = _i64(0)
    for size in sizes:

        def step(k: Any, state: Any, size: int = size) -> list[Any]:
            body(k, size)
            return []

        first, _ = emit.loop(first, count, size, [], step)


def _write(emit: _Emitter, is_first: Any, totals: Sequence[Any], pointers: Sequence[Any]) -> None:
    """Store the totals, or add them to what stands there, which is not looked at the first time."""
    with emit.builder.if_else(is_first) as (yes, no):
        with yes:
            for total, pointer in zip(totals, pointers, strict=True):
                emit.store(total, pointer, _i64(0))
        with no:
            for total, pointer in zip(totals, pointers, strict=True):
                old = emit.load(pointer, _i64(0), total.type.count)
                emit.store(emit.builder.fadd(old, total), pointer, _i64(0))


def _fetch(emit: _Emitter, pointer: Any, count: Any) -> None:
    """Ask for the cache lines of so many numbers, without waiting for them."""
    builder = emit.builder
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, keep, data = (ir.Constant(_I32, number) for number in (0, 3, 1))

    def line(k: Any, state: Any) -> list[Any]:
        builder.call(fetch, [builder.gep(pointer, [k]), read, keep, data])
        return []

    emit.loop(_i64(0), count, emit.lanes, [], line)


def _grid(emit: _Emitter, pointer: Any, first: Any, stride: Any, rows: int, count: int) -> list[Any]:
    """Return where each vector of some rows of a matrix stands."""
    starts = [emit.builder.mul(emit.builder.add(first, _i64(r)), stride) for r in range(rows)]
    return [
        emit.builder.gep(pointer, [emit.builder.add(start, _i64(c * emit.lanes))])
        for start in starts
        for c in range(count)
    ]


@emitted
def add_product(typingctx, out, out_at, out_stride, x, x_at, x_stride, samples, values, at, stride, depth, vectors):
    """``out[s, :] += sum_i x[s, i] * values[i, :]`` over one strip, for i in [0, depth), a multiple of 4.

    Rows of `out`, `x` and `values` are their strides apart.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target, source, weights = (emit.pointer(signature.args[i], args[i], args[i + 1]) for i in (0, 3, 7))
        out_stride, x_stride, samples, stride, depth = args[2], args[5], args[6], args[9], args[10]

        def group(first, rows, count):
            numbers = [builder.gep(source, [builder.mul(builder.add(first, _i64(r)), x_stride)]) for r in range(rows)]
            places = _grid(emit, target, first, out_stride, rows, count)
            size = len(places)
            chains = 4 if size <= 2 else 2 if size < 8 else 1  # so few sums would wait for each other
            turns = max(chains, 2)

            def some(k, sums):
                sums = list(sums)
                for turn in range(turns):
                    i, chain = builder.add(k, _i64(turn)), turn % chains * size
                    line = builder.mul(i, stride)
                    loaded = [emit.load(weights, builder.add(line, _i64(c * emit.lanes))) for c in range(count)]
                    for r in range(rows):
                        number = emit.splat(builder.load(builder.gep(numbers[r], [i])))
                        for c in range(count):
                            place = chain + r * count + c
                            sums[place] = emit.multiply_add(number, loaded[c], sums[place])
                return sums

            sums = [*(emit.load(place, _i64(0)) for place in places), *[emit.zero()] * (size * (chains - 1))]
            _, sums = emit.loop(_i64(0), depth, turns, sums, some)
            totals = emit.add_all([sums[c * size : (c + 1) * size] for c in range(chains)])
            for total, place in zip(totals, places, strict=True):
                emit.store(total, place, _i64(0))

        for count in _each(builder, args[11], STRIP):
            _in_groups(emit, samples, _STRIP_ROWS[count], lambda first, rows, count=count: group(first, rows, count))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(out, i64, i64, x, i64, i64, i64, values, i64, i64, i64, i64), generate


@emitted
def add_outer_products(
    typingctx, out, out_at, out_stride, first, x, x_at, x_stride, rows, dy, dy_at, dy_stride, samples, vectors
):
    """``out[i, :] = sum_s x[s, i] * dy[s, :]`` over one strip, for i in [0, rows), a multiple of 8.

    Added to what stands there unless these are the `first` samples.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target, source, grads = (emit.pointer(signature.args[i], args[i], args[i + 1]) for i in (0, 4, 8))
        is_first = builder.icmp_unsigned("!=", args[3], args[3].type(0))
        out_stride, x_stride, height, dy_stride, samples = args[2], args[6], args[7], args[10], args[11]

        def group(i, rows, count):
            def one(s, sums):
                numbers = builder.gep(source, [builder.add(builder.mul(s, x_stride), i)])
                line = builder.mul(s, dy_stride)
                loaded = [emit.load(grads, builder.add(line, _i64(c * emit.lanes))) for c in range(count)]
                for r in range(rows):
                    number = emit.splat(builder.load(builder.gep(numbers, [_i64(r)])))
                    for c in range(count):
                        yield emit.multiply_add(number, loaded[c], sums[r * count + c])

            _, sums = emit.loop(_i64(0), samples, 1, [emit.zero()] * (rows * count), one)
            _write(emit, is_first, sums, _grid(emit, target, i, out_stride, rows, count))

        for count in _each(builder, args[12], STRIP):
            _in_groups(emit, height, _OUTER_ROWS[count], lambda first, rows, count=count: group(first, rows, count))
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    return types.void(out, i64, i64, flag, x, i64, i64, i64, dy, i64, i64, i64, i64), generate


@emitted
def copy_rows(typingctx, out, out_at, out_stride, source, source_at, source_stride, rows, vectors):
    """``out[s, :] = source[s, :]`` for so many rows of any number of vectors."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target, origin = (emit.pointer(signature.args[i], args[i], args[i + 1]) for i in (0, 3))

        def row(s, state):
            to, start = builder.mul(s, args[2]), builder.mul(s, args[5])

            def one(c, state):
                place = builder.mul(c, _i64(emit.lanes))
                emit.store(emit.load(origin, builder.add(start, place)), target, builder.add(to, place))
                return []

            emit.loop(_i64(0), args[7], 1, [], one)
            return []

        emit.loop(_i64(0), args[6], 1, [], row)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(out, i64, i64, source, i64, i64, i64, i64), generate


@emitted
def add_tile_product(
    typingctx, out, out_at, values, row_stride, column_stride, block, permutation, places, indices, begin, end,
    packed, base, vectors,
):  # fmt: skip
    """Add one row of blocks to one tile of samples; the sums pass over all its blocks without leaving the registers.

    ``out[out_at + r * width + b] += sum_k sum_i v_k[r * row_stride + i * column_stride] * x_k[i * width + b]`` for r
    and i in [0, block) and k in [begin, end), where x_k are the rows of `packed` from ``base`` and neuron
    ``indices[k] * block`` on, and v_k is the block at ``permutation[k]``, or k if the permutation has 0 `places`.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target, weights = emit.pointer(out, args[0], args[1]), emit.pointer(values, args[2])
        row_stride, column_stride, block = args[3:6]
        place_at, index_at = emit.pointer(permutation, args[6]), emit.pointer(indices, args[8])
        permuted = builder.icmp_unsigned("!=", args[7], args[7].type(0))
        begin, end, source = args[9], args[10], emit.pointer(packed, args[11], args[12])
        area = builder.mul(block, block)

        def group(first, rows, count):
            width = _i64(count * emit.lanes)
            places = _grid(emit, target, first, width, rows, count)

            def one_block(k, sums):
                ahead = builder.add(k, _i64(_AHEAD))
                with builder.if_then(builder.icmp_signed("<", ahead, args[7])):
                    _fetch(emit, builder.gep(weights, [builder.mul(emit.index(place_at, ahead), area)]), area)
                found = emit.index(place_at, builder.select(permuted, k, _i64(0)))
                start = builder.mul(builder.select(permuted, found, k), area)
                numbers = builder.gep(weights, [builder.add(start, builder.mul(first, row_stride))])
                samples = builder.gep(source, [builder.mul(builder.mul(emit.index(index_at, k), block), width)])

                def some(turns):
                    def body(k, sums):
                        sums = list(sums)
                        for turn in range(turns):
                            i = builder.add(k, _i64(turn))
                            line, column = builder.mul(i, width), builder.mul(i, column_stride)
                            loaded = [emit.load(samples, builder.add(line, _i64(c * emit.lanes))) for c in range(count)]
                            for r in range(rows):
                                at = builder.add(column, builder.mul(_i64(r), row_stride))
                                number = emit.splat(builder.load(builder.gep(numbers, [at])))
                                for c in range(count):
                                    place = r * count + c
                                    sums[place] = emit.multiply_add(number, loaded[c], sums[place])
                        return sums

                    return body

                i, sums = emit.loop(_i64(0), block, 4, sums, some(4))
                return emit.loop(i, block, 1, sums, some(1))[1]

            _, sums = emit.loop(begin, end, 1, [emit.load(place, _i64(0)) for place in places], one_block)
            for total, place in zip(sums, places, strict=True):
                emit.store(total, place, _i64(0))

        for count in _each(builder, args[13], TILE_VECTORS):
            _in_groups(emit, block, _TILE_ROWS[count], lambda first, rows, count=count: group(first, rows, count))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(out, i64, values, i64, i64, i64, permutation, i64, indices, i64, i64, packed, i64, i64), generate


@emitted
def tile_outer_products(typingctx, out, out_at, block, first, x, x_at, dy, dy_at, vectors):
    """``out[i, j] = sum_b x[x_at + i * width + b] * dy[dy_at + j * width + b]`` for one block and one tile of samples.

    Added to what stands there unless this is the `first` tile.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target, source, grads = (emit.pointer(signature.args[i], args[i], args[i + 1]) for i in (0, 4, 6))
        block, is_first = args[2], builder.icmp_unsigned("!=", args[3], args[3].type(0))

        def square(i, rows, j, columns, count):
            width = count * emit.lanes

            def vectors(pointer, neuron, neurons, c):
                starts = [builder.mul(builder.add(neuron, _i64(n)), _i64(width)) for n in range(neurons)]
                return [emit.load(pointer, builder.add(start, _i64(c * emit.lanes))) for start in starts]

            sums = []
            for c in range(count):
                pairs = [(a, b) for a in vectors(source, i, rows, c) for b in vectors(grads, j, columns, c)]
                sums = [
                    emit.multiply_add(a, b, sums[place]) if c else builder.fmul(a, b)
                    for place, (a, b) in enumerate(pairs)
                ]
            at_once = min(len(sums), emit.lanes)
            folded = [emit.lane_sums(sums[p : p + at_once]) for p in range(0, len(sums), at_once)]
            totals = [
                emit.shuffle(part, part, range(p, p + columns)) for part in folded for p in range(0, at_once, columns)
            ]
            starts = [builder.add(builder.mul(builder.add(i, _i64(r)), block), j) for r in range(rows)]
            _write(emit, is_first, totals, [builder.gep(target, [start]) for start in starts])

        def squares(count):
            def rows(i, size):
                _in_groups(emit, block, _SQUARE, lambda j, width: square(i, size, j, width, count))

            return rows

        for count in _each(builder, args[8], TILE_VECTORS):
            _in_groups(emit, block, _SQUARE, squares(count))
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    return types.void(out, i64, i64, flag, x, i64, dy, i64, i64), generate
