"""The update of running statistics, compiled: on so few numbers each call into torch costs more."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from batchnorm.kernels._numba_call import PARAMETER_TYPES, parameter, put_parameter
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_machine import count_up
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load

_INTEGERS = ("moments", "channels", "mean", "mean_type", "var", "var_type", "batches", "skipped",
             "groups")  # fmt: skip
_REALS = ("mean_most", "var_most", "share", "decay")
_FIELDS = np.dtype([(n, np.int64) for n in _INTEGERS] + [(n, np.float64) for n in _REALS])
_PACK = struct.Struct(f"{len(_INTEGERS)}q{len(_REALS)}d")
_RECORD = ctypes.c_char * _PACK.size
_KINDS = {dtype: (kind, torch.finfo(dtype).max) for dtype, kind in PARAMETER_TYPES.items()}


_increment_version = torch._C._increment_version  # torch's own is a microsecond's third around it
_NOTHING = (0, 0, 0.0)
_free: list[Any] = []  # records that no call uses; taking one and giving it back are atomic


def update(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    skipped: Tensor | None,
    moments: Tensor,
    share: float,
    decay: float,
) -> bool:
    """Move buffers towards a batch's moments; see `batchnorm.functional._running`.

    Args:
        mean: the running mean.
        var: the running variance.
        batches: a counter of the batches that were taken in.
        skipped: a counter of those that were kept out, for being not finite.
        moments: packed, float64; of one batch, or of groups that take their turns.
        share: the momentum; NaN for one over the count of batches.
        decay: ``log(1 - momentum)`` to correct the share for the buffers' first values; 0 not to.

    Returns:
        Whether these buffers are of a kind that it takes; if not, nothing was done.
    """
    of_mean, of_var = _described(mean), _described(var)
    if of_mean is None or of_var is None:
        return False
    if not (_counts(batches) and _counts(skipped)):
        return False
    buffer = mean if mean is not None else var
    channels = 0 if buffer is None else buffer.shape[0]
    groups = moments.shape[1] // channels if channels else 1  # nothing per channel is one batch too
    try:
        record = _free.pop()
    except IndexError:
        record = _RECORD()
    counter = 0 if batches is None else batches.data_ptr()
    kept_out = 0 if skipped is None else skipped.data_ptr()
    (mean_at, mean_type, mean_most), (var_at, var_type, var_most) = of_mean, of_var
    _PACK.pack_into(
        record, 0, moments.data_ptr(), channels, mean_at, mean_type, var_at, var_type,
        counter, kept_out, groups, mean_most, var_most, share, decay,
    )  # fmt: skip
    kernel().function(record)
    _free.append(record)
    changed: Any = mean, var, batches, skipped
    if mean is None or var is None or batches is None or skipped is None:
        changed = [t for t in changed if t is not None]
    _increment_version(changed)
    return True


def _counts(t: Tensor | None) -> bool:
    return t is None or (type(t) is Tensor and t.dtype is torch.int64 and t.is_cpu)


def _described(t: Tensor | None) -> tuple[int, int, float] | None:
    """Address, type and largest value of a buffer; None for one of another kind."""
    if t is None:
        return _NOTHING
    kind = _KINDS.get(t.dtype)
    if kind is None or not (t.is_cpu and t.is_contiguous()):
        return None
    return t.data_ptr(), *kind


@mapping
def _row(p: Any, row: Any, c: Any) -> Any:
    """The count, the mean or the variance of a channel of a group."""
    return load(p.moments, row * p.groups * p.channels + c, WIDE)


@mapping
def _unbiased(p: Any, c: Any) -> Any:
    n, v = _row(p, 0, c), _row(p, 2, c)
    return v * (n / (n - 1)) if n > 1 else v


@mapping
def _fits(p: Any, first: Any) -> Any:
    """1 if the buffers can hold what they are moved towards, -1 if not, 0 for an empty batch."""
    fits = 1
    for c in range(first, first + p.channels):
        if not _row(p, 0, c) > 0:
            return 0
        if p.mean != 0 and not abs(_row(p, 1, c)) <= p.mean_most:
            fits = -1
        if p.var != 0 and not abs(_unbiased(p, c)) <= p.var_most:
            fits = -1
    return fits


@mapping
def _share(p: Any, batches: Any) -> Any:
    """The share of this batch, the `batches`-th to be taken in."""
    if p.share != p.share:
        return 1 / batches
    return p.share if p.decay == 0 else p.share / -math.expm1(p.decay * batches)


@mapping
def _move(address: Any, kind: Any, c: Any, target: Any, share: Any) -> None:
    before = parameter(address, kind, c, 0.0)
    put_parameter(address, kind, c, before + (target - before) * share)


@mapping
def _take_in(p: Any, first: Any, tag: Any) -> None:
    """Move the buffers towards the group whose channels begin at `first`."""
    fits = _fits(p, first)
    if fits != 1:
        if fits == -1 and p.skipped != 0:
            count_up(p.skipped, 1)
        return
    share = _share(p, 0 if p.batches == 0 else count_up(p.batches, 1) + 1)
    for c in range(p.channels):
        _move(p.mean, p.mean_type, c, _row(p, 1, first + c), share)
        if load(p.moments, first + c, tag) > 1:
            _move(p.var, p.var_type, c, _unbiased(p, first + c), share)


def _body(variant: tuple[Any, str]) -> Callable[[Any], None]:
    def update_running(pointer: Any) -> None:
        p = carray(pointer, 1, _FIELDS)[0]
        for group in range(p.groups):
            _take_in(p, group * p.channels, variant[0])

    return update_running


@cache
def kernel() -> Kernel:
    """The compiled update."""
    return c_function(_body((WIDE, stamp())))
