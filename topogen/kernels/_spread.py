# pyright: basic
# numba and llvmlite carry no types.
"""Kernels that run on the threads of an OpenMP runtime, as the compiled code of PyTorch does.

An OpenMP program is compiled into calls of its runtime: ``GOMP_parallel(function, data, threads, flags)`` runs
``function(data)`` in so many threads, the calling one among them, and returns when all have returned. A kernel does the
same here with itself: its arguments are the data.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from topogen.kernels._vector import emitted

__all__ = ["spread"]

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_DATA = ir.IntType(8).as_pointer()
_OWN = 2  # arguments that numba puts before a kernel's: where the result goes, and where an exception
_HEAD = 3  # of the data: whether a call has returned, what tells a thread its number, and how many there are


@emitted
def spread(typingctx, team):
    """Call the kernel that this stands in once in each thread of `team`; return whether there was anything to call.

    The first argument of the kernel is `team`, and it begins with ``if spread(team): return``: the calls find
    themselves members of the team and go on to the work. One that returns has seen all of it done, so that it does not
    matter if others find no memory; if all do, that is a MemoryError.
    """

    def generate(context, builder, signature, args):
        kernel = builder.function
        carried = kernel.args[_OWN + len(team) :]
        block = ir.LiteralStructType([*[_I64] * _HEAD, *(argument.type for argument in carried)])

        def field(builder, pointer, number):
            return builder.gep(pointer, [_I32(0), _I32(number)])

        def region():
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [_DATA]), f"{kernel.name}.region")
            function.linkage = "internal"
            inside = ir.IRBuilder(function.append_basic_block())
            data = inside.bitcast(function.args[0], block.as_pointer())
            result, exception = (inside.alloca(argument.type.pointee) for argument in kernel.args[:_OWN])
            own_number = inside.call(
                inside.inttoptr(inside.load(field(inside, data, 1)), ir.FunctionType(_I32, []).as_pointer()), []
            )
            member = [_I64(0), inside.sext(own_number, _I64), inside.load(field(inside, data, 2))]
            rest = [inside.load(field(inside, data, _HEAD + i)) for i in range(len(carried))]
            status = inside.call(kernel, [result, exception, *member, *rest], attrs=("noinline",))
            with inside.if_then(inside.icmp_unsigned("==", status, status.type(0))):
                inside.store_atomic(_I64(1), field(inside, data, 0), "monotonic", 8)
            inside.ret_void()
            return function

        runtime, number, threads = cgutils.unpack_tuple(builder, args[0])
        several = builder.icmp_unsigned("!=", runtime, _I64(0))
        with builder.if_then(several):
            data = cgutils.alloca_once(builder, block)
            for i, value in enumerate([_I64(0), number, threads, *carried]):
                builder.store(value, field(builder, data, i))
            inner = region()
            kind = ir.FunctionType(ir.VoidType(), [inner.type, _DATA, _I32, _I32])
            parallel = builder.inttoptr(runtime, kind.as_pointer())
            builder.call(parallel, [inner, builder.bitcast(data, _DATA), builder.trunc(threads, _I32), _I32(0)])
            finished = builder.load(field(builder, data, 0))
            with builder.if_then(builder.icmp_unsigned("==", finished, _I64(0)), likely=False):
                context.call_conv.return_user_exc(builder, MemoryError, ())
        return several

    return types.boolean(team), generate
