# pyright: basic
# numba and llvmlite carry no types.
"""Vector instructions that numba's own loops do not reach, as intrinsics that emit LLVM's vector IR.

A plain numba loop over the batch keeps its running sums in memory. Here they are LLVM values: they stay in registers
for a whole row of connections, and LLVM maps the 64-byte vectors onto whatever the processor has (one AVX-512
register, two of AVX2, four of NEON).

Legend. A *vector* holds `lanes` samples of one neuron, 64 bytes: 16 of float32 or 8 of float64. A *tile* is 1 to
`MAX_VECTORS` vectors. A *packed* array holds tiles one after the other, and a tile holds ``width = vectors * lanes``
consecutive samples for each neuron, so that sample b of neuron j lies at ``base + j * width + b``. All arrays are flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["MAX_VECTORS", "VECTOR_BYTES", "emitted", "row_gradients", "row_product", "transpose"]

VECTOR_BYTES = 64
MAX_VECTORS = 6

# A chain of dependent multiply-adds waits for each result: with few vectors in a tile, several sums run side by side.
_PRODUCT_CHAINS = {1: 4, 2: 4, 3: 2, 4: 2, 5: 1, 6: 1}
_GRADIENT_CHAINS = {1: 4, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1}
# Value gradients of so many connections are added up together; bounded by the 32 vector registers.
_GRADIENT_GROUP = {1: 8, 2: 8, 3: 8, 4: 8, 5: 4, 6: 4}

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


def emitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make `function`, which writes IR, callable from a kernel. Its first argument, the typing context, is numba's."""
    return intrinsic(function)


