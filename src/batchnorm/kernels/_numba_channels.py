"""Channels whose values lie in contiguous segments (NCL, NCHW, NCDHW): a channel at a time.

A channel stays in the cache between the pass that sums and the pass that writes, which goes
backwards to begin with what was read last. Short channels go in groups, whose constants are
computed together. Where there are too few channels for the threads, the parts of a channel are
summed as tasks of their own: phase 0 does whole channels, or 1 sums parts, 2 adds them up and 3
writes. Either way the same sums are added in the same order.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_constants as constants
from batchnorm.kernels._numba_math import mapping, steering
from batchnorm.kernels._numba_memory import WIDE, load, put
from batchnorm.kernels._numba_wide_sums import take_anew


@mapping
def _keep(w: Any, there: Any) -> None:
    """Write a part's sums down."""
    n, s, q = constants.sums_of(w, 0)
    put(there, 0, n, WIDE)
    put(there, 1, s, WIDE)
    put(there, 2, q, WIDE)


@mapping
def _add_up(p: Any, first: Any, n: Any, w: Any) -> None:
    """Add up what was written down."""
    for k in range(n):
        for part in range(p.parts):
            there = p.scratch + 24 * ((first + k) * p.parts + part)
            count, s, q = load(there, 0, WIDE), load(there, 1, WIDE), load(there, 2, WIDE)
            constants.add_to(w, k, count, s, q)


@mapping
def _parted(p: Any, phase: Any, task: Any) -> Any:
    """A task's first channel, how many it has, and its parts from one to before another."""
    if phase == 1 or phase == 3:
        c = task // p.parts
        return c, 1, task - c * p.parts, task - c * p.parts + 1
    first = task * p.group
    return first, min(p.group, p.channels - first), 0, p.parts


@steering
def forward(
    p: Any, phase: Any, task: Any, work: Any, kind: Any, tag: Any, measure: Any, write: Any
) -> None:
    """One task of statistics and normalization, by the functions given for a part."""
    first, n, part, end = _parted(p, phase, task)
    w = work[1].ctypes.data
    if p.measure and phase < 3:
        constants.shifts(p, first, n, w, tag)
        constants.clear(w, n)
        if phase == 2:
            _add_up(p, first, n, w)
        else:
            for k in range(part, end):
                measure(p, first, n, k, w, work, tag)
        if phase == 1:
            _keep(w, p.scratch + 24 * task)
        else:
            take_anew(p, first, n, w, tag)
            constants.moments(p, first, n, w)
    if p.out and (phase == 0 or phase == 3):
        constants.line(p, first, n, w)
        for k in range(end - 1, part - 1, -1):
            write(p, first, n, k, w, work, kind, tag)


@steering
def backward(
    p: Any, phase: Any, task: Any, work: Any, kind: Any, tag: Any, reduce: Any, spread: Any
) -> None:
    """One task of a channel's sums and of the gradients, by the functions given for a part."""
    first, n, part, end = _parted(p, phase, task)
    w = work[1].ctypes.data
    constants.line(p, first, n, w)
    if p.measure and phase < 3:
        constants.clear(w, n)
        if phase == 2:
            _add_up(p, first, n, w)
        else:
            for k in range(part, end):
                reduce(p, first, n, k, w, work, kind, tag)
        if phase == 1:
            _keep(w, p.scratch + 24 * task)
        else:
            constants.sums(p, first, n, w)
    if (p.out or p.out_residual) and (phase == 0 or phase == 3):
        constants.pulls(p, first, n, w, tag)
        for k in range(end - 1, part - 1, -1):
            spread(p, first, n, k, w, work, kind, tag)


@mapping
def tasks(p: Any, phase: Any) -> Any:
    """How many tasks a phase has."""
    if phase == 0 or phase == 2:
        return (p.channels + p.group - 1) // p.group
    return p.channels * p.parts
