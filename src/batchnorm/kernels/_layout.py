"""How a tensor's channels lie in memory, and how its sums are divided, by shape and strides alone.

Every dense tensor, however permuted, is (outer, channels, inner) for sums that do not care in
which order they meet the positions.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

_SHORT = 16  # segments below this are walked as rows
_PART = 65536  # elements of a channel summed together
_BLOCK = 32768  # elements of a block of rows summed together
_MOST_BLOCKS = 64
_ROW = 512  # rows are joined until about this long


class Layout(NamedTuple):
    """A dense tensor as (outer, channels, inner), and its division.

    Attributes:
        planar: whether channels lie in segments; if not, they change along rows.
        outer_dims: the dimensions outside the channels, outermost first.
        inner_dims: those inside.
        parts: how many sums are taken, of each channel if planar or of all.
        span: how many positions, or rows, enter one of them.
        columns: the length of a row; 0 if planar.
    """

    planar: bool
    outer_dims: tuple[int, ...]
    inner_dims: tuple[int, ...]
    outer: int
    channels: int
    inner: int
    parts: int
    span: int
    columns: int


def layout(dense: Tensor) -> Layout:
    """The layout of a tensor without gaps."""
    return _layout(dense.shape, dense.stride())


@lru_cache(4096)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> Layout:
    dims = [d for d in range(len(shape)) if d != 1 and shape[d] != 1]
    dims.sort(key=lambda d: -strides[d])
    if shape[1] == 1:
        outer_dims = tuple(dims[:1]) if len(dims) > 1 else ()
    else:
        outer_dims = tuple(d for d in dims if strides[d] > strides[1])
    inner_dims = tuple(d for d in dims if d not in outer_dims)
    outer, inner = _size(shape, outer_dims), _size(shape, inner_dims)
    if inner >= _SHORT or outer * shape[1] * inner == 0:
        parts = max(1, -(-outer * inner // _PART))
        return Layout(True, outer_dims, inner_dims, outer, shape[1], inner, parts, _PART, 0)
    division = divide(outer, shape[1] * inner, joined=True)
    return Layout(False, outer_dims, inner_dims, outer, shape[1], inner, *division)


def _size(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    size = 1
    for d in dims:
        size *= shape[d]
    return size


@lru_cache(4096)
def divide(outer: int, width: int, joined: bool) -> tuple[int, int, int]:
    """Parts, span and columns of `outer` rows of `width`, several of them joined if they touch."""
    together = min(_ROW // width, max(1, outer // _SHORT)) if joined and 2 * width <= _ROW else 1
    columns = together * width
    rows = -(-outer // together)
    span = max(16, -(-_BLOCK // columns), -(-rows // _MOST_BLOCKS))
    return max(1, -(-rows // span)), span, columns


def steps(x: Tensor, like: Layout) -> tuple[int, int] | None:
    """The strides of `x` along outer and channels, or None if it does not lie like `like`."""
    return _steps(x.shape, x.stride(), like)


@lru_cache(4096)
def _steps(
    shape: tuple[int, ...], strides: tuple[int, ...], like: Layout
) -> tuple[int, int] | None:
    outer_step = _joint(shape, strides, like.outer_dims)
    inner_step = _joint(shape, strides, like.inner_dims)
    channel_step = strides[1] if like.channels > 1 else like.inner
    if outer_step is None or inner_step not in (0, 1) or (inner_step == 0 and like.inner > 1):
        return None
    if not like.planar and channel_step != like.inner:
        return None
    return outer_step, channel_step


def _joint(shape: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...]) -> int | None:
    """The stride of `dims` as one dimension; None if they do not join."""
    for before, after in pairwise(dims):
        if strides[before] != strides[after] * shape[after]:
            return None
    return strides[dims[-1]] if dims else 0
