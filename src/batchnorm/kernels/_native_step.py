"""A training step that is torch's own from end to end, where no digits are lost.

A function of ours around the same kernel would cost small layers as much as the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels._call import Call
from batchnorm.kernels._native_whole import LARGE, NEAR, SMALL, width

_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}


def step_of(call: Call, mean: Tensor | None, var: Tensor | None) -> Step | None:
    """For calls that lie like `call` and move statistics like these; None where it cannot be."""
    x = call.x
    if not x.is_cpu or call.activation.kind != "identity" or call.eps < SMALL:
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
    return Step(call.eps, x.stride(), x.dtype is torch.float64, mean is not None)


class Step:
    """`torch.native_batch_norm` with the batch's own statistics, and its backward pass.

    Args:
        eps: added to the variance.
        lies: the strides that y must have.
        double: whether it computes in float64.
        moves: whether there are running statistics, and they move.
    """

    __slots__ = ("_eps", "_least", "_lies", "_most", "_moves")

    def __init__(self, eps: float, lies: tuple[int, ...], double: bool, moves: bool) -> None:
        self._eps, self._lies, self._moves = eps, lies, moves
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
            return y if self._good(y, *own) else None
        mean, var, batches, momentum = running
        if _unchangeable(mean, var, batches):
            return None
        if momentum is None:
            momentum = 1 / (batches.item() + 1)
        # Copies: autograd keeps what the kernel moves, and a batch that it spoils must not be seen.
        new_mean, new_var = mean.clone(), var.clone()
        y, *own = torch.native_batch_norm(
            x, weight, bias, new_mean, new_var, True, momentum, self._eps
        )
        if not self._good(y, *own):
            return None
        mean.copy_(new_mean)
        var.copy_(new_var)
        if batches is not None:
            batches.add_(1)
        return y

    def _good(self, y: Tensor, mean: Tensor, invstd: Tensor) -> bool:
        """Whether y lies as it must with all its digits: no distant mean, and all is finite."""
        distance = (mean * invstd).abs_().max().item()  # NaN is the largest, and the smallest
        return (
            distance <= self._most
            and invstd.min().item() >= self._least
            and y.stride() == self._lies
        )


def _unchangeable(mean: Tensor, var: Tensor, batches: Tensor | None) -> bool:
    """Whether torch would refuse to write to one of them, made in inference mode, outside of it."""
    if torch.is_inference_mode_enabled():
        return False
    return (
        mean.is_inference()
        or var.is_inference()
        or (batches is not None and batches.is_inference())
    )