def _i64(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


class _Emitter:
    """Writes vector instructions on elements of one float type."""

    def __init__(self, context: Any, builder: Any, element: types.Float) -> None:
        self.context = context
        self.builder = builder
        self.bits = element.bitwidth
        self.lanes = VECTOR_BYTES * 8 // self.bits
        self.element = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)

    def pointer(self, array_type: types.Array, array: Any, offset: Any = None) -> Any:
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        return data if offset is None else self.builder.gep(data, [offset])

    def index(self, pointer: Any, k: Any) -> Any:
        """Load the int32 at `pointer[k]`, which is never negative, as 64 bits."""
        return self.builder.zext(self.builder.load(self.builder.gep(pointer, [k])), _I64)

    def load(self, pointer: Any, offset: Any, count: int | None = None) -> Any:
        kind = self.vector if count is None else ir.VectorType(self.element, count)
        address = self.builder.bitcast(self.builder.gep(pointer, [offset]), kind.as_pointer())
        loaded = self.builder.load(address)
        loaded.align = self.bits // 8  # numpy promises no more than the element's alignment
        return loaded

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        address = self.builder.bitcast(self.builder.gep(pointer, [offset]), value.type.as_pointer())
        self.builder.store(value, address).align = self.bits // 8

    def zero(self, count: int | None = None) -> ir.Constant:
        count = self.lanes if count is None else count
        return ir.Constant(ir.VectorType(self.element, count), [0.0] * count)

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        return self.shuffle(
            self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0)), undefined, [0] * self.lanes
        )

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return ``a * b + c``, fused if the processor can. llvmlite cannot spell the vector name itself."""
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fmuladd.v{self.lanes}f{self.bits}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), [a, b, c])

    def add_all(self, chains: Sequence[Sequence[Any]]) -> list[Any]:
        total = list(chains[0])
        for chain in chains[1:]:
            total = [self.builder.fadd(a, b) for a, b in zip(total, chain, strict=True)]
        return total

    def lane_sums(self, vectors: Sequence[Any]) -> Any:
        """Return the sum over the lanes of each of 2^m vectors, as one vector of 2^m numbers.

        A binary tree folds two vectors into one at every step, so that one number costs about one shuffle and one
        addition instead of log2(lanes) of each.
        """
        vectors, span = list(vectors), self.lanes  # each vector: partial sums, `span` lanes to a number
        width = self.lanes
        while span > 1:
            half = span // 2
            firsts = [start + lane for start in range(0, width, span) for lane in range(half)]
            if len(vectors) > 1:
                low = [*firsts, *(width + lane for lane in firsts)]
                pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            else:
                low, pairs = firsts, [(vectors[0], vectors[0])]
                width = half * (width // span)
            high = [lane + half for lane in low]
            vectors = [self.builder.fadd(self.shuffle(a, b, low), self.shuffle(a, b, high)) for a, b in pairs]
            span = half
        return vectors[0]

    def loop(self, begin: Any, end: Any, step: int, state: Sequence[Any], body: Callable[..., Iterable[Any]]) -> Any:
        """``for k in range(begin, end - step + 1, step): state = body(k, state)``; return (k, state) afterwards."""
        builder, before = self.builder, self.builder.block
        head, inside, after = (builder.function.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_I64)
        k.add_incoming(begin, before)
        carried = [builder.phi(value.type) for value in state]
        for phi, value in zip(carried, state, strict=True):
            phi.add_incoming(value, before)
        following = builder.add(k, _i64(step))
        builder.cbranch(builder.icmp_signed("<=", following, end), inside, after)
        builder.position_at_end(inside)
        for phi, value in zip(carried, body(k, carried), strict=True):
            phi.add_incoming(value, builder.block)
        k.add_incoming(following, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return k, carried

    def each_width(self, vectors: Any) -> Iterator[int]:
        """Yield 1 to `MAX_VECTORS`; what is emitted meanwhile runs if that is the number of vectors."""
        for count in range(1, MAX_VECTORS + 1):
            with self.builder.if_then(self.builder.icmp_signed("==", vectors, _i64(count))):
                yield count


@emitted
def row_product(
    typingctx, out, out_at, start, values, permutation, ordered, gather, indices, begin, end, packed, base, vectors
):
    """Compute one row of the product, for one tile of samples.

    ``out[out_at + b] = start + sum_k ordered[k] * packed[base + indices[k] * width + b]``, k in [begin, end), where
    `gather` first sets ``ordered[k] = values[permutation[k]]``: the waiting for memory hides behind the arithmetic.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target = emit.pointer(out, args[0], args[1])
        value_at, place_at, ordered_at = (emit.pointer(signature.args[i], args[i]) for i in (3, 4, 5))
        gathers, index_at = builder.trunc(args[6], ir.IntType(1)), emit.pointer(indices, args[7])
        begin, end, source = args[8], args[9], emit.pointer(packed, args[10], args[11])

        def row(count, gathering):
            chains = _PRODUCT_CHAINS[count]

            def one(k, sums):
                slot = builder.gep(ordered_at, [k])
                if gathering:
                    number = builder.load(builder.gep(value_at, [emit.index(place_at, k)]))
                    builder.store(number, slot)
                else:
                    number = builder.load(slot)
                neuron, value = builder.mul(emit.index(index_at, k), _i64(count * emit.lanes)), emit.splat(number)
                for j in range(count):
                    samples = emit.load(source, builder.add(neuron, _i64(j * emit.lanes)))
                    yield emit.multiply_add(value, samples, sums[j])

            def many(k, sums):
                for c in range(chains):
                    yield from one(builder.add(k, _i64(c)), sums[c * count :])

            sums = [emit.splat(args[2])] * count + [emit.zero()] * (count * (chains - 1))
            k, sums = emit.loop(begin, end, chains, sums, many)
            _, first = emit.loop(k, end, 1, sums[:count], one)
            total = emit.add_all([first, *(sums[c * count : (c + 1) * count] for c in range(1, chains))])
            for j, vector in enumerate(total):
                emit.store(vector, target, _i64(j * emit.lanes))

        for count in emit.each_width(args[12]):
            with builder.if_else(gathers) as (yes, no):
                with yes:
                    row(count, gathering=True)
                with no:
                    row(count, gathering=False)
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    signature = types.void(
        out, i64, out.dtype, values, permutation, ordered, flag, indices, i64, i64, packed, i64, i64
    )  # fmt: skip
    return signature, generate


