"""Rows along which the channel changes from element to element: what their columns have.

v is the address of the constants of a tile's columns: vectors in the order below, `STRIDE` apart,
which is known when loops are compiled, so that one register is enough for all. s and q are the
addresses of a sum for each column, of the type in which elements are computed, with room for whole
vectors; where that is float32, `flush` adds them to others in float64 before they lose digits. As
many rows are done at once as the tuple `rows` has members: what the columns have in common is then
touched once for all. Tensors are given as ``(address, step)``: of the first row, and how many
elements later the next one begins; a residual that there is not as None.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import SIZES, TILE, constant_size, intrinsic, take_back

MEAN, LOW, SCALE, BIAS, A, B, INVSTD = range(7)
VECTORS = 7
STRIDE = TILE + 16  # apart by a power of two they would lie in the same sets of a cache
ONE, FOUR = (0,), (0, 0, 0, 0)


@mapping
def tile(p: Any, start: Any, tag: Any) -> Any:
    """The address of the constants of the tile that begins with column `start`."""
    return p.scratch + constant_size(tag) * (start // TILE * VECTORS * STRIDE)


@mapping
def place(column: Any) -> Any:
    """Where in the scratch memory a column's constants lie, `STRIDE` apart."""
    return column // TILE * VECTORS * STRIDE + column % TILE


@mapping
def flush(s: Any, n: Any, sums: Any, tag: Any) -> None:
    """Add n sums to those in float64, and begin them anew."""
    for j in range(n):
        sums[j] += take_back(s, j, tag)


@inline_mapping
def columns(n: Any, rows: Any, tag: Any) -> Any:
    """How many columns go into a vector, and up to where of n they go two vectors at a time.

    The few rows that are done alone have but the loop under a mask: there is less to compile.
    """
    width = vectors.lanes(tag)
    return width, 0 if len(rows) == 1 else n & (-2 * width)


@inline_mapping
def words(v: Any, j: Any, mask: Any, tag: Any) -> Any:
    """The mean in its two words, scale and bias."""
    return (
        memory.held(v, j, mask, tag),
        memory.held(v, j + LOW * STRIDE, mask, tag),
        memory.held(v, j + SCALE * STRIDE, mask, tag),
        memory.held(v, j + BIAS * STRIDE, mask, tag),
    )


@inline_mapping
def pull(v: Any, j: Any, mask: Any, tag: Any) -> Any:
    """a, b and the inverse standard deviation, or 1 where b has taken it in."""
    return (
        memory.held(v, j + A * STRIDE, mask, tag),
        memory.held(v, j + B * STRIDE, mask, tag),
        memory.held(v, j + INVSTD * STRIDE, mask, tag),
    )


@inline_mapping
def row(of: Any, k: Any) -> Any:
    """How many elements later the k-th row begins."""
    return 0 if of is None else k * of[1]


@inline_mapping
def start(of: Any) -> Any:
    """The address of the first row, or None."""
    return None if of is None else of[0]


@inline_mapping
def put(y: Any, j: Any, k: Any, value: Any, mask: Any, streams: Any, tag: Any) -> None:
    """Write a vector into the k-th row."""
    memory.put(y[0], j + row(y, k), value, mask, streams, tag)


@intrinsic
def group(typing: Any, of: Any, k: Any, rows: Any, tag: Any) -> Any:
    """The k-th of groups of rows of a tensor; None of None."""
    size = ir.Constant(ir.IntType(64), len(rows) * SIZES[tag])

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if of == types.none:
            return context.get_dummy_value()
        address, step = cgutils.unpack_tuple(builder, arguments[0])
        on = builder.mul(builder.mul(arguments[1], step), size)
        return context.make_tuple(builder, of, [builder.add(address, on), step])

    return of(of, k, rows, tag), generate
