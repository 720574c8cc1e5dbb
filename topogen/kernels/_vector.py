# pyright: basic
# numba and llvmlite carry no types.
"""Vector instructions that numba's own loops do not reach, as intrinsics that emit LLVM's vector IR.

A plain numba loop over the batch keeps its running sums in memory. Here they are LLVM values: they stay in registers
for a whole row of connections, and LLVM maps the 64-byte vectors onto whatever the processor has (one AVX-512
register, two of AVX2, four of NEON).

Legend. A *vector* holds `lanes` samples of one neuron, 64 bytes: 16 of float32 or 8 of float64. A *tile* is 1 to
`MAX_VECTORS` vectors. Sample b of neuron j of a tile lies at ``base + j * stride + b``; the last vector of a tile has
`tail` samples, 1 to `lanes`, and nothing beyond them is read or written. A *packed* array holds tiles one after the
other, each as wide as its stride, without tails. All arrays are flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "MAX_VECTORS",
    "VECTOR_BYTES",
    "emitted",
    "gradients_by",
    "row_gradients",
    "row_product",
    "row_sum",
    "transpose",
]

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

    def mask(self, count: Any) -> Any:
        """Return the mask of the first `count` lanes."""
        numbers = ir.Constant(ir.VectorType(_I32, self.lanes), list(range(self.lanes)))
        limit = self.splat(self.builder.trunc(count, _I32), ir.VectorType(_I32, self.lanes))
        return self.builder.icmp_signed("<", numbers, limit)

    def load_masked(self, pointer: Any, offset: Any, mask: Any) -> Any:
        """Load a vector, 0 wherever the mask is not set; memory there is not touched."""
        address = self.builder.bitcast(self.builder.gep(pointer, [offset]), self.vector.as_pointer())
        arguments = [address, ir.Constant(_I32, self.bits // 8), mask, self.zero()]
        return self._call(f"llvm.masked.load.v{self.lanes}f{self.bits}.p0", self.vector, arguments)

    def store_masked(self, value: Any, pointer: Any, offset: Any, mask: Any) -> None:
        address = self.builder.bitcast(self.builder.gep(pointer, [offset]), self.vector.as_pointer())
        arguments = [value, address, ir.Constant(_I32, self.bits // 8), mask]
        self._call(f"llvm.masked.store.v{self.lanes}f{self.bits}.p0", ir.VoidType(), arguments)

    def load_tile(self, pointer: Any, offset: Any, count: int, mask: Any) -> list[Any]:
        """Load the vectors of one neuron; `mask` is for the last of them, None if it is full."""
        places = [self.builder.add(offset, _i64(j * self.lanes)) for j in range(count)]
        vectors = [self.load(pointer, place) for place in places[:-1]]
        last = self.load(pointer, places[-1]) if mask is None else self.load_masked(pointer, places[-1], mask)
        return [*vectors, last]

    def store_tile(self, vectors: Sequence[Any], pointer: Any, mask: Any) -> None:
        for j, vector in enumerate(vectors):
            place = _i64(j * self.lanes)
            if mask is None or j < len(vectors) - 1:
                self.store(vector, pointer, place)
            else:
                self.store_masked(vector, pointer, place, mask)

    def zero(self, count: int | None = None) -> ir.Constant:
        count = self.lanes if count is None else count
        return ir.Constant(ir.VectorType(self.element, count), [0.0] * count)

    def splat(self, scalar: Any, kind: ir.VectorType | None = None) -> Any:
        undefined = ir.Constant(self.vector if kind is None else kind, ir.Undefined)
        return self.shuffle(
            self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0)), undefined, [0] * self.lanes
        )

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return ``a * b + c``, fused if the processor can. llvmlite cannot spell the vector name itself."""
        return self._call(f"llvm.fmuladd.v{self.lanes}f{self.bits}", self.vector, [a, b, c])

    def _call(self, name: str, result: ir.Type, arguments: Sequence[Any]) -> Any:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), arguments)

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

    def each_width(self, vectors: Any, tail: Any) -> Iterator[tuple[int, Any]]:
        """Yield 1 to `MAX_VECTORS`, each with a mask and with None.

        What is emitted meanwhile runs if that is the number of vectors, and the last one ends early or is full.
        """
        full, mask = self.builder.icmp_signed("==", tail, _i64(self.lanes)), self.mask(tail)
        for count in range(1, MAX_VECTORS + 1):
            chosen = self.builder.icmp_signed("==", vectors, _i64(count))
            with self.builder.if_then(chosen), self.builder.if_else(full) as (whole, ragged):
                with whole:
                    yield count, None
                with ragged:
                    yield count, mask


