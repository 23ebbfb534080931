"""The update of running statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.moments import Moments


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
    that is empty or whose moments are not finite changes nothing, nor does it count in `batches`.
    """
    batch = Moments.unpack(moments)
    new_var = batch.unbiased()
    good = (batch.count > 0).all() & batch.mean.isfinite().all() & new_var.isfinite().all()
    if good.device.type == "cpu":
        if good:
            _move(mean, var, batches, batch.mean, new_var, momentum)
        return
    kept = [None if t is None else t.clone() for t in (mean, var, batches)]
    _move(mean, var, batches, batch.mean, new_var, momentum)
    for buffer, before in zip((mean, var, batches), kept, strict=True):
        if buffer is not None and before is not None:
            buffer.copy_(torch.where(good, buffer, before))


def _move(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    new_mean: Tensor,
    new_var: Tensor,
    momentum: float | None,
) -> None:
    if batches is not None:
        batches.add_(1)
    share = momentum
    if share is None:
        assert batches is not None, "checked by batch_norm"
        share = 1 / batches.to(new_mean.dtype)
    for buffer, new in ((mean, new_mean), (var, new_var)):
        if buffer is not None:
            buffer.copy_(buffer + (new - buffer) * share)
