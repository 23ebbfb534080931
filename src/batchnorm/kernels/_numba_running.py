"""The update of running statistics, compiled: on so few numbers each call into torch costs more."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.graph import increment_version

from batchnorm.kernels._numba_call import PARAMETER_TYPES, parameter, put_parameter
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_machine import take
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load

_INTEGERS = ("moments", "channels", "mean", "mean_type", "var", "var_type", "batches")
_REALS = ("mean_most", "var_most", "share")
_FIELDS = np.dtype([(n, np.int64) for n in _INTEGERS] + [(n, np.float64) for n in _REALS])
_PACK = struct.Struct(f"{len(_INTEGERS)}q{len(_REALS)}d")
_RECORD = ctypes.c_char * _PACK.size
_KINDS = {dtype: (kind, torch.finfo(dtype).max) for dtype, kind in PARAMETER_TYPES.items()}


_NOTHING = (0, 0, 0.0)
_free: list[Any] = []  # records that no call uses; taking one and giving it back are atomic


def update(
    mean: Tensor | None, var: Tensor | None, batches: Tensor | None, moments: Tensor, share: float
) -> bool:
    """Move buffers towards a batch's moments; see `batchnorm.functional._running`.

    Args:
        mean: the running mean.
        var: the running variance.
        batches: a counter of the batches that were taken in.
        moments: packed, float64.
        share: the momentum; NaN for one over the count of batches.

    Returns:
        Whether these buffers are of a kind that it takes; if not, nothing was done.
    """
    of_mean, of_var = _described(mean), _described(var)
    if of_mean is None or of_var is None:
        return False
    if batches is not None and (batches.dtype is not torch.int64 or not batches.is_cpu):
        return False
    try:
        record = _free.pop()
    except IndexError:
        record = _RECORD()
    counter = 0 if batches is None else batches.data_ptr()
    (mean_at, mean_type, mean_most), (var_at, var_type, var_most) = of_mean, of_var
    _PACK.pack_into(
        record, 0, moments.data_ptr(), moments.shape[1], mean_at, mean_type, var_at, var_type,
        counter, mean_most, var_most, share,
    )  # fmt: skip
    kernel().function(record)
    _free.append(record)
    increment_version([t for t in (mean, var, batches) if t is not None])
    return True


def _described(t: Tensor | None) -> tuple[int, int, float] | None:
    """Address, type and largest value of a buffer; None for one of another kind."""
    if t is None:
        return _NOTHING
    kind = _KINDS.get(t.dtype)
    if kind is None or not (t.is_cpu and t.is_contiguous()):
        return None
    return t.data_ptr(), *kind


@mapping
def _unbiased(p: Any, c: Any) -> Any:
    n, v = load(p.moments, c, WIDE), load(p.moments, 2 * p.channels + c, WIDE)
    return v * (n / (n - 1)) if n > 1 else v


@mapping
def _fits(p: Any) -> Any:
    """Whether every channel saw a value, and the buffers can hold what they are moved towards."""
    for c in range(p.channels):
        if not load(p.moments, c, WIDE) > 0:
            return False
        if p.mean != 0 and not abs(load(p.moments, p.channels + c, WIDE)) <= p.mean_most:
            return False
        if p.var != 0 and not abs(_unbiased(p, c)) <= p.var_most:
            return False
    return True


@mapping
def _move(address: Any, kind: Any, c: Any, target: Any, share: Any) -> None:
    before = parameter(address, kind, c, 0.0)
    put_parameter(address, kind, c, before + (target - before) * share)


def _body(variant: tuple[Any, str]) -> Callable[[Any], None]:
    def update_running(pointer: Any) -> None:
        p = carray(pointer, 1, _FIELDS)[0]
        if not _fits(p):
            return
        batches = 0 if p.batches == 0 else take(p.batches) + 1
        share = p.share if p.share == p.share else 1 / batches
        for c in range(p.channels):
            _move(p.mean, p.mean_type, c, load(p.moments, p.channels + c, WIDE), share)
            if load(p.moments, c, variant[0]) > 1:
                _move(p.var, p.var_type, c, _unbiased(p, c), share)

    return update_running


@cache
def kernel() -> Kernel:
    """The compiled update."""
    return c_function(_body((WIDE, stamp())))
