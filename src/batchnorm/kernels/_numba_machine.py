"""What compiled code asks of the machine: cache lines, shared counters, C functions, the stack."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from batchnorm.kernels._numba_memory import TILE, TILES, intrinsic
from batchnorm.kernels._processor import has

_I32, _I64, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.DoubleType()
READ = [ir.Constant(_I32, value) for value in (0, 3, 1)]  # to read, in all caches, data
WRITE = [ir.Constant(_I32, value) for value in (1, 3, 1)]  # to write


def prefetch_line(builder: Any, address: Any, hints: list[Any] = READ) -> None:
    """Emit a request for the cache line at an address."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, *hints])


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line at `address`, which need not be ours."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch_line(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def prefetch_own(typing: Any, address: Any) -> Any:
    """As `prefetch`, of a line that will be written."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch_line(builder, arguments[0], WRITE)
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def fence(typing: Any) -> Any:
    """Make what was streamed visible to other threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def count_up(typing: Any, address: Any, more: Any) -> Any:
    """Read the counter at `address` and add to it, as one step among threads.

    Who sees the new count also sees what was written before.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "acq_rel")

    return types.intp(types.intp, types.intp), generate


@intrinsic
def counted(typing: Any, address: Any) -> Any:
    """The counter at `address`, to which other threads may add."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8, typ=_I64)

    return types.intp(types.intp), generate


@intrinsic
def call_int(typing: Any, address: Any) -> Any:
    """Call the C function ``int f(void)`` at `address`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I32, [])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.sext(builder.call(function, []), _I64)

    return types.intp(types.intp), generate


@intrinsic
def call_advise(typing: Any, address: Any, start: Any, size: Any, advice: Any) -> Any:
    """Call the C function ``int f(void *, size_t, int)`` at `address`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(_I32, [pointer, _I64, _I32])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        start = builder.inttoptr(arguments[1], pointer)
        given = [start, arguments[2], builder.trunc(arguments[3], _I32)]
        return builder.sext(builder.call(function, given), _I64)

    return types.intp(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def room(typing: Any) -> Any:
    """Memory for `TILES` times `TILE` float64 on the stack of the caller."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        space = cgutils.alloca_once(builder, _DOUBLE, size=TILES * TILE)
        space.align = 64  # a vector across two cache lines costs two accesses
        return builder.bitcast(space, ir.IntType(8).as_pointer())

    return types.voidptr(), generate


@intrinsic
def lay_stack(typing: Any) -> Any:
    """Let the calling function lay vectors that find no register where they end with a cache line.

    Otherwise the stack begins at any multiple of 16, by how long the environment is among others;
    loops that put sums aside took up to 1.4 times as long where those lay across two lines. To be
    called by each function that others are inlined into: of those LLVM forgets this.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not has("avx512f"):  # with 32 registers there is no need
            set.add(builder.function.attributes, '"stackrealign"')  # none that llvmlite knows
        return context.get_dummy_value()

    return types.void(), generate
