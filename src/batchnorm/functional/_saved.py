"""What autograd kept for a gradient, as it comes back: it fits the kernels that read it, or raises.

Hooks for saved tensors may return another dtype, device or shape than they were given, and so may
a parameter whose ``.data`` was set meanwhile: torch counts neither as a change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks

from batchnorm.moments import widest

_top: Callable[[bool], Any] = _top_saved_tensors_default_hooks
_WIDE = torch.float64
_PARAMETERS = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


class Saved(NamedTuple):
    """Tensors of a forward call that its gradients need."""

    x: Tensor
    moments: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None = None
    mask: Tensor | None = None


def hooked() -> bool:
    """Whether what is saved now passes through `torch.autograd.graph.saved_tensors_hooks`."""
    return _top(True) is not None


def restored(
    dy: Tensor, saved: Saved, axis: int = 1, residual_dtype: torch.dtype | None = None
) -> Saved:
    """`saved` in the dtypes that kernels expect.

    Args:
        dy: the gradient of the output, whose shape, dtype and device autograd vouches for.
        saved: what came back.
        axis: where the channels are.
        residual_dtype: the residual's; None for as it came back.

    Raises:
        RuntimeError: one of them has another shape or device than what was saved.
    """
    x, moments, weight, bias, residual, mask = saved
    shape = dy.shape
    channels = (shape[axis],)
    if (
        (residual is None and mask is None)
        and (x.dtype is dy.dtype and moments.dtype is _WIDE)
        and (x.shape == shape and moments.shape == (3, *channels))
        and (x.is_cpu and dy.is_cpu and moments.is_cpu)
        and (weight is None or (weight.shape == channels and _read(weight)))
        and (bias is None or (bias.shape == channels and _read(bias)))
    ):
        return saved
    _check("x", x, shape, dy)
    _check("moments", moments, (3, *channels), dy)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check(name, parameter, channels, dy)
    if residual is not None:
        _check("residual", residual, shape, dy)
        residual = residual.to(residual_dtype or residual.dtype)
    if mask is not None:
        sizes = zip(mask.shape, shape, strict=False)
        fits = mask.dim() == len(shape) and all(size in (1, whole) for size, whole in sizes)
        _check("mask", mask, mask.shape if fits else (shape[0], 1, *shape[2:]), dy)
    x, moments = x.to(dy.dtype), moments.to(widest(dy.device))
    return saved._replace(x=x, moments=moments, residual=residual)


def _read(parameter: Tensor) -> bool:
    return parameter.is_cpu and parameter.dtype in _PARAMETERS


def _check(name: str, t: Tensor, shape: tuple[int, ...], dy: Tensor) -> None:
    kind = name == "mask" or t.dtype.is_floating_point
    if t.shape == shape and t.device == dy.device and kind:
        return
    raise RuntimeError(
        f"what batch norm saved for its gradient came back as {name} of shape {tuple(t.shape)}, "
        f"{t.dtype} on {t.device}; expected shape {tuple(shape)}, a floating dtype on {dy.device}: "
        f"hooks for saved tensors must return what they were given, and a parameter must keep its "
        f"shape, dtype and device until the backward pass"
    )
