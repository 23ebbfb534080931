"""A training step that is torch's own from end to end, where no digits are lost.

A function of ours around the same kernel would cost small layers as much as the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels._call import Call
from batchnorm.kernels._native_whole import LARGE, NEAR, SMALL, width

_FORMATS = {2: (), 3: (), 4: (torch.channels_last,), 5: (torch.channels_last_3d,)}


def step_of(call: Call, mean: Tensor | None, var: Tensor | None) -> Step | None:
    """For calls that lie like `call` and move statistics like these; None where it cannot be."""
    x, f = call.x, call.activation
    if not x.is_cpu or f.kind not in ("identity", "relu") or call.eps < SMALL:
        return None
    if (mean is None) is not (var is None):
        return None
    rest = call.weight, call.bias, mean, var
    if any(t is not None and t.dtype is not width(x) for t in rest):
        return None
    like = torch.empty(x.shape, device="meta")
    dense = [like, *(like.to(memory_format=one) for one in _FORMATS.get(x.dim(), ()))]
    if x.stride() not in [t.stride() for t in dense]:
        return None
    return Step(call.eps, f.kind == "relu", x.dtype is torch.float64, mean is not None)


class Step:
    """`torch.native_batch_norm` with the batch's own statistics, and its backward pass.

    Args:
        eps: added to the variance.
        relu: whether the activation is one, and not the identity.
        double: whether it computes in float64.
        moves: whether there are running statistics, and they move.
    """

    __slots__ = ("_eps", "_least", "_most", "_moves", "_relu")

    def __init__(self, eps: float, relu: bool, double: bool, moves: bool) -> None:
        self._eps, self._relu, self._moves = eps, relu, moves
        self._most, self._least = (1e150, 1e-150) if double else (NEAR, LARGE**-0.5)

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *running: Any
    ) -> Tensor | None:
        """y; None, with nothing changed, for a batch of which this kernel would lose digits.

        Args:
            x: and weight and bias, which lie like those that it was made for.
            weight: gamma.
            bias: beta.
            running: mean, variance, count of batches and momentum, as `batch_norm` takes them.
        """
        if not self._moves:
            y, *own = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, self._eps)
            return self._after(y) if self._kept(*own) else None
        mean, var, batches, momentum = running
        if mean.is_inference() and not torch.is_inference_mode_enabled():
            return None  # autograd would not keep it
        if momentum is None:
            momentum = 1 / (batches.item() + 1)
        # Autograd keeps those that the kernel moves, and would mind if they moved once more.
        moved, before = (mean.data, var.data), (mean.clone(), var.clone())
        y, *own = torch.native_batch_norm(
            x, weight, bias, moved[0], moved[1], True, momentum, self._eps
        )
        if not self._kept(*own):
            for one, kept in zip(moved, before, strict=True):
                one.copy_(kept)
            return None
        torch.autograd.graph.increment_version((mean, var))
        if batches is not None:
            batches.add_(1)
        return self._after(y)

    def _kept(self, mean: Tensor, invstd: Tensor) -> bool:
        """Whether all digits are; not where the mean is distant, or anything is not finite."""
        distance = (mean * invstd).abs_().max().item()  # NaN is the largest, and the smallest
        return distance <= self._most and invstd.min().item() >= self._least

    def _after(self, y: Tensor) -> Tensor:
        return y.relu_() if self._relu else y
