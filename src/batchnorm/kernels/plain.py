"""Plain torch operations, on any device and dtype: the definition that every kernel is tested by.

Everything is computed in the widest type of the device and rounded once, at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels._call import Call, Gradients
from batchnorm.moments import Moments, mask_weight, per_channel

name = "plain"


def here() -> tuple[bool, str]:
    """It runs anywhere."""
    return (
        True,
        "whatever the others leave: torch's plain operations, in float64 where there is one",
    )


def refuses(call: Call) -> str | None:
    """Takes every call."""
    return None


def again(call: Call, fixed: bool) -> None:
    """What is computed step by step has no shorter way."""


def forward(call: Call, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Normalize with the batch's own statistics; y and the moments."""
    moments = statistics(call.x, call.mask)
    return normalize(call, moments, out), moments


def statistics(x: Tensor, mask: Tensor | None) -> Tensor:
    """The packed moments of x."""
    return Moments.of(x, mask).pack()


def normalize(call: Call, moments: Tensor, out: Tensor | None = None) -> Tensor:
    """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``."""
    y = call.activation.value(_before_activation(call, _standardize(call, moments)))
    if call.mask is not None:
        y = torch.where(call.mask > 0, y, 0.0)
    return _like(y, call.x) if out is None else out.copy_(y)


def backward(
    dy: Tensor, call: Call, moments: Tensor, fixed: bool, wanted: tuple[bool, bool]
) -> Gradients:
    """``dx = weight invstd (g - w (sum(g) + xhat sum(g xhat)) / count)``.

    g is the gradient before the activation, w the mask's weight of a position (1 without a
    mask). Fixed statistics do not depend on x: the sums drop out.
    """
    return _gradients(dy, call, moments, _standardize(call, moments), fixed, wanted)


def backward_from_output(
    dy: Tensor,
    call: Call,
    moments: Tensor,
    fixed: bool,
    wanted: tuple[bool, bool],
    out: Tensor | None = None,
) -> Gradients:
    """As `backward`, from ``xhat = (f^-1(y) - bias) / weight`` with y for ``call.x``."""
    xhat = call.activation.inverse(call.x.to(moments.dtype))
    if call.bias is not None:
        xhat = xhat - per_channel(call.bias.to(xhat.dtype), xhat)
    if call.weight is not None:
        xhat = xhat / per_channel(call.weight.to(xhat.dtype), xhat)
    gradients = _gradients(dy, call, moments, xhat, fixed, wanted)
    if out is None or gradients.x is None:
        return gradients
    return gradients._replace(x=out.copy_(gradients.x))


def _gradients(
    dy: Tensor, call: Call, moments: Tensor, xhat: Tensor, fixed: bool, wanted: tuple[bool, bool]
) -> Gradients:
    g = _before(dy, call, xhat)
    sums = _sums(g, xhat)
    dx = dresidual = None
    if wanted[0]:
        dx = _input(g, call, moments, xhat, torch.zeros_like(sums) if fixed else sums)
    if wanted[1] and call.residual is not None:
        dresidual = _like(g, call.residual)
    dbias, dweight = sums.unbind(0)
    return Gradients(
        dx,
        None if call.weight is None else dweight.to(call.weight.dtype, copy=True),
        None if call.bias is None else dbias.to(call.bias.dtype, copy=True),
        dresidual,
    )


def backward_reduce(dy: Tensor, call: Call, moments: Tensor) -> Tensor:
    """``sum(g)`` and ``sum(g xhat)``, shape ``(2, C)``."""
    xhat = _standardize(call, moments)
    return _sums(_before(dy, call, xhat), xhat)


def backward_input(dy: Tensor, call: Call, moments: Tensor, sums: Tensor) -> Tensor:
    """The gradient of x from sums that may have been merged with those of other processes."""
    xhat = _standardize(call, moments)
    return _input(_before(dy, call, xhat), call, moments, xhat, sums)


def _standardize(call: Call, moments: Tensor) -> Tensor:
    """xhat, zero where the mask is."""
    xhat = (call.x.to(moments.dtype) - per_channel(moments[1], call.x)) * _invstd(call, moments)
    return xhat if call.mask is None else torch.where(call.mask > 0, xhat, 0.0)


def _invstd(call: Call, moments: Tensor) -> Tensor:
    return (per_channel(moments[2], call.x) + call.eps).rsqrt()


def _before_activation(call: Call, xhat: Tensor) -> Tensor:
    z = xhat
    if call.weight is not None:
        z = z * per_channel(call.weight.to(z.dtype), z)
    if call.bias is not None:
        z = z + per_channel(call.bias.to(z.dtype), z)
    if call.residual is not None:
        z = z + call.residual.to(z.dtype)
    return z


def _before(dy: Tensor, call: Call, xhat: Tensor) -> Tensor:
    """g, the gradient before the activation."""
    g = dy.to(xhat.dtype)
    if call.activation.kind != "identity":
        slope = call.activation.slope(_before_activation(call, xhat))
        g = torch.where(slope != 0, g * slope, 0.0)  # an infinite gradient stops where ReLU is 0
    return g if call.mask is None else torch.where(call.mask > 0, g, 0.0)


def _sums(g: Tensor, xhat: Tensor) -> Tensor:
    dims = [d for d in range(g.dim()) if d != 1]
    return torch.stack((g.sum(dims), (g * xhat).sum(dims)))


def _input(g: Tensor, call: Call, moments: Tensor, xhat: Tensor, sums: Tensor) -> Tensor:
    scale = _invstd(call, moments)
    if call.weight is not None:
        scale = scale * per_channel(call.weight.to(scale.dtype), g)
    count = moments[0].clamp(min=1e-300 if moments.dtype == torch.float64 else 1e-30)
    first, second = (per_channel(row / count, g) for row in sums.unbind(0))
    pull = first + xhat * second
    if call.mask is not None:
        pull = pull * mask_weight(call.mask, pull.dtype)
    return _like((g - pull) * scale, call.x)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """`values` in x's dtype and in the strides of ``torch.empty_like(x)``."""
    return torch.empty_like(x).copy_(values)
