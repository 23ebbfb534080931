"""Normalizing in place: the output over the input, and when x-hat can be had back from it.

Backward needs ``xhat = (f^-1(y) - bias) / weight``, and y was rounded. Rounding moves xhat by about
``eps (|xhat| + |bias / weight|)``, and through ELU by ``eps exp(-z) / |weight|``. The limits below
keep gradients within 1e-5 of the largest ``scale g`` in float32, and in half precision within what
rounding the output twice would do: where dx is a small difference of such terms, as of a loss that
only asks for small outputs, its digits are theirs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from batchnorm.kernels import numba
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Backend, Call
from batchnorm.kernels._layout import layout

if TYPE_CHECKING:
    from batchnorm.kernels._numba_over import Over

KINDS = ("identity", "leaky_relu", "elu")

_SHIFTED = {2: 1.0, 4: 16.0, 8: 16.0}  # |bias / weight| over the spread of xhat
_SATURATED = 256.0  # exp(-z) / |weight|
_SURELY = 1 - 1e-6  # of a limit that is computed in another order


def recoverable(
    weight: Tensor | None, bias: Tensor | None, activation: Activation, dtype: torch.dtype
) -> str | None:
    """Why the input could not be had back from the output, as far as parameters tell.

    Args:
        weight: gamma, ``(C,)`` or None for ones.
        bias: beta, ``(C,)`` or None for zeros.
        activation: one with an inverse.
        dtype: of the output.

    Returns:
        None if it can be had back, else the reason; `forward` knows the statistics and asks again.
    """
    return _undone(weight, activation, dtype) or _shifted(weight, bias, 1.0, dtype)


def _undone(weight: Tensor | None, activation: Activation, dtype: torch.dtype) -> str | None:
    """Why the activation or the weight could not be undone."""
    sizes = _sizes(activation, dtype)
    if isinstance(sizes, str):
        return sizes
    least, most = sizes
    low, high = (1.0, 1.0) if weight is None else _range(weight)
    if not least <= low <= high <= most:
        value, words = (high, f"at most {most:.1e}") if high > most else (low, f"{least:.1e}")
        return (
            f"a weight of {value:g} cannot be undone in {dtype} under {activation}: its size "
            f"must be {words if high > most else 'at least ' + words}"
        )
    return None


def _sizes(activation: Activation, dtype: torch.dtype) -> tuple[float, float] | str:
    """The least and the largest size of a weight, or why none can be undone."""
    steepness = _steepness(activation)
    if isinstance(steepness, str):
        return steepness
    if activation.kind == "elu" and dtype.itemsize == 2:
        return f"{activation} in {dtype} saturates too soon to be undone; use float32"
    limits = torch.finfo(dtype)
    return max(limits.tiny, 1e-30) / min(steepness, 1), limits.max / 1024 / max(steepness, 1)


def gaps(x: Tensor) -> str | None:
    """Why `x` cannot be an output, which fills its memory and holds each element once."""
    if x.is_contiguous() or x.stride() == torch.empty_like(x, device="meta").stride():
        return None
    return f"x of shape {tuple(x.shape)} and strides {x.stride()} has gaps or overlaps itself"


def again(backend: Backend, call: Call, fixed: bool) -> Over | None:
    """Both directions of calls that lie like `call`; None where there is no shorter way.

    What it is sure of `forward` would find, too: its limits are a hair stricter, by more than
    rounding.
    """
    x, weight, bias, residual, mask, eps, f = call
    sizes = _sizes(f, x.dtype)
    if backend is not numba or isinstance(sizes, str) or x.numel() == 0 or gaps(x) is not None:
        return None
    if residual is not None or mask is not None:
        return None
    from batchnorm.kernels._numba_limits import Limits
    from batchnorm.kernels._numba_over import Over

    kinds = None if weight is None else weight.dtype, None if bias is None else bias.dtype
    shifted = _SURELY * _SHIFTED[x.dtype.itemsize]
    saturated = _SURELY * _SATURATED if f.kind == "elu" else 0.0
    lies = layout(x.shape, x.stride())
    return Over(call, fixed, Limits(lies, *kinds, eps, sizes, shifted, saturated, x.dtype))


def forward(
    backend: Backend, call: Call, moments: Tensor | None = None, own: Tensor | None = None
) -> Tensor | str:
    """Write the output over ``call.x``, if the input can be had back from it.

    Args:
        backend: which one computes.
        call: what; `Backend.backward_from_output` takes it again with the output as x.
        moments: those to normalize with, packed; None for the batch's own. With a weight that
            requires a gradient x is read once more, for its own spread.
        own: the batch's own, if they are known.

    Returns:
        The moments; or the reason why nothing was written.
    """
    x, weight, bias, residual, mask, eps, activation = call
    if residual is not None or mask is not None:
        what = "residual" if mask is None else "mask"
        return f"with a {what} the input cannot be had back from the output alone"
    reason = gaps(x) or _undone(weight, activation, x.dtype)
    if reason is not None:
        return reason
    if moments is None:
        if bias is None and activation.kind != "elu":
            return backend.forward(call, out=x)[1]
        moments = backend.statistics(x, None) if own is None else own
        reason = _shifted(weight, bias, _spread(moments, eps) if x.numel() else math.inf, x.dtype)
    else:
        reason = _shifted(weight, bias, 1.0, x.dtype)
        if reason is None and weight is not None and weight.requires_grad and x.numel():
            reason = _far(call, moments, backend.statistics(x, None))
    if reason is None and activation.kind == "elu" and x.numel():
        reason = _saturated(call, moments)
    if reason is not None:
        return reason
    backend.normalize(call, moments, out=x)
    return moments


def _steepness(activation: Activation) -> float | str:
    """The slope below zero at its least flat, or why there is no inverse."""
    if activation.kind not in KINDS:
        return f"{activation} cannot be undone; in place takes {', '.join(KINDS)}"
    if activation.kind == "identity":
        return 1.0
    if not 0 < activation.parameter < math.inf:
        return f"{activation} cannot be undone: its parameter must be above zero"
    return activation.parameter


def _range(weight: Tensor) -> tuple[float, float]:
    """The least and the largest size; NaN if one is NaN."""
    if weight.numel() == 0:
        return 1.0, 1.0
    low, high = weight.detach().abs().aminmax()
    return float(low), float(high)


def _spread(moments: Tensor, eps: float) -> float:
    """The largest spread of xhat in any channel; NaN where no variance is finite.

    A channel whose variance is not has no digits to be lost.
    """
    finite = moments[2][moments[2].isfinite()]
    var = float(finite.amax()) if finite.numel() else math.nan
    return math.sqrt(var / (var + eps))


def _beyond(values: Tensor, most: Tensor | float) -> int | None:
    """The first channel whose value is above its limit, or NaN."""
    good = values <= most
    return None if good.all() else int(good.to(torch.uint8).argmin())


def _shifted(
    weight: Tensor | None, bias: Tensor | None, spread: float, dtype: torch.dtype
) -> str | None:
    """Whether the bias hides what varies, given the largest spread of xhat in any channel."""
    if bias is None:
        return None
    most = _SHIFTED[dtype.itemsize] * spread
    size = _widened(bias).abs()
    c = _beyond(size, most if weight is None else _widened(weight).abs() * most)
    if c is None:
        return None
    return (
        f"in channel {c} a bias of {float(bias[c]):g} is more than {most:.2g} times the weight "
        f"{1.0 if weight is None else float(weight[c]):g}: rounding to {dtype} would lose the "
        f"input's digits"
    )


def _widened(parameter: Tensor) -> Tensor:
    return parameter.detach() if parameter.itemsize > 2 else parameter.detach().float()


def _line(call: Call, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``1 / sqrt(var + eps)``, gamma and beta, of each channel."""
    invstd = (moments[2] + call.eps).rsqrt()
    gamma = torch.ones_like(invstd) if call.weight is None else call.weight.detach().to(invstd)
    beta = torch.zeros_like(invstd) if call.bias is None else call.bias.detach().to(invstd)
    return invstd, gamma, beta


