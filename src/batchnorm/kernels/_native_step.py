"""Steps that are torch's own from end to end, where no digits are lost.

A function of ours around the same kernel would cost small layers as much as the kernel.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from batchnorm.kernels._address import check_held
from batchnorm.kernels._call import Call
from batchnorm.kernels._native_activation import apart, flat, over
from batchnorm.kernels._native_rows import many
from batchnorm.kernels._native_strides import Strides
from batchnorm.kernels._native_whole import LARGE, NEAR, SMALL, width

# Bytes of x: up to here z is kept for the activation's gradient, beyond it a function of ours
# computes it again. Times over torch's layer with its ReLU in place, forward and backward, minima
# of interleaved runs where freed memory was there again: kept 0.9 to 1.24 against 1.06 to 1.7 at 4
# to 8 MiB. Above, it gains less (0.97 to 1.19 against 1.0 to 1.29 at 16), and where freed memory is
# given back a third tensor beside x and y costs more than it saves.
KEPT = 2**23

_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}


class Step(Protocol):
    """Torch's own operators for calls that lie like one that was made."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        *running: Any,
    ) -> Tensor | None:
        """y; None, with nothing changed, for a batch of which torch's kernel would lose digits.

        Args:
            x: and weight, bias and residual, which lie like those that it was made for.
            weight: gamma.
            bias: beta.
            residual: added before the activation.
            running: mean, variance, count of batches and momentum, as `batch_norm` takes them.
        """
        ...


def step_of(call: Call, fixed: bool, mean: Tensor | None, var: Tensor | None) -> Step | None:
    """For calls that lie like `call`, with or moving these statistics; None where it cannot be.

    Args:
        call: one of them.
        fixed: whether the statistics are given; if not, they are the batch's own.
        mean: the running mean that is given, or moves.
        var: the running variance.
    """
    x = call.x
    if not x.is_cpu or call.eps < SMALL or flat(call.activation):
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
    small = call.activation.kind == "identity" or x.numel() * x.element_size() <= KEPT
    small = small and not many(x)
    if fixed:
        return FixedStep(call, small)
    return TrainingStep(call, mean is not None) if small else None


class _After:
    """What follows batch norm: the residual, and an activation that keeps no output of its own.

    Args:
        call: one of those that it is for.

    Attributes:
        lies: the strides of what torch's kernel makes.
    """

    __slots__ = ("_apart", "_over", "_strides", "lies")

    def __init__(self, call: Call) -> None:
        x, f = call.x, call.activation
        self._apart = self._over = self._strides = None
        if f.kind != "identity":
            self._apart, self._over = apart(f), over(f)
        self.lies = x.stride()
        if x.is_contiguous() and (strides := Strides(x)).differ():
            self._strides, self.lies = strides, strides.made

    def apply(self, z: Tensor, residual: Tensor | None) -> Tensor:
        """y; z is nobody else's, and batch norm does not keep it."""
        strides = self._strides
        if strides is not None and z.requires_grad:
            strides.of_gradients(z.grad_fn)
        if residual is not None:
            z.add_(residual)
        y = z
        if self._apart is not None and self._over is not None:
            y = self._apart(z) if z.requires_grad else self._over(z)
        return y if strides is None else strides.of_output(y)


class TrainingStep:
    """`torch.native_batch_norm` with the batch's own statistics, and its backward pass.

    Args:
        call: one of those that it is for.
        moves: whether there are running statistics, and they move.
    """

    __slots__ = ("_after", "_eps", "_least", "_lies", "_most", "_moves")

    def __init__(self, call: Call, moves: bool) -> None:
        after = _After(call)
        self._eps, self._lies, self._moves = call.eps, after.lies, moves
        self._after = after.apply
        double = call.x.dtype is torch.float64
        self._most, self._least = (1e150, 1e-150) if double else (NEAR, LARGE**-0.5)

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        *running: Any,
    ) -> Tensor | None:
        """As `Step.forward`."""
        check_held("residual", residual)
        if not self._moves:
            z, *own = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, self._eps)
            return self._after(z, residual) if self._good(z, *own) else None
        mean, var, batches, momentum = running
        check_held("running_mean", mean)
        check_held("running_var", var)
        check_held("num_batches_tracked", batches)
        if _unchangeable(mean, var, batches):
            return None
        if momentum is None:
            momentum = 1 / (batches.item() + 1)
        # Copies: autograd keeps what the kernel moves, and a batch that it spoils must not be seen.
        new_mean, new_var = mean.clone(), var.clone()
        z, *own = torch.native_batch_norm(
            x, weight, bias, new_mean, new_var, True, momentum, self._eps
        )
        if not self._good(z, *own):
            return None
        y = self._after(z, residual)
        mean.copy_(new_mean)
        var.copy_(new_var)
        if batches is not None:
            batches.add_(1)
        return y

    def _good(self, z: Tensor, mean: Tensor, invstd: Tensor) -> bool:
        """Whether z lies as it must with all its digits: no distant mean, and all is finite."""
        distance = (mean * invstd).abs_().max().item()  # NaN is the largest, and the smallest
        return (
            distance <= self._most
            and invstd.min().item() >= self._least
            and z.stride() == self._lies
        )


class FixedStep:
    """`torch.native_batch_norm` with given statistics, and its backward pass.

    Args:
        call: one of those that it is for.
        small: whether it may be used where a gradient is recorded.
    """

    __slots__ = ("_after", "_double", "_eps", "_lies", "_most", "_small")

    def __init__(self, call: Call, small: bool) -> None:
        after = _After(call)
        self._eps, self._lies, self._small = call.eps, after.lies, small
        self._after = after.apply
        self._double, self._most = call.x.dtype is torch.float64, NEAR**2 * call.eps

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        *running: Any,
    ) -> Tensor | None:
        """As `Step.forward`."""
        graph = torch.is_grad_enabled()
        if graph and not self._small:
            return None
        mean, var = running[:2]
        check_held("residual", residual)
        check_held("running_mean", mean)
        check_held("running_var", var)
        if not self._double:
            beyond = (mean * mean).sub_(var, alpha=NEAR**2).max().item()
            if not beyond <= self._most:  # NaN is the largest
                return None
        if graph:  # autograd keeps them, and they may move
            mean, var = mean.clone(), var.clone()
        z, *_ = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, self._eps)
        return self._after(z, residual) if z.stride() == self._lies else None


def _unchangeable(mean: Tensor, var: Tensor, batches: Tensor | None) -> bool:
    """Whether torch would refuse to write to one of them, made in inference mode, outside of it."""
    if torch.is_inference_mode_enabled():
        return False
    return (
        mean.is_inference()
        or var.is_inference()
        or (batches is not None and batches.is_inference())
    )
