"""How a call's tensors lie in memory, and how sums are divided: by shapes and strides alone.

Every dense tensor, however permuted, is (outer, channels, inner) for sums that do not care in
which order they meet the positions.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

_SHORT = 16  # segments below this are walked as rows
_PART = 65536  # elements of a channel summed together
_BLOCK = 32768  # elements of a block of rows summed together
_MOST_BLOCKS = 64
_ROWS = 32  # of a block: its sums take as many bytes as two to four of them
_FEW = 256  # with fewer rows than this blocks have half as many, for more threads
_TASK = 16384  # elements of short channels that are one task
GROUP = 64  # channels whose constants are computed together, at most
_ROW = 512  # rows are joined until about this long

Ints = tuple[int, ...]


class Layout(NamedTuple):
    """A dense tensor as (outer, channels, inner).

    Attributes:
        outer_dims: the dimensions outside the channels, outermost first.
        inner_dims: those inside.
        outer: the size of all outer ones.
        channels: C.
        inner: the size of all inner ones.
        order: all dimensions, outermost first.
    """

    outer_dims: Ints
    inner_dims: Ints
    outer: int
    channels: int
    inner: int
    order: Ints


class Plan(NamedTuple):
    """What shapes and strides decide about a call.

    Attributes:
        layout: that of the output.
        planar: whether channels lie in segments; if not, they change along rows.
        outer_steps: the strides between outer positions in x, residual and dy; None where the
            tensor does not lie like the output.
        channel_steps: those between channels.
        parts: how many sums are taken, of each channel if planar or of all.
        span: how many positions, or rows, enter one of them; whole segments, if they are short.
        columns: the length of a row, several outer positions if they are short; 0 if planar.
        joined: how many outer positions are in a row.
        group: how many channels are one task, if planar.
    """

    layout: Layout
    planar: bool
    outer_steps: tuple[int | None, int | None, int | None]
    channel_steps: tuple[int, int, int]
    parts: int
    span: int
    columns: int
    joined: int
    group: int


@lru_cache(4096)
def layout(shape: Ints, strides: Ints) -> Layout:
    """The layout of a tensor without gaps."""
    dims = sorted((d for d in range(len(shape)) if d != 1), key=lambda d: -strides[d])
    long = [d for d in dims if shape[d] != 1]
    if shape[1] == 1:
        outer_dims = tuple(long[:1]) if len(long) > 1 else ()
    else:
        outer_dims = tuple(d for d in long if strides[d] > strides[1])
    inner_dims = tuple(d for d in long if d not in outer_dims)
    rest = [d for d in dims if d not in long]
    order = (*rest, *outer_dims, 1, *inner_dims)
    outer, inner = _size(shape, outer_dims), _size(shape, inner_dims)
    return Layout(outer_dims, inner_dims, outer, shape[1], inner, order)


def _size(shape: Ints, dims: Ints) -> int:
    size = 1
    for d in dims:
        size *= shape[d]
    return size


@lru_cache(4096)
def plan(shape: Ints, out: Ints, x: Ints, residual: Ints | None, dy: Ints | None) -> Plan:
    """Plan for an output of strides `out` from tensors of strides `x`, `residual` and `dy`."""
    like = layout(shape, out)
    width = like.channels * like.inner
    planar = like.inner >= _SHORT or like.outer * width == 0
    of_x, of_residual, of_dy = (
        _steps(shape, strides or out, like, planar) for strides in (x, residual, dy)
    )
    outer_steps = (of_x[0], of_residual[0], of_dy[0])
    channel_steps = (of_x[1], of_residual[1], of_dy[1])
    if planar:
        whole = max(1, _PART // max(like.inner, 1))  # segments of a part, unless it is of one
        pieces = -(-like.inner // _PART) if like.outer else 1
        parts = -(-like.outer // whole) if pieces <= 1 else like.outer * pieces
        parts, columns, joined = max(1, parts), 0, 1
        span = whole * like.inner if pieces <= 1 else _PART
    else:
        touching = all(step in (width, None) for step in outer_steps)
        parts, span, columns, joined = _divide(like.outer, width, touching)
    group = min(max(1, _TASK // max(like.outer * like.inner, 1)), GROUP)
    return Plan(like, planar, outer_steps, channel_steps, parts, span, columns, joined, group)


def _divide(outer: int, width: int, touching: bool) -> tuple[int, int, int, int]:
    """Parts, span, columns and joined for `outer` rows of `width`."""
    short = touching and 2 * width <= _ROW
    joined = min(_ROW // width, max(1, outer // _SHORT)) if short else 1
    rows = -(-outer // joined)
    least = _ROWS if rows >= _FEW else _ROWS // 2
    span = max(least, -(-_BLOCK // (joined * width)), -(-rows // _MOST_BLOCKS))
    span += -span % 4  # rows that go together
    return max(1, -(-rows // span)), span, joined * width, joined


def _steps(shape: Ints, strides: Ints, like: Layout, planar: bool) -> tuple[int | None, int]:
    """The strides along outer, None for a tensor that does not lie like `like`, and channels."""
    if 0 in shape:
        return 0, 0
    outer_step = _joint(shape, strides, like.outer_dims)
    inner_step = _joint(shape, strides, like.inner_dims)
    channel_step = strides[1] if like.channels > 1 else like.inner
    if outer_step is None or (like.inner > 1 and inner_step != 1):
        return None, 0
    if not planar and channel_step != like.inner:
        return None, 0
    return outer_step if like.outer > 1 else like.channels * like.inner, channel_step


def _joint(shape: Ints, strides: Ints, dims: Ints) -> int | None:
    """The stride of `dims` as one dimension; None if they do not join."""
    for before, after in pairwise(dims):
        if strides[before] != strides[after] * shape[after]:
            return None
    return strides[dims[-1]] if dims else 0
