"""Rows of channels, asked for before they are read or written: further along the same rows.

Not rows ahead at the same column. Rows that lie a power of two apart have but a few sets of the
first cache for all their lines there, and of those asked for so early one pushes the other out.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels._numba_ahead import ask, ask_own
from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_memory import at

NEAR, FURTHER = 48, 128  # vectors, where several tensors are read and where one is


@inline_mapping
def later(of: Any, n: Any, ahead: Any, on: Any, tag: Any) -> Any:
    """How many elements further lies what is to be asked for, `ahead` vectors on in rows of n.

    Beyond a row's end that is in the rows which begin `on` rows further. As how many up to which
    column, and how many from there on; once for all rows, as it takes a division.
    """
    if of is None:
        return 0, 0, 0
    turns, more = ahead * vectors.lanes(tag) // n, ahead * vectors.lanes(tag) % n
    near = more + turns * on * of[1]
    return near, n - more, near + on * of[1] - n


@inline_mapping
def _on(j: Any, later: Any) -> Any:
    near, end, beyond = later
    return j + near if j < end else j + beyond


@inline_mapping
def ask_rows(of: Any, j: Any, later: Any, rows: Any, tag: Any) -> None:
    """Ask for two vectors of each row, as `later` tells."""
    if of is not None:
        j = _on(j, later)
        for k in range(len(rows)):
            ask(at(of[0], k * of[1], tag), j, tag)


@inline_mapping
def own_rows(of: Any, j: Any, later: Any, rows: Any, tag: Any) -> None:
    """As `ask_rows`, of rows that will be written."""
    j = _on(j, later)
    for k in range(len(rows)):
        ask_own(at(of[0], k * of[1], tag), j, tag)