@emitted
def row_gradients(
    typingctx, dx, dx_at, x, x_at, dvalues, first, need_dx, values, indices, begin, end, packed, base, vectors
):
    """Compute both gradients of one row, for one tile of samples: each loaded vector serves two multiply-adds.

    With ``dy(k, b) = packed[base + indices[k] * width + b]`` and k in [begin, end):
    ``dx[dx_at + b] = sum_k values[k] * dy(k, b)`` where `need_dx`, and
    ``dvalues[k] = sum_b x[x_at + b] * dy(k, b)``, added to what stands there unless this is the `first` tile.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, dx.dtype)
        dx_to, x_from = emit.pointer(dx, args[0], args[1]), emit.pointer(x, args[2], args[3])
        gradient_at = emit.pointer(dvalues, args[4])
        is_first, wants_dx = (builder.icmp_unsigned("!=", args[i], args[i].type(0)) for i in (5, 6))
        value_at, index_at = emit.pointer(values, args[7]), emit.pointer(indices, args[8])
        begin, end, source = args[9], args[10], emit.pointer(packed, args[11], args[12])

        def accumulate(sums, k):
            """Write or add the finished sums of connections k, k + 1, ..."""
            old = builder.select(is_first, emit.zero(sums.type.count), emit.load(gradient_at, k, sums.type.count))
            emit.store(builder.fadd(sums, old), gradient_at, k)

        def both(k, count, x_samples, dx_sums):
            """One connection: new sums of dx (none if `dx_sums` is None) and the lanes of its value's gradient."""
            neuron = builder.mul(emit.index(index_at, k), _i64(count * emit.lanes))
            value = emit.splat(builder.load(builder.gep(value_at, [k]))) if dx_sums else None
            new_sums, product = [], emit.zero()
            for j in range(count):
                dy = emit.load(source, builder.add(neuron, _i64(j * emit.lanes)))
                product = emit.multiply_add(x_samples[j], dy, product) if j else builder.fmul(x_samples[j], dy)
                if dx_sums:
                    new_sums.append(emit.multiply_add(value, dy, dx_sums[j]))
            return new_sums, product

        def row(count, with_dx):
            group, chains = min(_GRADIENT_GROUP[count], emit.lanes), _GRADIENT_CHAINS[count] if with_dx else 0
            x_samples = [emit.load(x_from, _i64(j * emit.lanes)) for j in range(count)]

            def many(k, sums):
                sums, products = list(sums), []
                for g in range(group):
                    chain = slice(g % chains * count, (g % chains + 1) * count) if with_dx else slice(0)
                    sums[chain], product = both(builder.add(k, _i64(g)), count, x_samples, sums[chain])
                    products.append(product)
                accumulate(emit.lane_sums(products), k)
                return sums

            def one(k, sums):
                sums, product = both(k, count, x_samples, sums)
                accumulate(emit.lane_sums([product]), k)
                return sums

            k, sums = emit.loop(begin, end, group, [emit.zero()] * (count * chains), many)
            _, tail = emit.loop(k, end, 1, sums[:count], one)
            if with_dx:
                total = emit.add_all([tail, *(sums[c * count : (c + 1) * count] for c in range(1, chains))])
                for j, vector in enumerate(total):
                    emit.store(vector, dx_to, _i64(j * emit.lanes))

        for count in emit.each_width(args[13]):
            with builder.if_else(wants_dx) as (yes, no):
                with yes:
                    row(count, with_dx=True)
                with no:
                    row(count, with_dx=False)
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    signature = types.void(dx, i64, x, i64, dvalues, flag, flag, values, indices, i64, i64, packed, i64, i64)
    return signature, generate


@emitted
def transpose(typingctx, out, out_at, out_stride, source, source_at, source_stride):
    """Transpose a square of `lanes` rows of `lanes` elements: ``out[j, i] = source[i, j]``, rows `stride` apart."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        lanes = range(emit.lanes)
        target, origin = emit.pointer(out, args[0], args[1]), emit.pointer(source, args[3], args[4])
        rows = [emit.load(origin, builder.mul(args[5], _i64(i))) for i in lanes]
        step = 1
        while step < emit.lanes:  # swap the off-diagonal quarters of every 2 step x 2 step square
            upper = [emit.lanes + j - step if j & step else j for j in lanes]
            lower = [emit.lanes + j if j & step else j + step for j in lanes]
            for i in lanes:
                if not i & step:
                    a, b = rows[i], rows[i + step]
                    rows[i], rows[i + step] = emit.shuffle(a, b, upper), emit.shuffle(a, b, lower)
            step *= 2
        for j in lanes:
            emit.store(rows[j], target, builder.mul(args[2], _i64(j)))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(out, i64, i64, source, i64, i64), generate
