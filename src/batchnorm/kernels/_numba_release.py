"""What becomes of a block of memory when the last tensor in it is gone.

Torch calls it on whatever thread that happens, without the interpreter's lock, perhaps after the
interpreter's end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from batchnorm.kernels._numba_block import (
    ADVISE,
    CLOCK,
    FREED,
    HELD,
    MOST,
    POOL,
    PUT,
    RETURNED,
    SELF,
    SIZE,
    START,
    TAKEN,
    WORDS,
)
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_machine import call_advise, count_up, counted
from batchnorm.kernels._pages import OFFER


def _body(variant: tuple[Any, str]) -> Callable[[Any], None]:
    def release(pointer: Any) -> None:
        block = carray(pointer, WORDS, np.int64)
        pool, size = block[POOL], block[SIZE]
        held = count_up(pool + 8 * PUT, size) + size - counted(pool + 8 * TAKEN)
        block[HELD] = 1
        if held > counted(pool + 8 * MOST):
            count_up(pool + 8 * PUT, -size)
            block[HELD] = 0
            call_advise(counted(pool + 8 * ADVISE), block[START], size, variant[0])
        count_up(pool + 8 * RETURNED, size)
        count_up(block[SELF] + 8 * FREED, count_up(pool + 8 * CLOCK, 1) + 1)  # the last that it is

    return release


@cache
def release() -> Kernel:
    """The compiled function, which is never unloaded."""
    made = c_function(_body((OFFER, stamp())), "release of an output's memory")
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made