@emitted
def row_product(
    typingctx, out, out_at, start, values, permutation, ordered, gather, indices, begin, end,
    source, base, stride, vectors, tail,
):  # fmt: skip
    """Compute one row of the product, for one tile of samples.

    ``out[out_at + b] = start + sum_k ordered[k] * source[base + indices[k] * stride + b]``, k in [begin, end), where
    `gather` first sets ``ordered[k] = values[permutation[k]]``: the waiting for memory hides behind the arithmetic.
    """

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, out.dtype)
        target = emit.pointer(out, args[0], args[1])
        value_at, place_at, ordered_at = (emit.pointer(signature.args[i], args[i]) for i in (3, 4, 5))
        gathers, index_at = builder.trunc(args[6], ir.IntType(1)), emit.pointer(indices, args[7])
        begin, end, origin, stride = args[8], args[9], emit.pointer(source, args[10], args[11]), args[12]

        def row(count, mask, gathering):
            chains = _PRODUCT_CHAINS[count]

            def one(k, sums):
                slot = builder.gep(ordered_at, [k])
                if gathering:
                    number = builder.load(builder.gep(value_at, [emit.index(place_at, k)]))
                    builder.store(number, slot)
                else:
                    number = builder.load(slot)
                neuron, value = builder.mul(emit.index(index_at, k), stride), emit.splat(number)
                for j, samples in enumerate(emit.load_tile(origin, neuron, count, mask)):
                    yield emit.multiply_add(value, samples, sums[j])

            def many(k, sums):
                for c in range(chains):
                    yield from one(builder.add(k, _i64(c)), sums[c * count :])

            sums = [emit.splat(args[2])] * count + [emit.zero()] * (count * (chains - 1))
            k, sums = emit.loop(begin, end, chains, sums, many)
            _, first = emit.loop(k, end, 1, sums[:count], one)
            total = emit.add_all([first, *(sums[c * count : (c + 1) * count] for c in range(1, chains))])
            emit.store_tile(total, target, mask)

        for count, mask in emit.each_width(args[13], args[14]):
            with builder.if_else(gathers) as (yes, no):
                with yes:
                    row(count, mask, gathering=True)
                with no:
                    row(count, mask, gathering=False)
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    signature = types.void(
        out, i64, out.dtype, values, permutation, ordered, flag, indices, i64, i64, source, i64, i64, i64, i64
    )  # fmt: skip
    return signature, generate


