"""The whole operation by torch's own kernel, its input centred where digits would be lost."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchnorm.kernels import _native_rows, plain
from batchnorm.kernels._address import check_held
from batchnorm.kernels._call import Call, Gradients
from batchnorm.kernels._native_activation import back, over
from batchnorm.kernels._native_rows import Constants
from batchnorm.moments import per_channel, widest

NEAR = 8.0  # the mean in standard deviations
SMALL, LARGE = 1e-30, 1e30  # eps; the variance


def forward(call: Call, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Normalize with the batch's own statistics; y and the moments."""
    _check_held(call)
    z, moments = _measure(call)
    if z is not None:
        return _finish(call, z, out), moments
    shift = moments[1].to(torch.float32)
    if shift.isfinite().all():
        centred = _centre(call, shift)
        z, rest = _measure(centred)
        if z is not None:
            rest[1] += shift
            return _finish(call, z, out), rest
    return plain.forward(call, out)


def normalize(call: Call, moments: Tensor, out: Tensor | None = None) -> Tensor:
    """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``."""
    _check_held(call)
    served = _served(call, moments)
    if served is None:
        return plain.normalize(call, moments, out)
    return _finish(call, _line_up(served[0], _constants(*served)), out)


def backward_from_output(
    dy: Tensor,
    call: Call,
    moments: Tensor,
    fixed: bool,
    wanted: tuple[bool, bool],
    out: Tensor | None = None,
) -> Gradients:
    """As `backward`, where ``call.x`` is the output that was written over the input."""
    check_held("dy", dy)
    _check_held(call)
    return plain.backward_from_output(dy, call, moments, fixed, wanted, out)


def backward(
    dy: Tensor, call: Call, moments: Tensor, fixed: bool, wanted: tuple[bool, bool]
) -> Gradients:
    """Gradients of `forward`, or of `normalize` where the statistics are `fixed`."""
    check_held("dy", dy)
    _check_held(call)
    served = _served(call, moments)
    if served is None:
        return plain.backward(dy, call, moments, fixed, wanted)
    (x, weight, bias, *_), near = served
    constants = _constants(served[0], near)
    g = dy if call.activation.kind == "identity" else _before(dy, served[0], constants)
    asked = [wanted[0], weight is not None, bias is not None]
    dx, dweight, dbias = (_native_rows.backward if _native_rows.many(x) else _backward)(
        _in(g, x.dtype), x, _parameters(served[0])[0], constants, fixed, call.eps, asked
    )
    dresidual = None
    if wanted[1] and call.residual is not None:
        dresidual = g.clone() if g is dy else g
        dresidual = _alike(dresidual, call.residual)
    return Gradients(
        None if dx is None or not wanted[0] else _alike(dx, call.x),
        None if weight is None else _in(dweight, weight.dtype),
        None if bias is None else _in(dbias, bias.dtype),
        dresidual,
    )


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    constants: Constants,
    fixed: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor, Tensor]:
    """As `_native_rows.backward`, by torch's operator."""
    mean, var, invstd = constants
    return torch.ops.aten.native_batch_norm_backward.default(
        dy, x, weight, mean, var, mean, invstd, not fixed, eps, wanted
    )


def _check_held(call: Call) -> None:
    """Raise where memory was freed, which torch's kernel sees, but not all that is around it."""
    check_held("x", call.x)
    check_held("weight", call.weight)
    check_held("bias", call.bias)
    check_held("residual", call.residual)


def _measure(call: Call) -> tuple[Tensor | None, Tensor]:
    """The line-up by the batch's own statistics, None where digits were lost, and its moments.

    A momentum of 1 leaves the mean and the unbiased variance in the running statistics. On the CPU
    NumPy packs them: on so few numbers in a third of the time of torch's calls.
    """
    x = call.x
    channels = x.shape[1]
    count = x.numel() // channels
    if _native_rows.many(x):
        moments = _native_rows.moments(x)
        near = _near(call, moments)
        return _line_up(call, _constants(call, moments)) if near else None, moments
    if x.is_cpu:
        seen = np.zeros((2, channels), np.float64 if x.dtype is torch.float64 else np.float32)
        mean, var = torch.from_numpy(seen[0]), torch.from_numpy(seen[1])
        z = torch.native_batch_norm(x, *_parameters(call), mean, var, True, 1.0, call.eps)[0]
        packed = np.empty((3, channels))
        packed[0] = count
        packed[1:] = seen
        packed[2] *= (count - 1) / count
        moments = torch.from_numpy(packed)
        return z if _near(call, moments) else None, moments
    mean, var = torch.zeros((2, channels), dtype=width(x), device=x.device).unbind(0)
    z = torch.native_batch_norm(x, *_parameters(call), mean, var, True, 1.0, call.eps)[0]
    moments = torch.stack((mean, mean, var * ((count - 1) / count))).to(widest(x.device))
    moments[0].fill_(count)
    return z, moments


