"""Rows along which the channel changes from element to element: what their columns have.

v is the address of the columns' constants, vectors of `f` values each in the order below, from the
first column's mean on. s and q are the addresses of a sum for each column, of the type in which
elements are computed, with room for whole vectors; `flush` adds them to others in float64 before
they lose digits. As many rows are done at once as the tuple `rows` has members: what the columns
have in common is then touched once for all. Tensors are given as ``(address, step)``: of the first
row, and how many elements later the next one begins; a residual that there is not as None.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import ask
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import at, take_back

MEAN, LOW, SCALE, BIAS, A, B, INVSTD = range(7)
VECTORS = 7
ONE, FOUR = (0,), (0, 0, 0, 0)


@mapping
def flush(s: Any, n: Any, sums: Any, tag: Any) -> None:
    """Add n sums to those in float64, and begin them anew."""
    for j in range(n):
        sums[j] += take_back(s, j, tag)


@inline_mapping
def columns(n: Any, tag: Any) -> Any:
    """How many columns go into a vector, and where the last whole vector of n ends."""
    width = vectors.lanes(tag)
    return width, n & -width


@inline_mapping
def words(v: Any, f: Any, j: Any, mask: Any, tag: Any) -> Any:
    """The mean in its two words, scale and bias."""
    return (
        memory.held(v, j, mask, tag),
        memory.held(v, j + LOW * f, mask, tag),
        memory.held(v, j + SCALE * f, mask, tag),
        memory.held(v, j + BIAS * f, mask, tag),
    )


@inline_mapping
def pull(v: Any, f: Any, j: Any, mask: Any, tag: Any) -> Any:
    """a, b and the inverse standard deviation."""
    return (
        memory.held(v, j + A * f, mask, tag),
        memory.held(v, j + B * f, mask, tag),
        memory.held(v, j + INVSTD * f, mask, tag),
    )


@inline_mapping
def ask_rows(of: Any, j: Any, first: Any, rows: Any, tag: Any) -> None:
    """Ask for two vectors of rows, of which the first is `first` rows away."""
    if of is not None:
        for k in range(len(rows)):
            ask(at(of[0], (first + k) * of[1], tag), j, tag)


@inline_mapping
def row(of: Any, k: Any) -> Any:
    """How many elements later the k-th row begins."""
    return 0 if of is None else k * of[1]


@inline_mapping
def start(of: Any) -> Any:
    """The address of the first row, or None."""
    return None if of is None else of[0]
