"""What the derivatives of batch norm are written in, per channel.

``xhat``, ``invstd``, each position's share u (its weight over the count) and two projections

    Q(v) = v - sum(u v) - xhat sum(u v xhat)       a tangent: d xhat = invstd Q(dx)
    P(v) = v - u (sum(v) + xhat sum(v xhat))       its transpose: dx = weight invstd P(g)

with ``z = weight xhat + bias + residual`` and ``g = f'(z) dy``. Under fixed statistics both are
the identity. Everything here is differentiable again, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.functional import _ops
from batchnorm.functional._hidden import mapped_levels
from batchnorm.kernels._activation import Activation
from batchnorm.moments import mask_weight, per_channel


class Quantities:
    """The quantities of one call, from x and its moments."""

    def __init__(self, x: Tensor, moments: Tensor, fixed: bool, arguments: tuple[Any, ...]) -> None:
        weight, bias, residual, mask, eps, code, parameter, _, *group = arguments
        if not fixed:
            _refuse_pooled(x, moments)
        self.wide = wide = moments.dtype
        self.shape_like = x
        self.fixed = fixed
        self.group: str = group[0] if group else ""
        self.dims = [d for d in range(x.dim()) if d != 1]
        self.valid = None if mask is None else mask > 0
        x = self.inside(x.to(wide))
        count, mean, var = (per_channel(row, x) for row in moments.unbind(0))
        weights = 1.0 if mask is None else mask_weight(mask, wide)
        self.share = weights / torch.where(count > 0, count, 1.0)
        if not fixed:  # again, and not from moments, for derivatives of these derivatives
            mean = self.whole(self.share * x)
            var = self.whole(self.share * (x - mean).square())
        self.invstd = (var + eps).rsqrt()
        self.xhat = self.inside((x - mean) * self.invstd)
        self.weight = torch.ones_like(mean) if weight is None else self.channel(weight)
        z = self.xhat * self.weight
        if bias is not None:
            z = z + self.channel(bias)
        if residual is not None:
            z = z + residual.to(wide)
        self.z = self.inside(z)
        self.activation = Activation.from_code(code, parameter)
        self.slope = self.activation.slope(self.z)

    def channel(self, v: Tensor) -> Tensor:
        """In the wide type, along the channel axis."""
        return per_channel(v.to(self.wide), self.shape_like)

    def inside(self, v: Tensor) -> Tensor:
        """In the wide type, zero where the mask leaves positions out."""
        v = v.to(self.wide)
        return v if self.valid is None else torch.where(self.valid, v, 0.0)

    def total(self, v: Tensor) -> Tensor:
        """The sum over all but the channels."""
        return v.sum(self.dims, keepdim=True)

    def whole(self, v: Tensor) -> Tensor:
        """The sum over all values that share their statistics, those of other ranks included."""
        own = self.total(v)
        return _ops.total(own, self.group) if self.group else own

    def q(self, v: Tensor) -> Tensor:
        """The projection Q."""
        if self.fixed:
            return v
        u = v * self.share
        return self.inside(v - self.whole(u) - self.xhat * self.whole(u * self.xhat))

    def p(self, v: Tensor) -> Tensor:
        """The projection P."""
        if self.fixed:
            return v
        return v - self.share * (self.whole(v) + self.xhat * self.whole(v * self.xhat))

    def tangents(self, dx: Any, dweight: Any, dbias: Any, dresidual: Any) -> tuple[Tensor, Tensor]:
        """Of xhat and of z."""
        dxhat = torch.zeros_like(self.xhat)
        if dx is not None:
            dxhat = self.invstd * self.q(self.inside(dx))
        dz = self.weight * dxhat
        if dweight is not None:
            dz = dz + self.channel(dweight) * self.xhat
        if dbias is not None:
            dz = dz + self.channel(dbias)
        if dresidual is not None:
            dz = dz + dresidual
        return dxhat, self.inside(dz)


def _refuse_pooled(x: Tensor, moments: Tensor) -> None:
    """Sums over one example are no statistics of those that `torch.vmap` pooled."""
    if mapped_levels(x) - mapped_levels(moments):
        raise NotImplementedError(
            "batch norm in training under vmap around forward-mode or second derivatives "
            "(vmap(jvp), vmap(hessian)) is not supported where the mapped examples share their "
            "statistics; differentiate the mapped function instead: jvp(vmap(f)), hessian(vmap(f))"
        )
