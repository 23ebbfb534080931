"""By torch's own operators, which exporters and compiled evaluation know, fuse and fold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from batchnorm.functional._running import Running
from batchnorm.kernels._call import Call


def wanted(call: Call, running: Running, training: bool) -> bool:
    """Whether this call goes into somebody else's graph, and torch's operator computes it."""
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if call.mask is not None or not (traced or torch.compiler.is_compiling()):
        return False
    if not training:
        return not running.moves
    if running.moves and (running.momentum is None or running.bias_correction):
        return False
    return traced and (
        running.mean is None or running.mean.dtype == _one_dtype(call.x, running.mean)
    )


def batch_norm(call: Call, running: Running, training: bool) -> Tensor:
    """The call as torch's batch norm, the residual and the activation, one after another."""
    if running.moves and running.batches is not None:
        running.batches.add_(1)
    x, residual = call.x, call.residual
    wide = _one_dtype(x, running.mean)
    mean, var = running.mean, running.var
    if training and not running.moves:
        mean = var = None
    elif not training:
        mean, var = _as(wide, mean), _as(wide, var)
    share = 0.0 if running.momentum is None else running.momentum
    z = F.batch_norm(
        x.to(wide) if x.dtype.itemsize >= 4 and x.dtype != wide else x,
        mean,
        var,
        _as(wide, call.weight),
        _as(wide, call.bias),
        training,
        share,
        call.eps,
    )
    y = call.activation.value(z if residual is None else z + residual)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _one_dtype(x: Tensor, mean: Tensor | None) -> torch.dtype:
    """Torch's kernels take one dtype for all, or half precision x with float32 for the others."""
    if x.dtype.itemsize < 4:
        return torch.float32
    return x.dtype if mean is None or mean.dtype.itemsize < x.dtype.itemsize else mean.dtype


def _as(dtype: torch.dtype, t: Tensor | None) -> Tensor | None:
    """Without a node in the graph where there is nothing to cast."""
    return t if t is None or t.dtype == dtype else t.to(dtype)