def _far(call: Call, moments: Tensor, own: Tensor) -> str | None:
    """Whether z lies so far from zero that what varies in it is hidden, its statistics being fixed.

    Those say nothing of this x. Only the gradient of weight needs x-hat then.
    """
    invstd, gamma, beta = _line(call, moments)
    centre = ((own[1] - moments[1]) * invstd + beta / gamma).abs()
    spread = own[2].sqrt() * invstd
    c = _beyond(centre, _SHIFTED[call.x.dtype.itemsize] * spread.amax())
    if c is None:
        return None
    return (
        f"in channel {c} this input comes out {float(centre[c]):.3g} times the weight from zero, "
        f"and varies by {float(spread[c]):.2g} times it: rounding to {call.x.dtype} would lose the "
        f"digits that the weight's gradient needs"
    )


def _saturated(call: Call, moments: Tensor) -> str | None:
    """Whether ELU came so near ``-alpha`` that its argument is lost."""
    x = call.x.detach()
    dims = [d for d in range(x.dim()) if d != 1]
    invstd, gamma, beta = _line(call, moments)
    ends = torch.stack((x.amin(dims), x.amax(dims))).to(invstd)
    z = ((ends - moments[1]) * invstd * gamma).amin(0) + beta
    c = _beyond((-z).exp(), _SATURATED * gamma.abs())
    if c is None:
        return None
    return (
        f"in channel {c} {call.activation} of {float(z[c]):.3g} is too near its limit to be undone "
        f"(weight {float(gamma[c]):g})"
    )
