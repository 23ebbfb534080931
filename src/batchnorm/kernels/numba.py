"""Batch norm on a CPU, compiled by Numba: exact to float64, and one pass over memory fewer.

A channel stays in the cache between statistics and normalization, and between the sums of the
backward pass and the gradient; activation, residual and mask are part of the same pass.
Results have the same bits whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from batchnorm.kernels import _recycled
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call, Gradients
from batchnorm.kernels._layout import layout
from batchnorm.kernels._takes import here as here
from batchnorm.kernels._takes import missing
from batchnorm.kernels._takes import refuses as refuses

if TYPE_CHECKING:
    from batchnorm.kernels._numba_again import Again
    from batchnorm.kernels._numba_running import Mover

name = "numba"


def again(call: Call, fixed: bool) -> Again | None:
    """Both directions of calls that lie like `call`; None where it would need a copy."""
    from batchnorm.kernels._numba_again import Again

    x, residual = call.x, call.residual
    if residual is not None and not _alike(_dense(residual), _dense(x).stride()):
        return None  # its gradient would be copied
    kept = Again(call, fixed)
    return kept if kept.possible() else None


@cache
def _launch() -> Callable[..., None]:
    """The part that needs Numba, imported when first used."""
    from batchnorm.kernels._numba_launch import launch

    return launch


def forward(call: Call, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Normalize with the batch's own statistics; y and the moments."""
    y = _recycled.like(call.x) if out is None else out
    moments = torch.empty_like(_packed(call.x.shape[1]))
    _launch()("forward", call, y.stride(), moments, out=y, measure=True)
    _written(out)
    return y, moments


def statistics(x: Tensor, mask: Tensor | None) -> Tensor:
    """The packed moments of x."""
    moments = torch.empty_like(_packed(x.shape[1]))
    call = Call(x, None, None, None, mask, 0.0, Activation())
    _launch()("forward", call, _dense(x).stride(), moments, measure=True)
    return moments


def normalize(call: Call, moments: Tensor, out: Tensor | None = None) -> Tensor:
    """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``."""
    y = _recycled.like(call.x) if out is None else out
    _launch()("forward", call, y.stride(), moments.contiguous(), out=y)
    _written(out)
    return y


def backward(
    dy: Tensor, call: Call, moments: Tensor, fixed: bool, wanted: tuple[bool, bool]
) -> Gradients:
    """Gradients of `forward`, or of `normalize` where the statistics are `fixed`."""
    x, weight, bias, residual = call[:4]
    dx = _recycled.like(x) if wanted[0] else None
    dresidual = _recycled.like(residual) if wanted[1] and residual is not None else None
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    strides = (_dense(x) if dx is None else dx).stride()
    out_residual = aside = None
    if dresidual is not None and call.mask is None and call.activation.kind == "identity":
        dresidual.copy_(dy)
    elif dresidual is not None and not _alike(dresidual, strides):
        out_residual = aside = torch.empty_like(_dense(x), device=x.device)
    else:
        out_residual = dresidual
    _launch()(
        "backward",
        call,
        strides,
        moments.contiguous(),
        out=dx,
        dy=_in_dtype(dy, x),
        out_residual=out_residual,
        dweight=dweight,
        dbias=dbias,
        measure=not (fixed and weight is None and bias is None),
        fixed=fixed,
    )
    if aside is not None and dresidual is not None:
        dresidual.copy_(aside)
    return Gradients(dx, dweight, dbias, dresidual)


def backward_from_output(
    dy: Tensor,
    call: Call,
    moments: Tensor,
    fixed: bool,
    wanted: tuple[bool, bool],
    out: Tensor | None = None,
) -> Gradients:
    """As `backward`, where ``call.x`` is the output that was written over the input."""
    y, weight, bias = call[:3]
    dx = None
    if wanted[0]:
        dx = _recycled.like(y) if out is None else out
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _launch()(
        "recover",
        call,
        (_dense(y) if dx is None else dx).stride(),
        moments.contiguous(),
        out=dx,
        dy=_in_dtype(dy, y),
        dweight=dweight,
        dbias=dbias,
        measure=not (fixed and weight is None and bias is None),
        fixed=fixed,
    )
    _written(dx if dx is out else None)
    return Gradients(dx, dweight, dbias, None)


def backward_reduce(dy: Tensor, call: Call, moments: Tensor) -> Tensor:
    """``sum(g)`` and ``sum(g xhat)``, shape ``(2, C)``."""
    x = call.x
    sums = torch.empty((2, x.shape[1]), dtype=torch.float64)
    _launch()(
        "backward",
        call,
        _dense(x).stride(),
        moments.contiguous(),
        dy=_in_dtype(dy, x),
        sums=sums,
        measure=True,
    )
    return sums


def backward_input(dy: Tensor, call: Call, moments: Tensor, sums: Tensor) -> Tensor:
    """The gradient of x from sums that may have been merged with those of other processes."""
    x = call.x
    dx = _recycled.like(x)
    _launch()(
        "backward",
        call,
        dx.stride(),
        moments.contiguous(),
        out=dx,
        dy=_in_dtype(dy, x),
        sums=sums.to(torch.float64).contiguous(),
    )
    return dx


def update_running(
    buffers: tuple[Tensor | None, ...], moments: Tensor, momentum: float | None, decay: float = 0.0
) -> bool:
    """Move running statistics towards packed moments, as `batchnorm.functional` defines it.

    Args:
        buffers: mean, variance, the count of batches taken in, and of those kept out.
        moments: of the batch.
        momentum: None for one over the count of batches.
        decay: ``log(1 - momentum)`` for a share corrected for the buffers' first values, else 0.

    Returns:
        Whether it takes these buffers; if not, nothing was done.
    """
    mean, var, *counters = buffers
    mover = mover_of(mean, var, moments, momentum, decay)
    return mover is not None and mover.move(moments.contiguous(), mean, var, *counters)


def mover_of(
    mean: Tensor | None,
    var: Tensor | None,
    moments: Tensor,
    momentum: float | None,
    decay: float = 0.0,
) -> Mover | None:
    """What moves buffers like these, each time; None where none takes them."""
    mover = _mover()
    if mover is None:
        return None
    return mover(mean, var, moments, math.nan if momentum is None else momentum, decay)


@cache
def _mover() -> Callable[..., Mover | None] | None:
    if missing() is not None:
        return None
    from batchnorm.kernels._numba_running import mover

    return mover


def _in_dtype(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` in x's dtype; `Tensor.to` costs most of a microsecond to do nothing."""
    return dy if dy.dtype is x.dtype else dy.to(x.dtype)


@cache
def _packed(channels: int) -> Tensor:
    """What `torch.empty_like` makes room for moments from, in half the time of `torch.empty`."""
    return torch.empty((3, channels), dtype=torch.float64)


def _written(out: Tensor | None) -> None:
    """Autograd must learn of what was overwritten behind its back."""
    if out is not None:
        torch.autograd.graph.increment_version(out)


def _dense(x: Tensor) -> Tensor:
    """A tensor of the strides that ``torch.empty_like(x)`` has, without its memory."""
    return x if x.is_contiguous() else torch.empty_like(x, device="meta")


def _alike(x: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether two tensors without gaps lie the same; sizes of one have any stride."""
    return x.stride() == strides or layout(x.shape, x.stride()) == layout(x.shape, strides)
