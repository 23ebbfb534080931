"""A call in place that was made before: its launches are kept, as in `_numba_again`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import _memory, _recycled, _team
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._address import LOW, held
from batchnorm.kernels._call import Call
from batchnorm.kernels._numba_again import alike, described, pattern
from batchnorm.kernels._numba_launch import GRAIN, send
from batchnorm.kernels._numba_limits import Limits
from batchnorm.kernels._numba_prepare import Prepared, prepare

_increment_version = torch._C._increment_version  # torch's own is a microsecond's third around it
_MEASURE, _NORMALIZE, _WHOLE, _RECOVER = range(4)


class Over:
    """Forward and backward, in place, for calls like one that was made.

    x, weight and bias must have that call's dtypes, shapes and strides, and dy those of
    ``torch.empty_like(x)``. All gradients are computed.
    """

    __slots__ = ("_ahead", "_bias", "_large", "_launches", "_limits", "_options", "_packed",
                 "_recycles", "_size", "_weight")  # fmt: skip

    def __init__(self, call: Call, fixed: bool, limits: Limits) -> None:
        x, weight, bias, _, _, eps, f = call
        dx = torch.empty_like(x, device="meta")
        self._size = x.numel()
        self._large, self._recycles = _memory.large(dx), _recycled.large(dx)
        self._packed = pattern((3, x.shape[1]), torch.float64)
        self._weight, self._bias = alike(weight), alike(bias)
        self._limits = limits
        self._ahead = bias is not None or f.kind == "elu"  # limits are about moments, too
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

    def _send(
        self, which: int, x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Tensor
    ) -> None:
        at = x.data_ptr()
        at = at if at > LOW else held("x", x)
        send(
            self._prepared(which), at, 0, 0, 0 if which == _MEASURE else at, 0, 0,
            moments.data_ptr(), 0,
            0 if weight is None
            else at if (at := weight.data_ptr()) > LOW else held("weight", weight),
            0 if bias is None else at if (at := bias.data_ptr()) > LOW else held("bias", bias),
            0, 0, 0, False,
        )  # fmt: skip
        if which != _MEASURE:
            _increment_version((x,))

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Tensor | None
    ) -> Tensor:
        """Overwrite x, whether or not it can be had back; the moments: those given, or its own."""
        which = _NORMALIZE
        if moments is None:
            which, moments = _WHOLE, torch.empty_like(self._packed)
        self._send(which, x, weight, bias, moments)
        return moments

    def within_limits(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, bool]:
        """The batch's own moments, and whether x was overwritten.

        It was not where it could not be had back, or where that is too close to tell; then there
        are moments only if they were looked at.
        """
        moments = torch.empty_like(self._packed)
        ahead = self._ahead
        if ahead:
            self._send(_MEASURE, x, None, None, moments)
        if not self._limits.within(x, moments, weight, bias):
            return moments if ahead else None, False
        self._send(_NORMALIZE if ahead else _WHOLE, x, weight, bias, moments)
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
