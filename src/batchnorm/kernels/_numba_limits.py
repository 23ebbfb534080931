"""Whether an input can be had back from the output over it, told for all channels in one go.

What a bias may be depends on how far xhat spreads. Of that a few values tell enough: those of a
channel vary together no less than any of them do among themselves. So most inputs need not be read
once more before they are overwritten.
"""

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

from batchnorm.kernels._layout import Layout
from batchnorm.kernels._numba_call import PARAMETER_TYPES, parameter
from batchnorm.kernels._numba_compile import Kernel, c_function, stamp
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import TAGS, WIDE, load, put

_VARYING = ("beyond", "x", "moments", "weight", "bias")
_INTEGERS = (*_VARYING, "scratch", "outer", "channels", "inner", "weight_type", "bias_type")
_REALS = ("eps", "least", "most", "shifted", "saturated")
_FIELDS = np.dtype([(n, np.int64) for n in _INTEGERS] + [(n, np.float64) for n in _REALS])
_PACK = struct.Struct(f"{len(_INTEGERS)}q{len(_REALS)}d")
_PACK_VARYING = struct.Struct(f"{len(_VARYING)}q")
_ANSWER = struct.Struct("q")
_SOME = 4  # channels, about so many of which values are looked at
_FEW = 256  # values of one, at most


class Limits:
    """Asks what `batchnorm.kernels._in_place` says, of calls that lie like one that was made.

    Args:
        lies: x, which has no gaps.
        weight: its dtype; None for none.
        bias: its dtype; None for none.
        eps: added to the variance.
        sizes: the least and the largest size of a weight.
        shifted: the largest ``|bias / weight|`` over the spread of xhat.
        saturated: the largest ``exp(-z) / |weight|`` under ELU; 0 for another activation.
        dtype: of x.
    """

    __slots__ = ("_constant", "_dtype", "_free", "_length")

    def __init__(
        self,
        lies: Layout,
        weight: torch.dtype | None,
        bias: torch.dtype | None,
        eps: float,
        sizes: tuple[float, float],
        shifted: float,
        saturated: float,
        dtype: torch.dtype,
    ) -> None:
        kinds = (0 if kind is None else PARAMETER_TYPES[kind] for kind in (weight, bias))
        places = lies.outer, lies.channels, lies.inner
        self._constant = *places, *kinds, eps, *sizes, shifted, saturated
        self._length = _PACK.size + (16 * lies.channels if saturated else 0)
        self._dtype = dtype
        self._free: list[Any] = []  # records not in use; taking one and giving it back are atomic

    def within(self, x: int, moments: int, weight: int, bias: int) -> bool:
        """Whether all is within the limits, given addresses; 0 for no weight or bias.

        The moments are read for a bias and under ELU alone. Without them it is told for a bias from
        a few values of x, and "no" means that those do not suffice. ELU needs moments.
        """
        try:
            record = self._free.pop()
        except IndexError:
            record = self._record()
        _PACK_VARYING.pack_into(record, 0, 0, x, moments, weight, bias)
        kernel(self._dtype).function(record)
        (beyond,) = _ANSWER.unpack_from(record)
        self._free.append(record)
        return beyond == 0

    def _record(self) -> Any:
        record = (ctypes.c_char * self._length)()
        scratch = ctypes.addressof(record) + _PACK.size
        _PACK.pack_into(record, 0, *(0,) * len(_VARYING), scratch, *self._constant)
        return record


@mapping
def _largest(p: Any) -> Any:
    """The largest variance of a channel, of those that are finite; NaN if none is."""
    most = np.nan
    for c in range(p.channels):
        var = load(p.moments, 2 * p.channels + c, WIDE)
        if var < np.inf and not var <= most:
            most = var
    return most


@mapping
def _scatter(p: Any, c: Any, tag: Any) -> Any:
    """The sum of squares of a channel's first values about their mean."""
    start, s, q, seen = c * p.inner, 0.0, 0.0, 0
    first = load(p.x, start, tag)
    for _ in range(p.outer):
        n = min(p.inner, _FEW - seen)
        for i in range(start, start + n):
            d = load(p.x, i, tag) - first
            s, q = s + d, q + d * d
        seen, start = seen + n, start + p.channels * p.inner
        if seen == _FEW:
            break
    return q - s * s / seen


@mapping
def _at_least(p: Any, tag: Any) -> Any:
    """What the largest variance is no less than; NaN where a few values do not tell."""
    most = np.nan
    for c in range(0, p.channels, max(p.channels // _SOME, 1)):
        var = _scatter(p, c, tag) / (p.outer * p.inner)
        if 0.0 < var < np.inf and not var <= most:
            most = var
    return most


@mapping
def _parameters(p: Any, tag: Any) -> Any:
    """How many channels' parameters are beyond their limits."""
    most = 0.0
    if p.bias != 0:
        var = _at_least(p, tag) if p.moments == 0 else _largest(p)
        most = p.shifted * math.sqrt(var / (var + p.eps))
    beyond = 0
    for c in range(p.channels):
        gamma = abs(parameter(p.weight, p.weight_type, c, 1.0))
        beta = abs(parameter(p.bias, p.bias_type, c, 0.0))
        good = p.least <= gamma and gamma <= p.most and beta <= most * gamma
        beyond += 0 if good else 1
    return beyond


@mapping
def _saturated(p: Any, tag: Any) -> Any:
    """How many values of ELU are too near its limit: those below ``log(1 / (most |gamma|))``."""
    for c in range(p.channels):
        gamma = parameter(p.weight, p.weight_type, c, 1.0)
        invstd = 1 / math.sqrt(load(p.moments, 2 * p.channels + c, WIDE) + p.eps)
        least = -math.log(p.saturated * abs(gamma)) - parameter(p.bias, p.bias_type, c, 0.0)
        put(p.scratch, c, invstd * gamma, WIDE)
        put(p.scratch, p.channels + c, least, WIDE)
    beyond = 0
    for o in range(p.outer):
        start = o * p.channels * p.inner
        if p.inner == 1:
            for c in range(p.channels):
                z = load(p.x, start + c, tag) - load(p.moments, p.channels + c, WIDE)
                least = load(p.scratch, p.channels + c, WIDE)
                beyond += 0 if z * load(p.scratch, c, WIDE) >= least else 1
            continue
        for c in range(p.channels):
            mean, scale = load(p.moments, p.channels + c, WIDE), load(p.scratch, c, WIDE)
            least = load(p.scratch, p.channels + c, WIDE)
            for i in range(start + c * p.inner, start + (c + 1) * p.inner):
                beyond += 0 if (load(p.x, i, tag) - mean) * scale >= least else 1
    return beyond


def _body(variant: tuple[Any, str]) -> Callable[[Any], None]:
    def limits(pointer: Any) -> None:
        records = carray(pointer, 1, _FIELDS)
        p = records[0]
        beyond = _parameters(p, variant[0])
        if beyond == 0 and p.saturated > 0:
            beyond = _saturated(p, variant[0])
        records[0].beyond = beyond

    return limits


@cache
def kernel(dtype: torch.dtype) -> Kernel:
    """The compiled questions about x of this dtype."""
    return c_function(_body((TAGS[dtype], stamp())), f"limits in place, {dtype}")
