"""A call that was made before: what holds for all that lie like it is known."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels._call import Call
from batchnorm.kernels._native_whole import backward, forward, normalize


class Again:
    """A call that was made before, of which `refuses` need not be asked; without a residual."""

    __slots__ = ("_fixed", "_no_value", "_options")

    def __init__(self, call: Call, fixed: bool) -> None:
        self._options = call[3:]
        self._fixed = fixed
        bias = call.bias
        self._no_value = None if bias is None else torch.empty_like(bias, requires_grad=False)

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y, and the moments: those given, or the batch's own."""
        call = Call(x, weight, bias, *self._options)
        return forward(call) if moments is None else (normalize(call, moments), moments)

    def backward(
        self, dy: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, weight and bias, whose own value no identity needs."""
        call = Call(x, weight, self._no_value if bias is None else bias, *self._options)
        return backward(dy, call, moments, self._fixed, (True, False))[:3]
