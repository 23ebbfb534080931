"""Torch's own kernel: quick on CUDA and MPS, and on a CPU without Numba.

It sums in float32, so that it loses the digits that a distant mean takes. On the CPU, where looking
costs little, calls with such a channel are left to `plain`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchnorm.kernels import numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call, Gradients
from batchnorm.kernels.plain import backward_from_output as backward_from_output
from batchnorm.kernels.plain import backward_input as backward_input
from batchnorm.kernels.plain import backward_reduce as backward_reduce
from batchnorm.kernels.plain import statistics as statistics
from batchnorm.moments import widest

name = "native"

_NEAR, _LARGE = 8.0, 1e30  # the mean in standard deviations; the variance
_MOST = 2**31  # elements: beyond it the kernels' 32-bit indices end


def here() -> tuple[bool, str]:
    """Whether it is chosen by itself on this machine, and for what or why not."""
    devices = [
        name
        for name, there in (
            ("CUDA", torch.cuda.is_available()),
            ("MPS", torch.backends.mps.is_available()),
        )
        if there
    ]
    devices += [] if numba.here()[0] else ["the CPU"]
    if devices:
        return True, f"tensors on {' and '.join(devices)} without a mask"
    return False, "no CUDA and no MPS here; on the CPU Numba comes first"


def refuses(call: Call) -> str | None:
    """Takes tensors without a mask on CUDA, MPS and the CPU."""
    x, residual = call.x, call.residual
    device = x.device.type
    if device not in ("cpu", "cuda", "mps"):
        return f"it serves the CPU, CUDA and MPS, and x is on {x.device}"
    if call.mask is not None:
        return "torch's kernel has no mask"
    if residual is not None and residual.dtype is not x.dtype:
        return f"it takes a residual of x's dtype {x.dtype}, and that is {residual.dtype}"
    if x.numel() < 2 * x.shape[1] or x.shape[1] == 0:
        return f"torch's kernel needs two values a channel, and x has shape {tuple(x.shape)}"
    if x.numel() >= _MOST:
        return f"torch's kernel counts with 32 bits, and x has {x.numel()} elements"
    if device == "mps" and not (x.is_contiguous() and x.storage_offset() == 0):
        return "torch's kernel on MPS gives wrong gradients unless x is contiguous from the start"
    return None


def forward(call: Call, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Normalize with the batch's own statistics; y and the moments."""
    x = call.x
    count = x.numel() // x.shape[1]
    # a momentum of 1 leaves the mean and the unbiased variance in the running statistics
    mean, var = torch.zeros((2, x.shape[1]), dtype=_wide(x), device=x.device).unbind(0)
    z = torch.native_batch_norm(x, *_parameters(call), mean, var, True, 1.0, call.eps)[0]
    moments = torch.stack((mean, mean, var * ((count - 1) / count))).to(widest(x.device))
    moments[0].fill_(count)
    if _far(call, moments):
        return plain.forward(call, out)
    return _finish(call, z, out), moments


def normalize(call: Call, moments: Tensor, out: Tensor | None = None) -> Tensor:
    """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``."""
    if _far(call, moments):
        return plain.normalize(call, moments, out)
    return _finish(call, _line_up(call, moments), out)


def backward(
    dy: Tensor, call: Call, moments: Tensor, fixed: bool, wanted: tuple[bool, bool]
) -> Gradients:
    """Gradients of `forward`, or of `normalize` where the statistics are `fixed`."""
    if _far(call, moments):
        return plain.backward(dy, call, moments, fixed, wanted)
    x, weight, bias, residual = call[:4]
    g = dy if call.activation.kind == "identity" else _before(dy, call, moments)
    mean, var = moments[1].to(_wide(x)), moments[2].to(_wide(x))
    invstd = (moments[2] + call.eps).rsqrt().to(_wide(x))
    mask = [wanted[0], weight is not None, bias is not None]
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        g.to(x.dtype), x, _parameters(call)[0], mean, var, mean, invstd, not fixed, call.eps, mask
    )
    return Gradients(
        _alike(dx, x) if wanted[0] else None,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        torch.empty_like(residual).copy_(g) if wanted[1] and residual is not None else None,
    )


def _far(call: Call, moments: Tensor) -> bool:
    """Whether float32 would lose more than the last digits; only the CPU can tell at once."""
    if not call.x.is_cpu or call.x.dtype is torch.float64:
        return False
    _, mean, var = moments.numpy()  # a third of the time of torch's calls on so few numbers
    near = (np.abs(mean) <= _NEAR * np.sqrt(var + call.eps)) & (var < _LARGE)
    return not near.all()


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _parameters(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias; torch's backward pass reads a weight as if it were contiguous."""
    wide = _wide(call.x)
    weight, bias = call.weight, call.bias
    weight = None if weight is None else weight.to(wide).contiguous()
    return weight, None if bias is None else bias.to(wide)


def _line_up(call: Call, moments: Tensor) -> Tensor:
    """What the residual and the activation are applied to."""
    mean, var = moments[1].to(_wide(call.x)), moments[2].to(_wide(call.x))
    return torch.native_batch_norm(call.x, *_parameters(call), mean, var, False, 0.0, call.eps)[0]


def _finish(call: Call, z: Tensor, out: Tensor | None) -> Tensor:
    y = call.activation.value(z if call.residual is None else z + call.residual)
    return _alike(y, call.x) if out is None else out.copy_(y)


def _before(dy: Tensor, call: Call, moments: Tensor) -> Tensor:
    """The gradient before the activation; where that is flat it is zero, whatever comes in."""
    z = _finish(call._replace(activation=Activation()), _line_up(call, moments), None)
    if call.activation.kind == "relu":
        return torch.ops.aten.threshold_backward(dy.to(z.dtype), z, 0)
    slope = call.activation.slope(z)
    return torch.where(slope != 0, dy * slope, 0.0)


def _alike(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the strides of ``torch.empty_like(x)``."""
    like = torch.empty_like(x, device="meta")
    return y if y.stride() == like.stride() else torch.empty_like(x).copy_(y)
