# pyright: basic
# numba and llvmlite carry no types.
"""Vector instructions for a panel: four rows of a sparse matrix that share most of their columns.

The row kernels of `topogen.kernels._vector` load every vector of samples for one row alone and wait for the cache.
Here one load serves several rows, and the running sums of all of them stay in registers. Nothing is padded: a row takes
no part in a column where it has no connection, so that no infinity spreads.

Legend. The four rows are the panel's *members*. Its columns rise; a *code* is an int32 that holds a column, shifted by
`MEMBERS` bits, and one bit for each member that has a connection there. *Spaced* data has an empty place behind every
``2**spacing`` neurons, so that neuron j lies at place ``j + (j >> spacing)``; 63 means none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from topogen.kernels._vector import _I32, _I64, MAX_VECTORS, _Emitter, _i64, emitted

__all__ = ["LOOKAHEAD", "MEMBERS", "PLACED", "panel_gradients", "panel_product"]

MEMBERS = 4
PLACED = 3  # numbers of an entry that says where values lie: code, place of the first, distance to the next member's
_AHEAD = 16  # entries from the one whose values are asked for to the one that is computed
LOOKAHEAD = PLACED * (_AHEAD + 1)  # numbers that may be read beyond the last entry
_PAIR = 2  # members whose samples, gradients and products fit into the registers together
_GROUP = {16: 4, 8: 2}  # columns whose value gradients are added up together, by lanes


class _PanelEmitter(_Emitter):
    """Writes what happens at the columns of a panel."""

    def choose(self, condition: Any, yes: Callable[[], Iterable[Any]], no: Callable[[], Iterable[Any]]) -> list[Any]:
        """Return what `yes` returns where the condition holds, otherwise what `no` does; only one of them runs."""
        ends = []
        with self.builder.if_else(condition) as branches:
            for branch, body in zip(branches, (yes, no), strict=True):
                with branch:
                    values = list(body())
                    ends.append((values, self.builder.block))
        (ours, here), (theirs, there) = ends
        return [self._join([(a, here), (b, there)]) for a, b in zip(ours, theirs, strict=True)]

    def _join(self, incoming: Sequence[tuple[Any, Any]]) -> Any:
        phi = self.builder.phi(incoming[0][0].type)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def walk(self, begin: Any, end: Any, state: Sequence[Any], body: Callable[..., Sequence[Any]]) -> list[Any]:
        """``while k < end: k, *state = body(k, state)``; return the state afterwards."""
        builder, before = self.builder, self.builder.block
        head, inside, after = (builder.function.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        carried = [self._join([(value, before)]) for value in (begin, *state)]
        builder.cbranch(builder.icmp_signed("<", carried[0], end), inside, after)
        builder.position_at_end(inside)
        for phi, value in zip(carried, body(carried[0], carried[1:]), strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return carried[1:]

    def has_all(self, code: Any, bits: Any) -> Any:
        return self.builder.icmp_unsigned("==", self.builder.and_(code, bits), bits)

    def place(self, code: Any, stride: Any, spacing: Any) -> Any:
        """Return where the samples of a code's column begin."""
        column = self.builder.lshr(code, _i64(MEMBERS))
        return self.builder.mul(self.builder.add(column, self.builder.lshr(column, spacing)), stride)

    def value(self, values: Any, place: Any) -> Any:
        return self.splat(self.builder.load(self.builder.gep(values, [place])))

    def prefetch(self, pointer: Any, offset: Any) -> None:
        """Ask for a cache line that will be read soon; it may be any address."""
        address = self.builder.gep(pointer, [offset])
        self._call("llvm.prefetch.p0", ir.VoidType(), [address, *(ir.Constant(_I32, flag) for flag in (0, 3, 1))])

    def present(self, vector: Any, mask: Any) -> Any:
        """Return `vector` with 0 wherever the mask is not set, whatever stood there."""
        return self.builder.select(mask, vector, self.zero())

    def fold(self, a: Any, b: Any, span: int) -> Any:
        """Halve the `span` lanes that each number is spread over: those of `a`, then, unless it is None, of `b`."""
        low = [start + lane for start in range(0, a.type.count, span) for lane in range(span // 2)]
        low += [] if b is None else [a.type.count + lane for lane in low]
        high = [lane + span // 2 for lane in low]
        b = a if b is None else b
        return self.builder.fadd(self.shuffle(a, b, low), self.shuffle(a, b, high))

    def widths(self, vectors: Any) -> Iterator[int]:
        """Yield 1 to `MAX_VECTORS`; what is emitted meanwhile runs if that is the number of vectors."""
        for count in range(1, MAX_VECTORS + 1):
            with self.builder.if_then(self.builder.icmp_signed("==", vectors, _i64(count))):
                yield count


@emitted
def panel_product(
    typingctx, y, rows_at, initial, values, plan, entries_at, end, source, base, stride, spacing, vectors
):  # fmt: skip
    """Compute the members of one panel, for one tile of samples, whole vectors of them.

    The entries are ``plan[entries_at:end]``. The sums of member i begin with ``initial[i]`` and are written to `y` from
    ``rows_at[i]`` on, unless that is negative.
    """

    def generate(context, builder, signature, args):
        emit = _PanelEmitter(context, builder, y.dtype)
        target, row_at, initial_at, value_at, plan_at = (
            emit.pointer(kind, array) for kind, array in zip(signature.args[:5], args[:5], strict=True)
        )
        origin, stride, spacing = emit.pointer(source, args[7], args[8]), args[9], args[10]

        def panel(count):
            own = [slice(i * count, (i + 1) * count) for i in range(MEMBERS)]

            def entry(k, sums):
                code, first = (emit.index(plan_at, builder.add(k, _i64(part))) for part in range(2))
                step = builder.sext(builder.load(builder.gep(plan_at, [builder.add(k, _i64(2))])), _I64)
                emit.prefetch(value_at, emit.index(plan_at, builder.add(k, _i64(PLACED * _AHEAD + 1))))
                samples = emit.load_tile(origin, emit.place(code, stride, spacing), count, None)

                def advance(i, place):
                    """Return the new sums of member i, which has a connection here."""
                    value = emit.value(value_at, place)
                    return [emit.multiply_add(value, a, total) for a, total in zip(samples, sums[own[i]], strict=True)]

                def every_member():
                    places = [first]
                    for _ in range(MEMBERS - 1):
                        places.append(builder.add(places[-1], step))
                    return [total for i, place in enumerate(places) for total in advance(i, place)]

                def some_members():
                    place, new = first, []
                    for i in range(MEMBERS):
                        place, *mine = emit.choose(
                            emit.has_all(code, _i64(1 << i)),
                            lambda i=i, place=place: [builder.add(place, step), *advance(i, place)],
                            lambda i=i, place=place: [place, *sums[own[i]]],
                        )
                        new += mine
                    return new

                return emit.choose(emit.has_all(code, _i64((1 << MEMBERS) - 1)), every_member, some_members)

            sums = [emit.value(initial_at, _i64(i)) for i in range(MEMBERS) for _ in range(count)]
            _, sums = emit.loop(args[5], args[6], PLACED, sums, entry)
            for i in range(MEMBERS):
                row = builder.load(builder.gep(row_at, [_i64(i)]))
                with builder.if_then(builder.icmp_signed(">=", row, _i64(0))):
                    emit.store_tile(sums[own[i]], builder.gep(target, [row]), None)

        for count in emit.widths(args[11]):
            panel(count)
        return context.get_dummy_value()

    i64 = types.int64
    signature = types.void(y, rows_at, initial, values, plan, i64, i64, source, i64, i64, i64, i64)
    return signature, generate


@emitted
def panel_gradients(
    typingctx, dx, need_dx, x, rows_at, values, dvalues, starts, plan, first, codes_at, end,
    source, base, stride, spacing, vectors, tail,
):  # fmt: skip
    """Compute both gradients of two members of a panel, for one tile of samples, of whose last vector `tail` exist.

    One loaded vector serves four multiply-adds. The two are member `first` and the next. The codes are
    ``plan[codes_at:end]``. Member i has its samples of `x` from ``rows_at[i]`` on, and those of `dx` are written there
    where `need_dx`, unless that is negative. Its value gradients are added to what stands from ``dvalues[starts[i]]``
    on, one for each of its columns.
    """

    def generate(context, builder, signature, args):
        emit = _PanelEmitter(context, builder, dx.dtype)
        target, wants_dx = emit.pointer(dx, args[0]), builder.icmp_unsigned("!=", args[1], args[1].type(0))
        origin, row_at, value_at, gradient_at, start_at, plan_at = (
            emit.pointer(kind, array) for kind, array in zip(signature.args[2:8], args[2:8], strict=True)
        )
        codes_at, end, dy_at, stride, spacing = *args[9:11], emit.pointer(source, args[11], args[12]), *args[13:15]
        members = [builder.add(args[8], _i64(i)) for i in range(_PAIR)]
        bits = [builder.shl(_i64(1), member) for member in members]
        both, group, mask = builder.or_(*bits), _GROUP[emit.lanes], emit.mask(args[16])

        def samples_of(pointer, place, count):
            *whole, last = emit.load_tile(pointer, place, count, None)
            return [*whole, emit.present(last, mask)]

        def add(sums, k):
            """Add the finished sums of connections k, k + 1, ... to what stands there."""
            emit.store(builder.fadd(sums, emit.load(gradient_at, k, sums.type.count)), gradient_at, k)

        def panel(count, with_dx):
            # The state: where the next value of each member lies, then its sums of dx.
            width = count if with_dx else 0
            own = [slice(_PAIR + i * width, _PAIR + (i + 1) * width) for i in range(_PAIR)]
            rows = [builder.load(builder.gep(row_at, [member])) for member in members]
            exists = [builder.icmp_signed(">=", row, _i64(0)) for row in rows]
            x_samples = [
                samples_of(origin, builder.select(here, row, _i64(0)), count)
                for here, row in zip(exists, rows, strict=True)
            ]

            def connection(i, place, dy, dx_sums):
                """Return the new sums of dx (none without) and the lanes of the value's gradient."""
                product = builder.fmul(x_samples[i][0], dy[0])
                for a, b in zip(x_samples[i][1:], dy[1:], strict=True):
                    product = emit.multiply_add(a, b, product)
                if not with_dx:
                    return [], product
                value = emit.value(value_at, place)
                return [emit.multiply_add(value, b, total) for b, total in zip(dy, dx_sums, strict=True)], product

            def products(codes, offset, state):
                """Advance the sums of dx over shared columns; return one vector of all their lanes for each member."""
                if len(codes) == 1:
                    dy, found = samples_of(dy_at, emit.place(codes[0], stride, spacing), count), []
                    for i in range(_PAIR):
                        place = builder.add(state[i], _i64(offset))
                        state[own[i]], product = connection(i, place, dy, state[own[i]])
                        found.append(product)
                    return found
                half = len(codes) // 2
                left, right = products(codes[:half], offset, state), products(codes[half:], offset + half, state)
                return [emit.fold(a, b, emit.lanes // half) for a, b in zip(left, right, strict=True)]

            def shared_columns(codes, state):
                new, columns = list(state), len(codes)
                span = emit.lanes // columns
                left, right = products(codes, 0, new)
                total, span = emit.fold(left, right, span), span // 2
                while span > 1:
                    total, span = emit.fold(total, None, span), span // 2
                for i in range(_PAIR):
                    add(emit.shuffle(total, total, range(i * columns, (i + 1) * columns)), state[i])
                    new[i] = builder.add(state[i], _i64(columns))
                return new

            def unshared_column(code, state):
                dy, new = samples_of(dy_at, emit.place(code, stride, spacing), count), list(state)

                def taken(i):
                    sums, product = connection(i, state[i], dy, state[own[i]])
                    add(emit.lane_sums([product]), state[i])
                    return [builder.add(state[i], _i64(1)), *sums]

                for i in range(_PAIR):
                    new[i], *new[own[i]] = emit.choose(
                        emit.has_all(code, bits[i]), lambda i=i: taken(i), lambda i=i: [state[i], *state[own[i]]]
                    )
                return new

            def one_column(code, state):
                return emit.choose(
                    emit.has_all(code, both),
                    lambda: shared_columns([code], state),
                    lambda: unshared_column(code, state),
                )

            def step(k, state):
                codes = [emit.index(plan_at, builder.add(k, _i64(g))) for g in range(group)]
                common = codes[0]
                for code in codes[1:]:
                    common = builder.and_(common, code)
                after = builder.add(k, _i64(group))
                inside = builder.icmp_signed("<=", after, end)
                return emit.choose(
                    builder.and_(emit.has_all(common, both), inside),
                    lambda: [after, *shared_columns(codes, state)],
                    lambda: [builder.add(k, _i64(1)), *one_column(codes[0], state)],
                )

            state = [builder.load(builder.gep(start_at, [member])) for member in members]
            state = emit.walk(codes_at, end, [*state, *[emit.zero()] * (_PAIR * width)], step)
            for i, (here, row) in enumerate(zip(exists, rows, strict=True)):
                if with_dx:
                    with builder.if_then(here):
                        emit.store_tile(state[own[i]], builder.gep(target, [row]), None)

        for count in emit.widths(args[15]):
            with builder.if_else(wants_dx) as (yes, no):
                with yes:
                    panel(count, with_dx=True)
                with no:
                    panel(count, with_dx=False)
        return context.get_dummy_value()

    i64, flag = types.int64, types.boolean
    signature = types.void(
        dx, flag, x, rows_at, values, dvalues, starts, plan, i64, i64, i64, source, i64, i64, i64, i64, i64
    )
    return signature, generate
