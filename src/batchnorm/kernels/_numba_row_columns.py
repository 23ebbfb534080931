"""Rows along which the channel changes from element to element: what their columns have.

v is the address of the constants of a tile's columns: vectors in the order below, `STRIDE` apart,
which is known when loops are compiled, so that one register is enough for all. s and q are the addresses of a sum for each column, of the type in which
elements are computed, with room for whole vectors; `flush` adds them to others in float64 before
they lose digits. As many rows are done at once as the tuple `rows` has members: what the columns
have in common is then touched once for all. Tensors are given as ``(address, step)``: of the first
row, and how many elements later the next one begins; a residual that there is not as None.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import ask
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import SIZES, TILE, at, constant_size, intrinsic, take_back

MEAN, LOW, SCALE, BIAS, A, B, INVSTD = range(7)
VECTORS = 7
STRIDE = TILE + 16  # apart by a power of two they would lie in the same sets of a cache
ONE, FOUR = (0,), (0, 0, 0, 0)
AHEAD, FURTHER = 48, 128  # vectors, where several tensors are read and where one is


@mapping
def tile(p: Any, start: Any, tag: Any) -> Any:
    """The address of the constants of the tile that begins with column `start`."""
    return p.scratch + constant_size(tag) * (start // TILE * VECTORS * STRIDE)


@mapping
def place(column: Any) -> Any:
    """Where in the scratch memory the first constant of a column lies; the next are STRIDE apart."""
    return column // TILE * VECTORS * STRIDE + column % TILE


@mapping
def flush(s: Any, n: Any, sums: Any, tag: Any) -> None:
    """Add n sums to those in float64, and begin them anew."""
    for j in range(n):
        sums[j] += take_back(s, j, tag)


@inline_mapping
def columns(n: Any, tag: Any) -> Any:
    """How many columns go into a vector, and where of n the last two whole vectors end."""
    width = vectors.lanes(tag)
    return width, n & (-2 * width)


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
    """a, b and the inverse standard deviation."""
    return (
        memory.held(v, j + A * STRIDE, mask, tag),
        memory.held(v, j + B * STRIDE, mask, tag),
        memory.held(v, j + INVSTD * STRIDE, mask, tag),
    )


@inline_mapping
def later(of: Any, n: Any, ahead: Any, on: Any, tag: Any) -> Any:
    """How many elements on the vectors to be asked for lie, in rows of n: `ahead` vectors from here.

    Beyond a row's end they are in rows `on` further. As that, up to which column, and what it is
    from there on; once for a row, as it takes a division. Lines of rows a power of two apart have
    but a few sets of the first cache to lie in: of those asked for long before their turn, one
    would push the other out.
    """
    if of is None:
        return 0, 0, 0
    turns, more = ahead * vectors.lanes(tag) // n, ahead * vectors.lanes(tag) % n
    near = more + turns * on * of[1]
    return near, n - more, near + on * of[1] - n


@inline_mapping
def ask_rows(of: Any, j: Any, later: Any, rows: Any, tag: Any) -> None:
    """Ask for two vectors of each row, as `later` tells."""
    if of is not None:
        near, end, beyond = later
        j += near if j < end else beyond
        for k in range(len(rows)):
            ask(at(of[0], k * of[1], tag), j, tag)


@inline_mapping
def row(of: Any, k: Any) -> Any:
    """How many elements later the k-th row begins."""
    return 0 if of is None else k * of[1]


@inline_mapping
def start(of: Any) -> Any:
    """The address of the first row, or None."""
    return None if of is None else of[0]


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
