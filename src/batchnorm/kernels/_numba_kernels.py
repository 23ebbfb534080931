"""The kernels, by layout, direction and activation: which loops sum, and which write."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from batchnorm.kernels import _numba_channels as channels
from batchnorm.kernels import _numba_planar as planar
from batchnorm.kernels import _numba_recover_general as recover
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_rows as rows
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_drive import drive
from batchnorm.kernels._numba_memory import TAGS
from batchnorm.kernels._numba_variant import GENERAL, Variant

_Closed = tuple[Any, str]
_Builder = Callable[[_Closed, Variant, Any], Callable[[Any], None]]

# What these close over is part of the key in Numba's cache: the element type, our sources, the
# variant, and the type in which activations are computed. The functions that they call must not
# be: one that is compiled has another key in each process, so each kernel names its own.


def _planar_forward(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def planar_forward(p: Any) -> None:
        drive(p, kind, of[0], real, channels.tasks, channels.forward, planar.measure, planar.write)

    return planar_forward


def _planar_forward_general(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def planar_forward_general(p: Any) -> None:
        drive(
            p,
            kind,
            of[0],
            real,
            channels.tasks,
            channels.forward,
            planar.measure_weighted,
            planar.write_general,
        )

    return planar_forward_general


def _planar_backward(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def planar_backward(p: Any) -> None:
        drive(p, kind, of[0], real, channels.tasks, channels.backward, planar.reduce, planar.spread)

    return planar_backward


def _planar_backward_general(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def planar_backward_general(p: Any) -> None:
        drive(
            p,
            kind,
            of[0],
            real,
            channels.tasks,
            channels.backward,
            planar.reduce_general,
            planar.spread_general,
        )

    return planar_backward_general


def _planar_recover_general(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def planar_recover_general(p: Any) -> None:
        drive(
            p,
            kind,
            of[0],
            real,
            channels.tasks,
            channels.backward,
            recover.planar_reduce,
            recover.planar_spread,
        )

    return planar_recover_general


def _rows_forward(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def rows_forward(p: Any) -> None:
        drive(p, kind, of[0], real, blocks.tasks, rows.forward, rows.measure, rows.write)

    return rows_forward


def _rows_forward_general(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def rows_forward_general(p: Any) -> None:
        drive(
            p,
            kind,
            of[0],
            real,
            blocks.tasks,
            rows.forward,
            rows.measure_weighted,
            rows.write_general,
        )

    return rows_forward_general


def _rows_backward(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def rows_backward(p: Any) -> None:
        drive(p, kind, of[0], real, blocks.tasks, rows.backward, rows.reduce, rows.spread)

    return rows_backward


def _rows_backward_general(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def rows_backward_general(p: Any) -> None:
        drive(
            p,
            kind,
            of[0],
            real,
            blocks.tasks,
            rows.backward,
            rows.reduce_general,
            rows.spread_general,
        )

    return rows_backward_general


def _rows_recover_general(of: _Closed, kind: Variant, real: Any) -> Callable[[Any], None]:
    def rows_recover_general(p: Any) -> None:
        drive(
            p,
            kind,
            of[0],
            real,
            blocks.tasks,
            rows.backward,
            recover.rows_reduce,
            recover.rows_spread,
        )

    return rows_recover_general


# From an output that was written in place loops are those that read the input.
_BENDS: dict[tuple[str, bool], _Builder] = {
    ("forward", True): _planar_forward,
    ("forward", False): _rows_forward,
    ("backward", True): _planar_backward,
    ("backward", False): _rows_backward,
    ("recover", True): _planar_backward,
    ("recover", False): _rows_backward,
}
_GENERAL: dict[tuple[str, bool], _Builder] = {
    ("forward", True): _planar_forward_general,
    ("forward", False): _rows_forward_general,
    ("backward", True): _planar_backward_general,
    ("backward", False): _rows_backward_general,
    ("recover", True): _planar_recover_general,
    ("recover", False): _rows_recover_general,
}


def builder(variant: Variant) -> _Builder:
    """What makes the kernel of a variant."""
    return (_GENERAL if variant.bend == GENERAL else _BENDS)[variant.direction, variant.planar]


@cache
def kernel(variant: Variant, dtype: torch.dtype) -> Kernel:
    """The kernel of a variant for an element type."""
    real = np.float64 if dtype is torch.float64 else np.float32
    body = builder(variant)((TAGS[dtype], stamp()), variant, real)
    return c_function(body, f"{variant}, {dtype}")
