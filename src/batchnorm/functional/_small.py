"""What small batches are given: ghost batches, batch renormalization, one value a channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from batchnorm.functional import _direct, _dispatched, _ghost, _ops
from batchnorm.functional._check import one_value_a_channel
from batchnorm.functional._check_small import Small, check_group, check_unmapped
from batchnorm.functional._recomputed import as_before
from batchnorm.functional._running import Running, update
from batchnorm.functional._unseen import unseen
from batchnorm.kernels._call import Call
from batchnorm.kernels._pick import pick
from batchnorm.moments import per_channel


def batch_norm(call: Call, backend: str, running: Running, small: Small) -> Tensor:
    """Normalize, and move running statistics; each group by itself where there is a size for them.

    Where running statistics normalize, they are for all groups those from before this call.
    """
    if small.ghost_size is None:
        return _Group(call, backend, running, small, running).normalize()
    own = call.weight, call.bias, running.mean
    check_unmapped(small.ghost_size, call.x, *own)
    parts = _ghost.split(call, small.ghost_size)
    before = running
    if len(parts) > 1 and running.mean is not None and running.var is not None:
        before = running._replace(mean=running.mean.clone(), var=running.var.clone())
    if small.one_value == "raise" and small.training:
        for part in parts:
            check_group(part.x, call.x, small.ghost_size, *own)
    return _ghost.together(
        [_Group(part, backend, running, small, before).normalize() for part in parts], call.x
    )


class _Group(NamedTuple):
    """One call whose channels, or groups that joined them, have statistics of their own."""

    call: Call
    backend: str
    running: Running
    small: Small
    before: Running

    def normalize(self) -> Tensor:
        if not self.small.training:
            return self._normalize_by_running()
        if self.small.one_value != "raise":
            if self.call.mask is not None or self.small.group:
                return self._normalize_masked()
            if one_value_a_channel(*self.call[:3], self.running.mean):
                return self._normalize_one()
        call = self.call if self.small.renorm is None else self._renormalized(self._statistics())
        return self._by(call, self.running, True)

    def _normalize_by_running(self) -> Tensor:
        """What the options say of the running statistics' move holds all the same."""
        seen = self._statistics()
        y = self._by_running(seen)
        if self.small.one_value != "raise" and self.running.pool is None:
            seen = torch.where(seen[0] > 1, seen, 0.0)
        self._move(seen)
        return y

    def _normalize_one(self) -> Tensor:
        """What moves no running statistics may still be one of a pool's many values."""
        pools = self.running.moves and self.running.pool is not None
        if self.small.one_value == "beta":
            return self._by(self.call, self.running._replace(moves=pools), True)
        seen = self._statistics()
        y = self._by_running(seen)
        if pools:
            self._move(seen)
        return y

    def _normalize_masked(self) -> Tensor:
        """Only the mask's values, or the other ranks, know whether a channel has several."""
        seen = self._statistics()
        several = seen[0] > 1
        call = self.call if self.small.renorm is None else self._renormalized(seen)
        if self._unseen() and several.all():
            return self._by(call, self.running, True)
        y = self._by(call, self.running._replace(moves=False), True)
        if self.small.one_value == "running":
            y = torch.where(per_channel(several, y), y, self._by_running(seen))
        if self.running.moves:
            self._move(seen if self.running.pool is not None else torch.where(several, seen, 0.0))
        return y

    def _move(self, seen: Tensor) -> None:
        move = update if self._unseen() else _ops.update_running_
        move(*self.running.arguments(seen))

    def _unseen(self) -> bool:
        return unseen(*self.call[:5], *self.running[:4])

    def _by(self, call: Call, running: Running, training: bool) -> Tensor:
        group, one_value = self.small.group, self.small.one_value
        if not group and unseen(*call[:5], *running[:4]):
            return _direct.batch_norm(call, self.backend, running, training)
        return _dispatched.batch_norm(call, self.backend, running, training, group, one_value)

    def _statistics(self) -> Tensor:
        call = self.call
        if not self.small.group and self._unseen():
            return pick(call, self.backend).statistics(call.x.detach(), call.mask)
        return _ops.statistics(call.x, call.mask, self.running.mean, self.backend, self.small.group)

    def _fixed(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The running statistics for each channel of each group."""
        mean, var = self.before.mean, self.before.var
        assert self.running.mean is not None, "checked by batch_norm"
        assert mean is not None, "checked by batch_norm"
        assert var is not None, "checked by batch_norm"
        mean, var = as_before(self.running.mean, mean, var, seen)
        groups = self.call.x.shape[1] // max(mean.shape[0], 1)
        return (mean, var) if groups == 1 else (mean.repeat(groups), var.repeat(groups))

    def _by_running(self, seen: Tensor) -> Tensor:
        mean, var = self._fixed(seen)
        running = self.running._replace(mean=mean, var=var, moves=False)
        return self._by(self.call, running, False)

    def _renormalized(self, seen: Tensor) -> Call:
        """``weight r`` and ``bias + weight d``, of which r and d are constants to the gradient.

        ``r = clip(sigma_batch / sigma)`` and ``d = clip((mu_batch - mu) / sigma)``.
        """
        assert self.small.renorm is not None, "asked by the caller"
        r_max, d_max = self.small.renorm
        call, wide = self.call, seen.dtype
        mean, var = (t.detach().to(wide) for t in self._fixed(seen))
        std = (var + call.eps).sqrt()
        r = ((seen[2] + call.eps).sqrt() / std).clamp(1 / r_max, r_max)
        d = ((seen[1] - mean) / std).clamp(-d_max, d_max)
        several = seen[0] > 1
        kept = torch.promote_types(call.x.dtype, torch.float32)
        r, d = torch.where(several, r, 1.0).to(kept), torch.where(several, d, 0.0).to(kept)
        if call.weight is not None:
            weight = call.weight.to(kept)
            r, d = weight * r, weight * d
        return call._replace(weight=r, bias=d if call.bias is None else call.bias.to(kept) + d)
