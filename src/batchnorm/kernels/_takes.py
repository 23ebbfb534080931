"""What the kernels compiled by Numba take, and why not the rest."""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor

from batchnorm.kernels._call import Call
from batchnorm.kernels._imported import imported
from batchnorm.kernels._processor import has

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)
_COMPILED = tuple(f"batchnorm.kernels._numba_{n}" for n in ("over", "limits", "running", "release"))


@cache
def missing() -> str | None:
    """Why there is no Numba, if there is none, or why it cannot compile the kernels here."""
    try:
        imported("numba", *_COMPILED)
        half = has("f16c")
    except ImportError as error:
        return f"Numba cannot be imported ({error}); install it with: pip install numba"
    if platform.machine().lower() in ("x86_64", "amd64") and not half:
        # LLVM would call a function for half precision that is not there, and end the process
        return "its kernels need a processor with F16C (those since 2013 have it)"
    return None


def here() -> tuple[bool, str]:
    """Whether Numba is installed, and where compiled code is kept."""
    reason = missing()
    if reason is not None:
        return False, reason
    from batchnorm.kernels._numba_compile import cache_folder

    folder = cache_folder()
    kept = f"kept in {folder}" if folder else "kept nowhere, for want of a folder to write to"
    return True, f"tensors on the CPU; compiled code is {kept}"


def refuses(call: Call) -> str | None:
    """Takes dense tensors of the four common floating types on the CPU."""
    x, residual = call.x, call.residual
    if x.device.type != "cpu":
        return f"it computes on the CPU, and x is on {x.device}"
    if type(x) not in _PLAIN:
        return f"it takes plain tensors, and x is a {type(x).__name__}"
    if x.layout is not torch.strided:
        return f"it takes strided tensors, and x is {x.layout}"
    if x.dtype not in DTYPES:
        return f"it has no kernel for x of {x.dtype}"
    if residual is not None and residual.dtype is not x.dtype:
        return f"it takes a residual of x's dtype {x.dtype}, and that is {residual.dtype}"
    if call.mask is not None and call.mask.shape[1] != 1:
        return "it takes masks that are the same for all channels"
    for part in (call.weight, call.bias):
        if part is not None and part.dtype not in DTYPES:
            return f"it has no kernel for weight or bias of {part.dtype}"
    return missing()
