"""The kernels, sixteen for each element type: which loops sum, and which write."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from batchnorm.kernels import _numba_channels as channels
from batchnorm.kernels import _numba_planar as planar
from batchnorm.kernels import _numba_recover as recover
from batchnorm.kernels import _numba_recover_general as recover_general
from batchnorm.kernels import _numba_residual as residual
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_rows as rows
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_drive import drive
from batchnorm.kernels._numba_memory import TAGS

# Identity, ReLU and leaky ReLU; the same after a residual; any activation, and masks.
BEND, RESIDUAL, GENERAL = "bend", "residual", "general"
_Builder = Callable[[tuple[Any, str], Any], Callable[[Any], None]]

# What these close over is part of the key in Numba's cache: the element type, the type in which
# activations are computed, and our sources. The functions that they call must not be: one that is
# compiled has another key in each process, so each kernel names its own.


def _planar_forward(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_forward(p: Any) -> None:
        drive(p, variant[0], real, channels.tasks, channels.forward, planar.measure, planar.write)

    return planar_forward


def _planar_forward_residual(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_forward_residual(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            channels.tasks,
            channels.forward,
            planar.measure,
            residual.planar_write,
        )

    return planar_forward_residual


def _planar_forward_general(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_forward_general(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            channels.tasks,
            channels.forward,
            planar.measure_weighted,
            planar.write_general,
        )

    return planar_forward_general


def _planar_backward(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_backward(p: Any) -> None:
        drive(p, variant[0], real, channels.tasks, channels.backward, planar.reduce, planar.spread)

    return planar_backward


def _planar_backward_residual(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_backward_residual(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            channels.tasks,
            channels.backward,
            residual.planar_reduce,
            residual.planar_spread,
        )

    return planar_backward_residual


def _planar_backward_general(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_backward_general(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            channels.tasks,
            channels.backward,
            planar.reduce_general,
            planar.spread_general,
        )

    return planar_backward_general


def _planar_recover(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_recover(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            channels.tasks,
            channels.backward,
            recover.planar_reduce,
            recover.planar_spread,
        )

    return planar_recover


def _planar_recover_general(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def planar_recover_general(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            channels.tasks,
            channels.backward,
            recover_general.planar_reduce,
            recover_general.planar_spread,
        )

    return planar_recover_general


def _rows_forward(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_forward(p: Any) -> None:
        drive(p, variant[0], real, blocks.tasks, rows.forward, rows.measure, rows.write)

    return rows_forward


def _rows_forward_residual(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_forward_residual(p: Any) -> None:
        drive(p, variant[0], real, blocks.tasks, rows.forward, rows.measure, residual.rows_write)

    return rows_forward_residual


def _rows_forward_general(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_forward_general(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            blocks.tasks,
            rows.forward,
            rows.measure_weighted,
            rows.write_general,
        )

    return rows_forward_general


def _rows_backward(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_backward(p: Any) -> None:
        drive(p, variant[0], real, blocks.tasks, rows.backward, rows.reduce, rows.spread)

    return rows_backward


def _rows_backward_residual(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_backward_residual(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            blocks.tasks,
            rows.backward,
            residual.rows_reduce,
            residual.rows_spread,
        )

    return rows_backward_residual


def _rows_backward_general(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_backward_general(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            blocks.tasks,
            rows.backward,
            rows.reduce_general,
            rows.spread_general,
        )

    return rows_backward_general


def _rows_recover(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_recover(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            blocks.tasks,
            rows.backward,
            recover.rows_reduce,
            recover.rows_spread,
        )

    return rows_recover


def _rows_recover_general(variant: tuple[Any, str], real: Any) -> Callable[[Any], None]:
    def rows_recover_general(p: Any) -> None:
        drive(
            p,
            variant[0],
            real,
            blocks.tasks,
            rows.backward,
            recover_general.rows_reduce,
            recover_general.rows_spread,
        )

    return rows_recover_general


_BUILDERS: dict[tuple[str, bool, str], _Builder] = {
    ("forward", True, BEND): _planar_forward,
    ("forward", True, RESIDUAL): _planar_forward_residual,
    ("forward", True, GENERAL): _planar_forward_general,
    ("forward", False, BEND): _rows_forward,
    ("forward", False, RESIDUAL): _rows_forward_residual,
    ("forward", False, GENERAL): _rows_forward_general,
    ("backward", True, BEND): _planar_backward,
    ("backward", True, RESIDUAL): _planar_backward_residual,
    ("backward", True, GENERAL): _planar_backward_general,
    ("backward", False, BEND): _rows_backward,
    ("backward", False, RESIDUAL): _rows_backward_residual,
    ("backward", False, GENERAL): _rows_backward_general,
    ("recover", True, BEND): _planar_recover,
    ("recover", True, GENERAL): _planar_recover_general,
    ("recover", False, BEND): _rows_recover,
    ("recover", False, GENERAL): _rows_recover_general,
}
VARIANTS = tuple(_BUILDERS)


@cache
def kernel(direction: str, planar: bool, kind: str, dtype: torch.dtype) -> Kernel:
    """The kernel for a layout, of the kind `BEND`, `RESIDUAL` or `GENERAL`."""
    real = np.float64 if dtype is torch.float64 else np.float32
    body = _BUILDERS[direction, planar, kind]((TAGS[dtype], stamp()), real)
    return c_function(body)
