"""What does not change between launches of the same shapes, strides, dtypes and options."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from batchnorm.kernels import _team
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._layout import Ints, Plan, plan
from batchnorm.kernels._numba_call import CURSOR, PACK_CONSTANT, PACK_VARYING, PARAMETER_TYPES
from batchnorm.kernels._numba_compile import Kernel
from batchnorm.kernels._numba_kernels import kernel
from batchnorm.kernels._numba_memory import TILE
from batchnorm.kernels._numba_row_columns import STRIDE, VECTORS
from batchnorm.kernels._numba_variant import GENERAL, Variant, bend_of

Parameter = tuple[torch.dtype, Ints] | None
Flags = tuple[bool, bool, bool, bool, bool]

_SLOPES = {"identity": 1.0, "relu": 0.0}
_BENDS = ("identity", "relu", "leaky_relu")
_CURSORS_AT = -(-(PACK_VARYING.size + PACK_CONSTANT.size) // CURSOR) * CURSOR
_SMALL = 16384  # float64 of scratch memory that come with the record, in one allocation, at most


class Room:
    """A record, the threads' cursors and small scratch memory; in use by one launch at a time.

    Attributes:
        record: the buffer, which begins with what `PACK_VARYING` packs.
        sums: where sums go that nobody asked for.
        scratch: the address of scratch memory after those; 0 if it is too large to lie here.
    """

    __slots__ = ("_cursors", "_length", "record", "scratch", "sums")

    def __init__(self, prepared: Prepared) -> None:
        self._length = CURSOR * 4 * (prepared.count + 1)
        at = _CURSORS_AT + self._length
        sums = 2 * prepared.plan.layout.channels
        inside = prepared.size <= _SMALL
        size = at + 8 * (sums + (prepared.size if inside else 0)) + CURSOR
        self.record = (ctypes.c_char * size)()
        here = ctypes.addressof(self.record)
        self._cursors = here + _CURSORS_AT
        self.sums = here + at
        self.scratch = -(-(self.sums + 8 * sums) // CURSOR) * CURSOR if inside else 0
        *integers, slope, eps = prepared.constants
        thread_number = _team.thread_number() if prepared.count > 1 else 0
        PACK_CONSTANT.pack_into(
            self.record,
            PACK_VARYING.size,
            *integers,
            prepared.count,
            thread_number,
            self._cursors,
            _team.rest(),
            *prepared.phases,
            slope,
            eps,
        )

    def clear(self) -> None:
        """Set the cursors back."""
        ctypes.memset(self._cursors, 0, self._length)


class Prepared:
    """A launch but for the addresses.

    Attributes:
        plan: of the layouts.
        scattered: whether a tensor must be copied first, for want of a layout.
        kernel: what to run.
        constants: the part of the record that stays, without threads and phases.
        count: how many threads.
        phases: the first, and the one after the last.
        size: float64 of scratch memory.
        free: rooms that no launch uses; taking one and giving it back are atomic.
    """

    __slots__ = ("constants", "count", "free", "kernel", "phases", "plan", "scattered", "size")

    def __init__(
        self, plan: Plan, kernel: Kernel | None, constants: tuple[float, ...], count: int
    ) -> None:
        self.plan, self.constants, self.count = plan, constants, count
        self.scattered = kernel is None
        if kernel is not None:
            self.kernel = kernel
        self.phases, self.size = _division(plan, count)
        self.free: list[Room] = []

    def room(self) -> Room:
        """One that nobody uses."""
        try:
            return self.free.pop()
        except IndexError:
            return Room(self)


@lru_cache(1024)
def prepare(
    direction: str,
    dtype: torch.dtype,
    shape: Ints,
    strides: Ints,
    x: Ints,
    residual: Ints | None,
    dy: Ints | None,
    weight: Parameter,
    bias: Parameter,
    flags: Flags,
    eps: float,
    kind: str,
    parameter: float,
    count: int,
) -> Prepared:
    """Prepare a launch.

    Args:
        direction: "forward", "backward" or "recover".
        dtype: of x.
        shape: of x.
        strides: of the output.
        x: its strides.
        residual: its strides.
        dy: its strides.
        weight: its dtype and strides.
        bias: its dtype and strides.
        flags: whether there are a mask, an output and an output for the residual's gradient,
            whether to take sums, and whether the statistics did not depend on x.
        eps: added to the variance.
        kind: of the activation.
        parameter: of the activation.
        count: how many threads.
    """
    planned = plan(shape, strides, x, residual, dy)
    if None in planned.outer_steps:
        return Prepared(planned, None, (), count)
    masked, out, out_residual, measure, fixed = flags
    bend = kind in _BENDS and not masked
    if direction == "backward" and (out or out_residual):
        # the quick kernel writes the gradient of x, and the residual's only beside it
        bend = bend and out and (residual is not None or not out_residual)
    like, slope = planned.layout, _SLOPES.get(kind, parameter)
    constants = (
        *(step or 0 for step in planned.outer_steps),
        *planned.channel_steps,
        *(like.outer, like.channels, like.inner),
        *(planned.parts, planned.span, planned.columns, planned.joined, planned.group),
        *_parameter(weight),
        *_parameter(bias),
        *(measure, fixed, Activation(kind).code, direction == "recover"),
        slope,
        eps,
    )
    quick = Variant(direction, planned.planar, bend_of(slope), residual is not None)
    code = kernel(quick if bend else Variant(direction, planned.planar, GENERAL), dtype)
    return Prepared(planned, code, constants, count)


def described(parameter: Tensor | None) -> Parameter:
    """What `prepare` asks of a parameter: its dtype and strides; None for none."""
    return None if parameter is None else (parameter.dtype, parameter.stride())


def _parameter(parameter: Parameter) -> tuple[int, int]:
    return (0, 0) if parameter is None else (PARAMETER_TYPES[parameter[0]], parameter[1][0])


def _division(planned: Plan, count: int) -> tuple[tuple[int, int], int]:
    """The phases of a kernel for `count` threads, and how much scratch memory they need."""
    like, parts = planned.layout, planned.parts
    if not planned.planar:
        return (0, 4), -(-planned.columns // TILE) * VECTORS * STRIDE + 3 * parts * like.channels
    if count == 1 or parts == 1 or like.channels >= 4 * count:
        return (0, 1), 0
    return (1, 4), 3 * parts * like.channels
