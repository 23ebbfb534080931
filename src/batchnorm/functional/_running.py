"""The update of running statistics."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from batchnorm.moments import Moments

_NUMPY = (torch.float32, torch.float64)


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
    buffers = [t for t in (mean, var) if t is not None]
    if moments.device.type != "cpu":
        _update_without_branching(mean, var, batches, moments, momentum)
    elif not (moments[0].all() and np.abs(moments.numpy()).max(initial=0) <= _largest(buffers)):
        return
    elif all(t.dtype in _NUMPY and t.device.type == "cpu" for t in buffers):
        _update_in_numpy(mean, var, batches, moments, momentum)
    else:
        _move(mean, var, batches, moments, momentum)


def _largest(buffers: list[Tensor]) -> float:
    """Above it a moment, or the unbiased variance, which is at most double, leaves the dtype."""
    return min((torch.finfo(t.dtype).max for t in buffers), default=math.inf) / 2


def _update_without_branching(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: Tensor,
    momentum: float | None,
) -> None:
    """A branch on the moments would make the host wait for the device."""
    limit = _largest([t for t in (mean, var) if t is not None])
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


def _update_in_numpy(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: Tensor,
    momentum: float | None,
) -> None:
    """What `_move` does, at a third of the price for the few numbers that there are."""
    count, new_mean, new_var = moments.numpy()
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
        array, rest = var.numpy(), count - 1
        new_var = new_var * np.divide(count, rest, out=np.ones_like(count), where=rest > 0)
        array += (new_var - array) * share
        torch.autograd.graph.increment_version(var)
