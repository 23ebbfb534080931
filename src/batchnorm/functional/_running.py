"""The update of running statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.moments import Moments

_NUMPY = (torch.float32, torch.float64)
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in _NUMPY}


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
    nothing, nor does it count in `batches`. One value, which a mask may leave, has no variance.
    """
    if not moments.is_cpu:
        _update_without_branching(mean, var, batches, moments, momentum)
    elif all(t is None or t.dtype in _NUMPY for t in (mean, var)):
        _update_in_numpy(mean, var, batches, moments.numpy(), momentum)
    elif _fits(mean, var, moments):
        _move(mean, var, batches, moments, momentum)


def _fits(mean: Tensor | None, var: Tensor | None, moments: Tensor) -> Tensor:
    good = (moments[0] > 0).all()
    batch = Moments.unpack(moments)
    for buffer, new in ((mean, batch.mean), (var, batch.unbiased())):
        if buffer is not None:
            good = good & (new.abs() <= torch.finfo(buffer.dtype).max).all()
    return good


def _update_without_branching(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: Tensor,
    momentum: float | None,
) -> None:
    """A branch on the moments would make the host wait for the device."""
    good = _fits(mean, var, moments)
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
    if mean is not None:
        mean.copy_(mean + (batch.mean - mean) * share)
    if var is not None:
        moved = var + (batch.unbiased() - var) * share
        var.copy_(torch.where(batch.count > 1, moved, var))


def _update_in_numpy(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    moments: NDArray[np.float64],
    momentum: float | None,
) -> None:
    """`_fits` and `_move`, without the price of torch's calls on so few numbers."""
    count, new_mean, new_var = moments
    several = count > 1
    new_var = new_var * (count / np.where(several, count - 1, np.maximum(count, 1)))
    new = [(t, v) for t, v in ((mean, new_mean), (var, new_var)) if t is not None]
    if not count.all() or not all(np.abs(v).max(initial=0) <= _LARGEST[t.dtype] for t, v in new):
        return
    if batches is not None:
        batches.add_(1)
    share = momentum
    if share is None:
        assert batches is not None, "checked by batch_norm"
        share = 1 / batches.item()
    for buffer, values in new:
        array = buffer.numpy()
        step = (values - array) * share
        array += step if buffer is not var else np.where(several, step, 0)
        torch.autograd.graph.increment_version(buffer)
