"""Running statistics: their update, and their use in evaluation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from batchnorm.kernels import numba
from batchnorm.moments import Moments, widest


class Running(NamedTuple):
    """Running statistics and how they move."""

    mean: Tensor | None
    var: Tensor | None
    batches: Tensor | None
    momentum: float | None


def fixed_moments(mean: Tensor | None, var: Tensor | None, plain: bool = False) -> Tensor:
    """Running statistics packed as moments; no number of values stands behind them.

    Where both are `plain` tensors NumPy packs them: on so few numbers in a third of the time.
    """
    assert mean is not None, "checked by batch_norm"
    assert var is not None, "checked by batch_norm"
    if plain and mean.is_cpu and mean.dtype.itemsize >= 4 <= var.dtype.itemsize:
        packed = np.zeros((3, mean.numel()))
        packed[1], packed[2] = mean.numpy(), var.numpy()
        return torch.from_numpy(packed)
    wide = widest(mean.device)
    mean, var = mean.detach().to(wide), var.detach().to(wide)
    return Moments(torch.zeros_like(mean), mean, var).pack()


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
    elif not numba.update_running(mean, var, batches, moments, momentum) and _fits(
        mean, var, moments
    ):
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
