"""How threads share the tasks of a kernel's phases, and meet between them."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_call import CURSOR
from batchnorm.kernels._numba_machine import call_int, count_up, counted
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, put

PATIENCE = 2000  # looks at a counter, some microseconds, before other programs are let in


@mapping
def counter(p: Any, phase: Any, owner: Any) -> Any:
    """The address of a counter: of an owner's tasks that were begun; after those, of all done."""
    return p.cursors + CURSOR * (phase * (p.threads + 1) + owner)


@mapping
def number(p: Any) -> Any:
    """Which thread this is."""
    return call_int(p.thread_number) if p.threads > 1 and p.thread_number else 0


@mapping
def clear(p: Any) -> None:
    """Set the counters back, of a record that may have been used before."""
    for phase in range(p.phase, p.phase_end):
        put(counter(p, phase, 0), 0, 0.0, WIDE)


@mapping
def share(p: Any, me: Any, turn: Any, count: Any) -> Any:
    """Whose tasks to do at this turn, from which on, and how many.

    A thread starts with its own share, the same in every phase so that it finds in its cache what
    it left there, and then helps the others.
    """
    owner = (me + turn) % p.threads
    low = count * owner // p.threads
    return owner, low, count * (owner + 1) // p.threads - low


@mapping
def meet(p: Any, phase: Any, done: Any, count: Any) -> None:
    """Wait until all tasks of a phase are done, of which this thread did some."""
    there = counter(p, phase, p.threads)
    count_up(there, done)
    looks = 0
    while counted(there) < count:
        looks += 1
        if looks > PATIENCE and p.rest:
            call_int(p.rest)
