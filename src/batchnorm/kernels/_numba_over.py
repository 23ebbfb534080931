"""A call in place that was made before: its launches are kept, as in `_numba_again`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import _memory, _recycled, _team
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._address import LOW, held
from batchnorm.kernels._call import Call
from batchnorm.kernels._numba_again import alike, pattern
from batchnorm.kernels._numba_launch import GRAIN, send
from batchnorm.kernels._numba_limits import Limits
from batchnorm.kernels._numba_prepare import Prepared, described, prepare

_increment_version = torch._C._increment_version  # torch's own is a microsecond's third around it
_MEASURE, _NORMALIZE, _WHOLE, _RECOVER = range(4)

Places = tuple[int, int, int]  # addresses of x, weight and bias; 0 for none


class Over:
    """Forward and backward, in place, for calls like one that was made.

    x, weight and bias must have that call's dtypes, shapes and strides, and dy those of
    ``torch.empty_like(x)``. All gradients are computed.
    """

    __slots__ = ("_bias", "_bytes", "_channels", "_elu", "_large", "_launches", "_limits",
                 "_options", "_packed", "_recycles", "_size", "_weight")  # fmt: skip

    def __init__(self, call: Call, fixed: bool, limits: Limits) -> None:
        x, weight, bias, _, _, eps, f = call
        dx = torch.empty_like(x, device="meta")
        self._size, self._bytes, self._channels = x.numel(), x.nbytes, x.shape[1]
        self._large, self._recycles = _memory.large(dx), _recycled.large(dx)
        self._packed = pattern((3, x.shape[1]), torch.float64)
        self._weight, self._bias = alike(weight), alike(bias)
        self._limits = limits
        self._elu = f.kind == "elu"
        kinds, tail = (described(weight), described(bias)), (eps, f.kind, f.parameter)
        lies = x.dtype, x.shape, x.stride(), x.stride(), None, None
        sums = not (fixed and weight is None and bias is None)
        nothing = Activation()
        self._options: tuple[tuple[Any, ...], ...] = (
            ("forward", *lies, None, None, (False, False, False, True, False), 0.0,
             nothing.kind, nothing.parameter),
            ("forward", *lies, *kinds, (False, True, False, False, False), *tail),
            ("forward", *lies, *kinds, (False, True, False, True, False), *tail),
            ("recover", x.dtype, x.shape, dx.stride(), x.stride(), None, dx.stride(), *kinds,
             (False, True, False, sums, fixed), *tail),
        )  # fmt: skip
        self._launches: dict[tuple[int, int], Prepared] = {}

    def _prepared(self, which: int) -> Prepared:
        """A launch, for as many threads as torch would use now."""
        key = which, _team.threads(self._size, GRAIN)
        found = self._launches.get(key)
        if found is None:
            found = self._launches[key] = prepare(*self._options[which], key[1])
        return found

    def _send(self, which: int, x: Tensor, places: Places, moments: Tensor) -> None:
        at, weight, bias = places
        out = 0 if which == _MEASURE else at
        send(
            self._prepared(which), at, 0, 0, out, 0, 0, moments.data_ptr(), 0, weight, bias,
            0, 0, 0, False,
        )  # fmt: skip
        if out:
            _increment_version((x,))

    def places(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *running: Tensor | None
    ) -> Places | None:
        """The addresses of the first three, which `forward` and `within_limits` take.

        None where one of all, that have a value a channel, shares memory with x or has lost its
        own: the long way tells which.
        """
        start = x.data_ptr()
        stop = start + self._bytes
        found = [start]
        for t in (weight, bias, *running):
            at = 0
            if t is not None:
                at = t.data_ptr()
                if at <= LOW or (at < stop and start < at + self._channels * t.itemsize):
                    return None
            found.append(at)
        return (start, found[1], found[2]) if start > LOW else None

    def forward(self, x: Tensor, places: Places, moments: Tensor | None) -> Tensor:
        """Overwrite x, whether or not it can be had back; the moments: those given, or its own."""
        which = _NORMALIZE
        if moments is None:
            which, moments = _WHOLE, torch.empty_like(self._packed)
        self._send(which, x, places, moments)
        return moments

    def within_limits(self, x: Tensor, places: Places) -> tuple[Tensor | None, bool]:
        """The batch's own moments, and whether x was overwritten.

        It was not where it could not be had back, or where that is too close to tell; then there
        are moments only if they were looked at. That is left out where a few values of x tell
        enough: such a batch may be overwritten though it is not finite.
        """
        moments = torch.empty_like(self._packed)
        at, weight, bias = places
        if not self._elu:
            if self._limits.within(at, 0, weight, bias):
                self._send(_WHOLE, x, places, moments)
                return moments, True
            if bias == 0:
                return None, False
        self._send(_MEASURE, x, (at, 0, 0), moments)
        if not self._limits.within(at, moments.data_ptr(), weight, bias):
            return moments, False
        self._send(_NORMALIZE, x, places, moments)
        return moments, True

    def backward(
        self, dy: Tensor, y: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of x, weight and bias from the output that was written over x."""
        dx = _recycled.like(y) if self._recycles else torch.empty_like(y)
        dweight = None if self._weight is None else torch.empty_like(self._weight)
        dbias = None if self._bias is None else torch.empty_like(self._bias)
        send(
            self._prepared(_RECOVER), at if (at := y.data_ptr()) > LOW else held("x", y), 0,
            at if (at := dy.data_ptr()) > LOW else held("dy", dy), dx.data_ptr(), 0, 0,
            moments.data_ptr(), 0,
            0 if weight is None
            else at if (at := weight.data_ptr()) > LOW else held("weight", weight),
            0 if bias is None else at if (at := bias.data_ptr()) > LOW else held("bias", bias),
            0 if dweight is None else dweight.data_ptr(), 0 if dbias is None else dbias.data_ptr(),
            0, self._large and _memory.prepare(dx),
        )  # fmt: skip
        return dx, dweight, dbias
