"""Channels whose values lie in contiguous segments (NCL, NCHW, NCDHW): a channel at a time.

A channel stays in the cache between the pass that sums and the pass that writes, which goes
backwards to begin with what was read last. Short channels go in groups, so that the sums of one do
not wait for the square root of another. Where there are too few channels for the threads, the
parts of a channel are summed as tasks of their own: phase 0 does whole channels, or 1 sums parts,
2 adds them up and 3 writes. Either way the same sums are added in the same order.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_call import put_moments, put_sums, shift_of
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load, put


@mapping
def forward(p: Any, phase: Any, task: Any, work: Any, tag: Any, measure: Any, write: Any) -> None:
    """One task of statistics and normalization, by the functions given for a part."""
    if phase == 1 or phase == 3:
        c = task // p.parts
        part = task - c * p.parts
        if phase == 3 and p.out:
            write(p, c, part, work, tag)
        if phase == 1 and p.measure:
            n, s, q = measure(p, c, part, shift_of(p, c, tag), work, tag)
            put(p.scratch, 3 * task, n, WIDE)
            put(p.scratch, 3 * task + 1, s, WIDE)
            put(p.scratch, 3 * task + 2, q, WIDE)
        return
    first, last = task * p.group, min((task + 1) * p.group, p.channels)
    if p.measure:
        for c in range(first, last):
            shift = shift_of(p, c, tag)
            n = s = q = 0.0
            for k in range(p.parts):
                if phase == 0:
                    dn, ds, dq = measure(p, c, k, shift, work, tag)
                else:
                    there = p.scratch + 24 * (c * p.parts + k)
                    dn, ds, dq = load(there, 0, WIDE), load(there, 1, WIDE), load(there, 2, WIDE)
                n, s, q = n + dn, s + ds, q + dq
            put_moments(p, c, shift, n, s, q)
    if p.out and phase == 0:
        for c in range(last - 1, first - 1, -1):
            for k in range(p.parts - 1, -1, -1):
                write(p, c, k, work, tag)


@mapping
def backward(p: Any, phase: Any, task: Any, work: Any, tag: Any, reduce: Any, spread: Any) -> None:
    """One task of a channel's sums and of the gradients, by the functions given for a part."""
    if phase == 1 or phase == 3:
        c = task // p.parts
        part = task - c * p.parts
        if phase == 3 and (p.out or p.out_residual):
            spread(p, c, part, work, tag)
        if phase == 1 and p.measure:
            s, q = reduce(p, c, part, work, tag)
            put(p.scratch, 2 * task, s, WIDE)
            put(p.scratch, 2 * task + 1, q, WIDE)
        return
    first, last = task * p.group, min((task + 1) * p.group, p.channels)
    if p.measure:
        for c in range(first, last):
            s = q = 0.0
            for k in range(p.parts):
                if phase == 0:
                    ds, dq = reduce(p, c, k, work, tag)
                else:
                    there = p.scratch + 16 * (c * p.parts + k)
                    ds, dq = load(there, 0, WIDE), load(there, 1, WIDE)
                s, q = s + ds, q + dq
            put_sums(p, c, s, q)
    if phase == 0 and (p.out or p.out_residual):
        for c in range(last - 1, first - 1, -1):
            for k in range(p.parts - 1, -1, -1):
                spread(p, c, k, work, tag)


@mapping
def tasks(p: Any, phase: Any) -> Any:
    """How many tasks a phase has."""
    if phase == 0 or phase == 2:
        return (p.channels + p.group - 1) // p.group
    return p.channels * p.parts
