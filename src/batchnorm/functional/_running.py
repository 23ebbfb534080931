"""The update of running statistics."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.moments import Moments

_NUMPY = (torch.float32, torch.float64)
_LARGEST = {
    dtype: torch.finfo(dtype).max / 2
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


def update(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: Tensor,
    momentum: float | None,
) -> None:
    """Move `mean` and `var` towards a batch's moments by `momentum`, in place.

    ``running = (1 - momentum) running + momentum batch``, with the unbiased variance, as torch
    does; without a momentum the plain average over batches, ``momentum = 1 / batches``. A batch
    that is empty, or whose moments the buffers cannot hold (inf and NaN among them), changes
    nothing, nor does it count in `batches`.
    """
    if not moments.is_cpu:
        _update_without_branching(mean, var, batches, moments, momentum)
        return
    values = moments.numpy()
    if not (values[0].all() and np.abs(values).max(initial=0) <= _largest(mean, var)):
        return
    if all(t is None or t.dtype in _NUMPY for t in (mean, var)):
        _move_in_numpy(mean, var, batches, values, momentum)
    else:
        _move(mean, var, batches, moments, momentum)


def _largest(mean: Tensor | None, var: Tensor | None) -> float:
    """Above it a moment, or the unbiased variance, which is at most double, leaves the dtype."""
    return min(_LARGEST[t.dtype] if t is not None else math.inf for t in (mean, var))


def _update_without_branching(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: Tensor,
    momentum: float | None,
) -> None:
    """A branch on the moments would make the host wait for the device."""
    limit = _largest(mean, var)
    good = (moments[0] > 0).all() & (moments.abs() <= limit).all()
    kept = [None if t is None else t.clone() for t in (mean, var, batches)]
    _move(mean, var, batches, moments, momentum)
    for buffer, before in zip((mean, var, batches), kept, strict=True):
        if buffer is not None and before is not None:
            buffer.copy_(torch.where(good, buffer, before))


def _move(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: Tensor,
    momentum: float | None,
) -> None:
    batch = Moments.unpack(moments)
    if batches is not None:
        batches.add_(1)
    share = momentum
    if share is None:
        assert batches is not None, "checked by batch_norm"
        share = 1 / batches.to(moments.dtype)
    for buffer, new in ((mean, batch.mean), (var, batch.unbiased())):
        if buffer is not None:
            buffer.copy_(buffer + (new - buffer) * share)


def _move_in_numpy(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: NDArray[np.float64],
    momentum: float | None,
) -> None:
    """What `_move` does, without the price of torch's calls on so few numbers."""
    count, new_mean, new_var = moments
    if batches is not None:
        batches.add_(1)
    share = momentum
    if share is None:
        assert batches is not None, "checked by batch_norm"
        share = 1 / batches.item()
    if mean is not None:
        array = mean.numpy()
        array += (new_mean - array) * share
        torch.autograd.graph.increment_version(mean)
    if var is not None:
        array = var.numpy()
        unbiased = new_var * (count / np.where(count > 1, count - 1, count))
        array += (unbiased - array) * share
        torch.autograd.graph.increment_version(var)