def _near(call: Call, moments: Tensor) -> bool:
    """Whether float32 loses no more than the last digits; only the CPU can tell at once."""
    if not call.x.is_cpu or call.x.dtype is torch.float64:
        return True
    _, mean, var = moments.numpy()
    if not np.maximum.reduce(var) < LARGE or call.eps < SMALL:
        return False
    return bool(np.maximum.reduce(mean * mean - NEAR**2 * var) <= NEAR**2 * call.eps)


def _centre(call: Call, shift: Tensor) -> Call:
    """With `shift` taken off x, which rounds no digit that a mean so far away leaves."""
    return call._replace(x=call.x.to(torch.float32) - per_channel(shift, call.x))


def _served(call: Call, moments: Tensor) -> tuple[Call, Tensor] | None:
    """What torch's kernel is given for x and its mean; None where float32 cannot hold it."""
    if _near(call, moments):
        return call, moments
    shift = moments[1].to(torch.float32)
    rest = moments.clone()
    rest[1] -= shift
    return (_centre(call, shift), rest) if _near(call, rest) else None


def width(x: Tensor) -> torch.dtype:
    """The type in which torch's kernel keeps statistics and takes parameters of such an x."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _in(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`Tensor.to` costs most of a microsecond to do nothing."""
    return t if t.dtype is dtype else t.to(dtype)


def _parameters(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias; torch's backward pass reads a weight as if it were contiguous."""
    wide = width(call.x)
    weight, bias = call.weight, call.bias
    if weight is not None:
        weight = _in(weight, wide)
        weight = weight if weight.is_contiguous() else weight.contiguous()
    return weight, None if bias is None else _in(bias, wide)


def _constants(call: Call, moments: Tensor) -> Constants:
    """Mean, variance and ``1 / sqrt(var + eps)`` as torch's kernel takes them."""
    wide = width(call.x)
    if not call.x.is_cpu or wide is torch.float64:
        mean, var = moments[1].to(wide), moments[2].to(wide)
        return mean, var, (moments[2] + call.eps).rsqrt().to(wide)
    values = moments.numpy()
    made = np.empty((3, values.shape[1]), np.float32)
    made[:2] = values[1:]
    made[2] = 1 / np.sqrt(values[2] + call.eps)
    return torch.from_numpy(made[0]), torch.from_numpy(made[1]), torch.from_numpy(made[2])


def _line_up(call: Call, constants: Constants) -> Tensor:
    """What the residual and the activation are applied to."""
    mean, var, _ = constants
    return torch.native_batch_norm(call.x, *_parameters(call), mean, var, False, 0.0, call.eps)[0]


def _finish(call: Call, z: Tensor, out: Tensor | None) -> Tensor:
    """Add the residual and apply the activation, in z's own fresh memory where that can be."""
    if call.residual is not None:
        z.add_(call.residual)
    y = over(call.activation)(z)
    return _alike(y, call.x) if out is None else out.copy_(y)


def _before(dy: Tensor, call: Call, constants: Constants) -> Tensor:
    """The gradient before the activation; where that is flat it is zero, whatever comes in."""
    z = _line_up(call, constants)
    if call.residual is not None:
        z.add_(call.residual)
    return back(call.activation, _in(dy, z.dtype), z)


def _alike(y: Tensor, x: Tensor) -> Tensor:
    """`y`, which is dense, in the dtype and the strides of ``torch.empty_like(x)``."""
    if y.dtype is x.dtype:
        strides = y.stride()
        if strides == x.stride() or strides == torch.empty_like(x, device="meta").stride():
            return y
    return torch.empty_like(x).copy_(y)
