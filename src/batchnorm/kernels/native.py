"""Torch's own kernel: quick on CUDA and MPS, and on a CPU without Numba.

It sums in float32, so that it loses the digits that a distant mean takes. On the CPU, where looking
costs little, a call with such a channel gets its input centred first; what float32 cannot hold is
left to `plain`.
"""

from __future__ import annotations

import torch

from batchnorm.kernels import numba
from batchnorm.kernels._call import Call
from batchnorm.kernels._native_again import Again
from batchnorm.kernels._native_step import step_of as step_of
from batchnorm.kernels._native_whole import backward as backward
from batchnorm.kernels._native_whole import backward_from_output as backward_from_output
from batchnorm.kernels._native_whole import forward as forward
from batchnorm.kernels._native_whole import normalize as normalize
from batchnorm.kernels.plain import backward_input as backward_input
from batchnorm.kernels.plain import backward_reduce as backward_reduce
from batchnorm.kernels.plain import statistics as statistics

name = "native"

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


def again(call: Call, fixed: bool) -> Again:
    """Both directions of calls that lie like `call`."""
    return Again(call, fixed)
