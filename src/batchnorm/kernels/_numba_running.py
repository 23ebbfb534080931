"""The update of running statistics, compiled: on so few numbers each call into torch costs more."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from batchnorm.kernels._address import LOW, held
from batchnorm.kernels._numba_call import PARAMETER_TYPES, parameter, put_parameter
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_machine import count_up
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load

_VARYING = ("moments", "mean", "var", "batches", "skipped")
_INTEGERS = (*_VARYING, "channels", "mean_type", "var_type", "groups")
_REALS = ("mean_most", "var_most", "share", "decay")
_FIELDS = np.dtype([(n, np.int64) for n in _INTEGERS] + [(n, np.float64) for n in _REALS])
_PACK = struct.Struct(f"{len(_INTEGERS)}q{len(_REALS)}d")
_PACK_VARYING = struct.Struct(f"{len(_VARYING)}q")
_RECORD = ctypes.c_char * _PACK.size
_KINDS = {dtype: (kind, torch.finfo(dtype).max) for dtype, kind in PARAMETER_TYPES.items()}


_increment_version = torch._C._increment_version  # torch's own is a microsecond's third around it
_NOTHING = (0, 0.0)


class Mover:
    """Moves buffers of certain types, by a certain share, towards moments.

    Args:
        channels: of the buffers.
        groups: batches that the moments are of, which take their turns.
        mean: the running mean's type and largest value; zeros for none.
        var: the running variance's.
        share: the momentum; NaN for one over the count of batches.
        decay: ``log(1 - momentum)`` to correct the share for the buffers' first values; 0 not to.
    """

    __slots__ = ("_constant", "_free")

    def __init__(
        self,
        channels: int,
        groups: int,
        mean: tuple[int, float],
        var: tuple[int, float],
        share: float,
        decay: float,
    ) -> None:
        self._constant = channels, mean[0], var[0], groups, mean[1], var[1], share, decay
        self._free: list[Any] = []  # records not in use; taking one and giving it back are atomic

    def move(
        self,
        moments: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        batches: Tensor | None,
        skipped: Tensor | None,
    ) -> bool:
        """Move them, and count; False, with nothing done, for counters that it does not take."""
        if not (_counts(batches) and _counts(skipped)):
            return False
        try:
            record = self._free.pop()
        except IndexError:
            record = _RECORD()
            _PACK.pack_into(record, 0, 0, 0, 0, 0, 0, *self._constant)
        _PACK_VARYING.pack_into(
            record, 0, moments.data_ptr(),
            0 if mean is None
            else at if (at := mean.data_ptr()) > LOW else held("running_mean", mean),
            0 if var is None
            else at if (at := var.data_ptr()) > LOW else held("running_var", var),
            0 if batches is None
            else at if (at := batches.data_ptr()) > LOW else held("num_batches_tracked", batches),
            0 if skipped is None
            else at if (at := skipped.data_ptr()) > LOW else held("skipped", skipped),
        )  # fmt: skip
        kernel().function(record)
        self._free.append(record)
        changed: Any = mean, var, batches, skipped
        if mean is None or var is None or batches is None or skipped is None:
            changed = [t for t in changed if t is not None]
        _increment_version(changed)
        return True


_mover = lru_cache(256)(Mover)


def mover(
    mean: Tensor | None, var: Tensor | None, moments: Tensor, share: float, decay: float
) -> Mover | None:
    """What moves these buffers; None if they are of a kind that nothing here takes."""
    of_mean, of_var = _described(mean), _described(var)
    if of_mean is None or of_var is None:
        return None
    buffer = mean if mean is not None else var
    channels = 0 if buffer is None else buffer.shape[0]
    groups = moments.shape[1] // channels if channels else 1  # nothing per channel is one batch too
    return _mover(channels, groups, of_mean, of_var, share, decay)


def _counts(t: Tensor | None) -> bool:
    return t is None or (type(t) is Tensor and t.dtype is torch.int64 and t.is_cpu)


def _described(t: Tensor | None) -> tuple[int, float] | None:
    """Type and largest value of a buffer; None for one of another kind."""
    if t is None:
        return _NOTHING
    return _KINDS.get(t.dtype) if t.is_cpu and t.is_contiguous() else None


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
def _nudge(address: Any, kind: Any, c: Any, before: Any, target: Any, share: Any) -> None:
    """Move a float32 that a share of the way did not move to its neighbour; see `Running`."""
    if kind == 0 and share > 0 and parameter(address, kind, c, 0.0) == before:
        near = np.float32(target)
        if near != before:
            put_parameter(address, kind, c, float(np.nextafter(np.float32(before), near)))


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
        mean, before = _row(p, 1, first + c), parameter(p.mean, p.mean_type, c, 0.0)
        _move(p.mean, p.mean_type, c, mean, share)
        if p.mean != 0 and p.share == p.share:
            _nudge(p.mean, p.mean_type, c, before, mean, share)
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
    return c_function(_body((WIDE, stamp())), "update of running statistics")
