"""Running statistics: their update, and their use in evaluation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from batchnorm.functional._recomputed import as_before, recomputing
from batchnorm.kernels import _numpy_running, numba
from batchnorm.kernels._address import values
from batchnorm.moments import Moments, widest


class Running(NamedTuple):
    """Running statistics and how they move.

    A running mean in float32 that the momentum's share of the way to the batch's would not move,
    for being rounded back, moves to its neighbour on that side. Five such steps short of the mean
    of a column of timestamps are ten minutes, by which nothing is divided in training, and in
    evaluation the root of a variance that may be small. Without a momentum the average is over all
    batches alike: steps of one size would make a median of it.
    """

    mean: Tensor | None
    var: Tensor | None
    batches: Tensor | None
    skipped: Tensor | None
    momentum: float | None
    bias_correction: bool
    moves: bool
    pool: Tensor | None = None

    def arguments(self, moments: Tensor) -> tuple[Any, ...]:
        """What `update` and its operator take, for a batch of these moments."""
        mean, var, batches, skipped, momentum, bias_correction, _, pool = self
        return mean, var, batches, skipped, moments, momentum, bias_correction, pool


def before(running: Running, seen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mean and variance that normalize a batch of the moments `seen`, if it will move them."""
    mean, var = running[:2]
    if seen is None or mean is None or var is None:
        return mean, var
    return as_before(mean, mean, var, seen)


def fixed_moments(mean: Tensor | None, var: Tensor | None, plain: bool = False) -> Tensor:
    """Running statistics packed as moments; no number of values stands behind them.

    Where both are `plain` tensors NumPy packs them: on so few numbers in a third of the time.
    """
    assert mean is not None, "checked by batch_norm"
    assert var is not None, "checked by batch_norm"
    if plain and mean.is_cpu and mean.dtype.itemsize >= 4 <= var.dtype.itemsize:
        packed = np.zeros((3, mean.numel()))
        packed[1], packed[2] = values("running_mean", mean), values("running_var", var)
        return torch.from_numpy(packed)
    wide = widest(mean.device)
    mean, var = mean.detach().to(wide), var.detach().to(wide)
    return Moments(torch.zeros_like(mean), mean, var).pack()


def update(
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    skipped: Tensor | None,
    moments: Tensor,
    momentum: float | None,
    bias_correction: bool,
    pool: Tensor | None = None,
    *,
    branching: bool = True,
) -> None:
    """Move `mean` and `var` towards a batch's moments by `momentum`, in place.

    ``running = (1 - momentum) running + momentum batch``, with the unbiased variance, as torch
    does; without a momentum the plain average over batches, ``momentum = 1 / batches``. With
    `bias_correction` the share is ``momentum / (1 - (1 - momentum)^batches)``: a moving average
    over the batches alone, without what the buffers held before the first. A batch that is empty
    changes nothing; one whose moments the buffers cannot hold (inf and NaN among them) is counted
    in `skipped`, and changes nothing else. One value, which a mask may leave, has no variance.
    What is recomputed in a backward pass was counted in the forward pass. Moments of more channels
    than the buffers have are those of ghost batches, which take their turns. Where there is a
    `pool` they are merged into that, and nothing else moves. Without `branching` nothing but
    torch's operations is used.
    """
    if recomputing():
        return
    if pool is not None:
        _merge(pool, moments)
        return
    buffers = mean, var, batches, skipped
    decay = 0.0
    if bias_correction and momentum:
        decay = math.log1p(-momentum) if momentum < 1 else -math.inf
    branching = branching and moments.is_cpu
    if branching and any(
        way.update_running(buffers, moments, momentum, decay) for way in (numba, _numpy_running)
    ):
        return
    if moments.shape[1] > _channels(mean, var):
        _move_by_groups(buffers, moments, momentum, decay)
    elif not branching:
        _update_without_branching(buffers, moments, momentum, decay)
    elif _fits(mean, var, moments):
        _move(buffers, moments, momentum, decay)
    elif skipped is not None:
        skipped.add_(_filled(moments))


def _channels(mean: Tensor | None, var: Tensor | None) -> int:
    buffer = mean if mean is not None else var
    return 0 if buffer is None else buffer.numel()


def _filled(moments: Tensor) -> Tensor:
    return (moments[0] > 0).all()


def _fits(mean: Tensor | None, var: Tensor | None, moments: Tensor) -> Tensor:
    good = _filled(moments)
    batch = Moments.unpack(moments)
    for buffer, new in ((mean, batch.mean), (var, batch.unbiased())):
        if buffer is not None:
            good = good & (new.abs() <= torch.finfo(buffer.dtype).max).all()
    return good