def gradients_by(emitter: type[_Emitter]) -> Callable[..., Any]:
    """Return `row_gradients` of samples that are loaded as the emitter does it."""

    @emitted
    def row_gradients(
        typingctx, dx, dx_at, x, x_at, dvalues, first, need_dx, values, indices, begin, end,
        source, base, stride, vectors, tail,
    ):  # fmt: skip
        """Compute both gradients of one row, for one tile of samples: each loaded vector serves two multiply-adds.

        With ``dy(k, b) = source[base + indices[k] * stride + b]`` and k in [begin, end):
        ``dx[dx_at + b] = sum_k values[k] * dy(k, b)`` where `need_dx`, and
        ``dvalues[k] = sum_b x[x_at + b] * dy(k, b)``, added to what stands there unless this is the `first` tile.
        """

        def generate(context, builder, signature, args):
            emit = emitter(context, builder, dx.dtype)
            dx_to, x_from = emit.pointer(dx, args[0], args[1]), emit.pointer(x, args[2], args[3])
            gradient_at = emit.pointer(dvalues, args[4])
            is_first, wants_dx = (builder.icmp_unsigned("!=", args[i], args[i].type(0)) for i in (5, 6))
            value_at, index_at = emit.pointer(values, args[7]), emit.pointer(indices, args[8])
            begin, end, origin, stride = args[9], args[10], emit.pointer(source, args[11], args[12]), args[13]

            def accumulate(sums, k):
                """Write or add the finished sums of connections k, k + 1, ..."""
                old = builder.select(is_first, emit.zero(sums.type.count), emit.load(gradient_at, k, sums.type.count))
                emit.store(builder.fadd(sums, old), gradient_at, k)

            def both(k, mask, x_samples, dx_sums):
                """One connection: new sums of dx (none if `dx_sums` is empty) and the lanes of its value's gradient."""
                neuron = builder.mul(emit.index(index_at, k), stride)
                value = emit.splat(builder.load(builder.gep(value_at, [k]))) if dx_sums else None
                new_sums, product = [], emit.zero()
                for j, dy in enumerate(emit.load_tile(origin, neuron, len(x_samples), mask)):
                    product = emit.multiply_add(x_samples[j], dy, product) if j else builder.fmul(x_samples[j], dy)
                    if dx_sums:
                        new_sums.append(emit.multiply_add(value, dy, dx_sums[j]))
                return new_sums, product

            def row(count, mask, with_dx):
                group, chains = min(_GRADIENT_GROUP[count], emit.lanes), _GRADIENT_CHAINS[count] if with_dx else 0
                x_samples = emit.load_tile(x_from, _i64(0), count, mask)

                def many(k, sums):
                    sums, products = list(sums), []
                    for g in range(group):
                        chain = slice(g % chains * count, (g % chains + 1) * count) if with_dx else slice(0)
                        sums[chain], product = both(builder.add(k, _i64(g)), mask, x_samples, sums[chain])
                        products.append(product)
                    accumulate(emit.lane_sums(products), k)
                    return sums

                def one(k, sums):
                    sums, product = both(k, mask, x_samples, sums)
                    accumulate(emit.lane_sums([product]), k)
                    return sums

                k, sums = emit.loop(begin, end, group, [emit.zero()] * (count * chains), many)
                _, tail = emit.loop(k, end, 1, sums[:count], one)
                if with_dx:
                    total = emit.add_all([tail, *(sums[c * count : (c + 1) * count] for c in range(1, chains))])
                    emit.store_tile(total, dx_to, mask)

            for count, mask in emit.each_width(args[14], args[15]):
                with builder.if_else(wants_dx) as (yes, no):
                    with yes:
                        row(count, mask, with_dx=True)
                    with no:
                        row(count, mask, with_dx=False)
            return context.get_dummy_value()

        i64, flag = types.int64, types.boolean
        signature = types.void(
            dx, i64, x, i64, dvalues, flag, flag, values, indices, i64, i64, source, i64, i64, i64, i64
        )  # fmt: skip
        return signature, generate

    return row_gradients


row_gradients = gradients_by(_Emitter)


@emitted
def row_sum(typingctx, source, base, vectors, tail):
    """Return the sum of the samples of one neuron, for one tile."""

    def generate(context, builder, signature, args):
        emit = _Emitter(context, builder, source.dtype)
        origin, whole = emit.pointer(source, args[0], args[1]), builder.sub(args[2], _i64(1))
        k, sums = emit.loop(
            _i64(0), whole, 1, [emit.zero()],
            lambda k, sums: [builder.fadd(sums[0], emit.load(origin, builder.mul(k, _i64(emit.lanes))))],
        )  # fmt: skip
        last = emit.load_masked(origin, builder.mul(k, _i64(emit.lanes)), emit.mask(args[3]))
        return builder.extract_element(emit.lane_sums([builder.fadd(sums[0], last)]), ir.Constant(_I32, 0))

    return source.dtype(source, types.int64, types.int64, types.int64), generate


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
