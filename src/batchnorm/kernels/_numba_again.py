"""A call that was made before: its launches are kept, and sent with other addresses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import _memory, _recycled, _team
from batchnorm.kernels._address import LOW, held
from batchnorm.kernels._call import Call
from batchnorm.kernels._layout import Ints, plan
from batchnorm.kernels._numba_launch import GRAIN, send
from batchnorm.kernels._numba_prepare import Prepared, described, prepare

_FORWARD, _BACKWARD = range(2)


class Again:
    """Forward and backward for calls like one that was made, without asking how their tensors lie.

    x, weight, bias and residual must have that call's dtypes, shapes and strides, and dy those of
    its output. No mask. All gradients are computed.
    """

    __slots__ = ("_bias", "_large", "_launches", "_options", "_packed", "_recycles", "_size",
                 "_weight", "dy")  # fmt: skip

    def __init__(self, call: Call, fixed: bool) -> None:
        x, weight, bias, residual = call[:4]
        f = call.activation
        y = torch.empty_like(x, device="meta")
        self.dy: Ints = y.stride()
        self._size = x.numel()
        self._large, self._recycles = _memory.large(y), _recycled.large(y)
        self._packed = pattern((3, x.shape[1]), torch.float64)
        self._weight, self._bias = alike(weight), alike(bias)
        kinds = described(weight), described(bias)
        tail = call.eps, f.kind, f.parameter
        lies = x.dtype, x.shape, self.dy, x.stride()
        added = None if residual is None else residual.stride()
        needed = None if f.kind == "identity" else added  # its value, and a gradient but dy
        sums = not (fixed and weight is None and bias is None)
        flags = (
            (False, True, False, not fixed, False),
            (False, True, needed is not None, sums, fixed),
        )
        self._options: tuple[tuple[Any, ...], ...] = (
            ("forward", *lies, added, None, *kinds, flags[0], *tail),
            ("backward", *lies, needed, self.dy, *kinds, flags[1], *tail),
        )
        self._launches: tuple[dict[int, Prepared], ...] = {}, {}

    def _prepared(self, which: int) -> Prepared:
        """A launch, for as many threads as torch would use now.

        Each when it is first needed: whoever takes no gradients compiles no kernel for them.
        """
        count = _team.threads(self._size, GRAIN)
        found = self._launches[which].get(count)
        if found is None:
            found = self._launches[which][count] = prepare(*self._options[which], count)
        return found

    def possible(self) -> bool:
        """Whether no tensor would have to be copied first."""
        return not any(None in plan(*options[2:7]).outer_steps for options in self._options)

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """y, and the moments: those given, or the batch's own."""
        y = _recycled.like(x) if self._recycles else torch.empty_like(x)
        if moments is None:
            moments = torch.empty_like(self._packed)
        send(
            self._prepared(_FORWARD), at if (at := x.data_ptr()) > LOW else held("x", x),
            0 if residual is None
            else at if (at := residual.data_ptr()) > LOW else held("residual", residual),
            0, y.data_ptr(), 0, 0, moments.data_ptr(), 0,
            0 if weight is None
            else at if (at := weight.data_ptr()) > LOW else held("weight", weight),
            0 if bias is None else at if (at := bias.data_ptr()) > LOW else held("bias", bias),
            0, 0, 0, self._large and _memory.prepare(y),
        )  # fmt: skip
        return y, moments

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        moments: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, weight, bias and residual; no identity needs a value of the last two."""
        dx = _recycled.like(x) if self._recycles else torch.empty_like(x)
        streams = self._large and _memory.prepare(dx)
        dresidual = None
        if residual is not None:
            kept = self._recycles
            dresidual = _recycled.like(residual) if kept else torch.empty_like(residual)
            streams = self._large and _memory.prepare(dresidual) and streams
        dweight = None if self._weight is None else torch.empty_like(self._weight)
        dbias = None if self._bias is None else torch.empty_like(self._bias)
        send(
            self._prepared(_BACKWARD), at if (at := x.data_ptr()) > LOW else held("x", x),
            0 if residual is None
            else at if (at := residual.data_ptr()) > LOW else held("residual", residual),
            at if (at := dy.data_ptr()) > LOW else held("dy", dy), dx.data_ptr(),
            0 if dresidual is None else dresidual.data_ptr(), 0, moments.data_ptr(), 0,
            0 if weight is None
            else at if (at := weight.data_ptr()) > LOW else held("weight", weight),
            0 if bias is None else at if (at := bias.data_ptr()) > LOW else held("bias", bias),
            0 if dweight is None else dweight.data_ptr(), 0 if dbias is None else dbias.data_ptr(),
            0, streams,
        )  # fmt: skip
        return dx, dweight, dbias, dresidual


@lru_cache(256)
def pattern(shape: Ints, dtype: torch.dtype) -> Tensor:
    """What `torch.empty_like` makes room from, in half the time of `torch.empty`.

    One for all: kept with each call it would lie in the midst of memory that is freed.
    """
    return torch.empty(shape, dtype=dtype)


def alike(parameter: Tensor | None) -> Tensor | None:
    """What `torch.empty_like` makes room for a parameter's gradient from; None for none."""
    return None if parameter is None else pattern(parameter.shape, parameter.dtype)