def _update_without_branching(
    buffers: tuple[Tensor | None, ...], moments: Tensor, momentum: float | None, decay: float
) -> None:
    """A branch on the moments would make the host wait for the device."""
    good = _fits(buffers[0], buffers[1], moments)
    before = [None if t is None else t.clone() for t in buffers[:3]]
    _move(buffers, moments, momentum, decay)
    for buffer, kept in zip(buffers, before, strict=False):
        if buffer is not None and kept is not None:
            buffer.copy_(torch.where(good, buffer, kept))
    if buffers[3] is not None:
        buffers[3].add_(_filled(moments) & ~good)


def _move(
    buffers: tuple[Tensor | None, ...], moments: Tensor, momentum: float | None, decay: float
) -> None:
    mean, var, batches, _ = buffers
    batch = Moments.unpack(moments)
    if batches is not None:
        batches.add_(1)
    share: Any = momentum
    if momentum is None or decay:
        assert batches is not None, "checked by batch_norm"
        count = batches.to(moments.dtype)
        share = 1 / count if momentum is None else momentum / -torch.expm1(decay * count)
    if mean is not None:
        moved = mean + (batch.mean - mean) * share
        mean.copy_(_nudged(mean, moved, batch.mean) if momentum else moved)
    if var is not None:
        moved = var + (batch.unbiased() - var) * share
        var.copy_(torch.where(batch.count > 1, moved, var))


def _nudged(mean: Tensor, moved: Tensor, target: Tensor) -> Tensor:
    """What a mean moves to, as `Running` tells.

    Between five eighths and five quarters of a rounding more are the neighbour, rounded; not every
    device has `torch.nextafter`.
    """
    if mean.dtype is not torch.float32:
        return moved
    moved, near = moved.to(mean.dtype), target.to(mean.dtype)
    stuck = (moved == mean) & (near != mean)
    return torch.where(stuck, mean + (near - mean).sign() * mean.abs() * (1.25 * 2**-24), moved)


def _move_by_groups(
    buffers: tuple[Tensor | None, ...], moments: Tensor, momentum: float | None, decay: float
) -> None:
    """All groups at once: of each one's share those that come later leave the rest."""
    mean, var, batches, skipped = buffers
    batch = Moments.unpack(moments.unflatten(1, (-1, _channels(mean, var))))
    filled = (batch.count > 0).all(1)
    news = ((mean, batch.mean), (var, batch.unbiased()))
    good = filled
    for buffer, new in news:
        if buffer is not None:
            good = good & (new.abs() <= torch.finfo(buffer.dtype).max).all(1)
    share = torch.full_like(good, momentum or 0.0, dtype=moments.dtype)
    if momentum is None or decay:
        assert batches is not None, "checked by batch_norm"
        count = (batches + good.cumsum(0)).to(moments.dtype)
        share = 1 / count if momentum is None else momentum / -torch.expm1(decay * count)
    share = torch.where(good, share, 0.0)[:, None].expand_as(batch.mean)
    for buffer, new in news:
        if buffer is not None:
            of = share if buffer is mean else torch.where(batch.count > 1, share, 0.0)
            rest = (1 - of).flip(0).cumprod(0).flip(0)
            later = torch.cat((rest[1:], torch.ones_like(rest[:1])))
            moved = (of * later * torch.where(good[:, None], new, 0.0)).sum(0)
            after = buffer * rest[0] + moved
            if buffer is mean and momentum:
                target = torch.where(rest[0] < 1, moved / (1 - rest[0]), buffer)
                after = _nudged(buffer, after, target)
            buffer.copy_(after)
    if batches is not None:
        batches.add_(good.sum())
    if skipped is not None:
        skipped.add_((filled & ~good).sum())


def _merge(pool: Tensor, moments: Tensor) -> None:
    """Of the pool and of each group, all at once: ``mean = sum(n mean) / sum(n)``, and so on."""
    groups = moments.unflatten(1, (-1, pool.shape[1]))
    count, mean, var = torch.cat((pool[:, None], groups), 1).unbind(0)
    total = count.sum(0)
    share = count / torch.where(total > 0, total, 1.0)
    near = mean[-1]
    pooled = near + (share * (mean - near)).sum(0)
    pool.copy_(torch.stack((total, pooled, (share * (var + (mean - pooled).square())).sum(0))))
