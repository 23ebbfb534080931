"""What every kernel is: the tasks of its phases, shared among threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from batchnorm.kernels._numba_call import FIELDS
from batchnorm.kernels._numba_machine import count_up, room
from batchnorm.kernels._numba_math import steering
from batchnorm.kernels._numba_memory import TILE, TILES
from batchnorm.kernels._numba_share import clear, counter, meet, number, share

WRITING = 3  # the phase


@steering
def drive(
    pointer: Any, kind: Any, tag: Any, real: Any, tasks: Any, run: Any, sum_up: Any, write: Any
) -> None:
    """Run the tasks of the phases that the record names, among as many threads as come.

    The phase that writes begins with what was read last. `real` is the type of a buffer.
    """
    p = carray(pointer, 1, FIELDS)[0]
    work = carray(room(), TILE, real), carray(room(), (TILES, TILE), np.float64)
    me = number(p)
    if p.threads == 1:  # several find them cleared: none may start before the others
        clear(p)
    for phase in range(p.phase, p.phase_end):
        count, done = tasks(p, phase), 0
        for turn in range(p.threads):
            owner, low, most = share(p, me, turn, count)
            taken = count_up(counter(p, phase, owner), 1)
            while taken < most:
                task = low + (most - 1 - taken if phase == WRITING else taken)
                run(p, phase, task, work, kind, tag, sum_up, write)
                done += 1
                taken = count_up(counter(p, phase, owner), 1)
        if p.threads > 1 and phase + 1 < p.phase_end:
            meet(p, phase, done, count)
