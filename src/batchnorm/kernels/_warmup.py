"""Compiling the CPU's kernels before the first call needs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from batchnorm.kernels import numba
from batchnorm.kernels._check import check_switch
from batchnorm.kernels._takes import DTYPES


class Compiled(NamedTuple):
    """One kernel made ready.

    Attributes:
        kernel: what it does, on which layout.
        dtype: of the tensors; None for the running statistics, which may have any.
        seconds: how long that took.
        loaded: whether it came from the cache on disk.
    """

    kernel: str
    dtype: torch.dtype | None
    seconds: float
    loaded: bool


@dataclass(frozen=True, repr=False)
class Warmup:
    """What `warmup` made ready; prints as a table.

    Attributes:
        rows: one for each kernel.
        reason: why there is none, or None.
    """

    rows: tuple[Compiled, ...]
    reason: str | None = None

    def __repr__(self) -> str:
        if self.reason is not None:
            return f"nothing to compile: {self.reason}"
        width = max(len(row.kernel) for row in self.rows)
        lines = [
            f"{r.kernel:<{width}}  {r.dtype or 'any'!s:<14}  {r.seconds:6.2f} s  "
            f"{'loaded' if r.loaded else 'compiled'}"
            for r in self.rows
        ]
        total = sum(row.seconds for row in self.rows)
        return "\n".join([*lines, f"{len(self.rows)} kernels in {total:.2f} s"])


def warmup(dtypes: Iterable[torch.dtype] = (torch.float32,), *, everything: bool = False) -> Warmup:
    """Compile the CPU's kernels now, or load them from the cache on disk.

    Forward and backward, both layouts, without an activation and with ReLU. The first call that
    needs another one otherwise waits for it: seconds without a cache, and a few tenths of one with
    it.

    Args:
        dtypes: of the inputs to come.
        everything: residuals, masks, all other activations, and gradients from outputs that were
            written in place, too: more than a minute for each dtype.

    Returns:
        The kernels and the seconds that each took; none, and the reason, without Numba.

    Raises:
        ValueError: a dtype that has no kernel.
        TypeError: dtypes that are not several, such as one alone.

    Example:
        >>> ready = warmup()
        >>> ready.reason is None and all(row.seconds >= 0 for row in ready.rows)
        True
    """
    check_switch("everything", everything)
    known = ", ".join(str(d) for d in DTYPES)
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise TypeError(f"dtypes={dtypes!r}; expected several, [torch.float32] or more of {known}")
    dtypes = tuple(dtypes)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(
                f"dtypes holds {dtype!r}: no kernel for {dtype}; expected some of {known}"
            )
    runs, reason = numba.here()
    if not runs:
        return Warmup((), reason)
    from batchnorm.kernels import _numba_limits, _numba_release, _numba_running
    from batchnorm.kernels._numba_kernels import kernel
    from batchnorm.kernels._numba_variant import USUAL, VARIANTS

    def timed(name: str, dtype: torch.dtype | None, make: Callable[[], Any]) -> Compiled:
        start = time.perf_counter()
        made = make()
        return Compiled(name, dtype, time.perf_counter() - start, made.owner.cache_hits > 0)

    rows = [
        timed(str(variant), dtype, partial(kernel, variant, dtype))
        for dtype in dtypes
        for variant in (VARIANTS if everything else USUAL)
    ]
    for dtype in dtypes if everything else ():
        rows.append(timed("limits in place", dtype, partial(_numba_limits.kernel, dtype)))
    rows.append(timed("update of running statistics", None, _numba_running.kernel))
    return Warmup((*rows, timed("release of an output's memory", None, _numba_release.release)))
