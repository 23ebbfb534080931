"""What bad input gets: an error that names the thing, its value, what was expected, the way out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from batchnorm.functional._check_kinds import (
    FLOATING,
    check_share,
    check_tensors,
    no_eps,
    no_tensor,
)
from batchnorm.functional._hidden import hidden, pools, whole_shape
from batchnorm.functional._running import Running
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._in_place import KINDS as INVERTIBLE
from batchnorm.moments import widest


def check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Running,
    training: bool,
    eps: float,
    axis: int,
    several: bool,
) -> None:
    """Check the arguments of `batch_norm`, x's channels being on axis 1 by now.

    In training they must have `several` values each, unless these are counted elsewhere.
    """
    running_mean, running_var = running.mean, running.var
    if x.dtype not in FLOATING or x.layout != torch.strided:
        raise TypeError(
            f"x has dtype {x.dtype} and layout {x.layout}; expected a "
            f"strided tensor of float64, float32, bfloat16 or float16: convert it first, such as "
            f"x.float() or x.to_dense()"
        )
    if x.dim() < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected at least a batch and a channel axis, (N, C): "
            f"x.unsqueeze(0) adds a batch axis"
        )
    try:
        _check_channel_values(x, running_mean, running_var, weight, bias, axis)
        good = 0 < eps < math.inf and eps is not True
    except (AttributeError, TypeError):
        named = {"running_mean": running_mean, "running_var": running_var}
        check_tensors(f"({x.shape[1]},)", **named, weight=weight, bias=bias)
        good = False
    if not good:
        raise no_eps("eps", eps)
    if training:
        if several:
            _check_several(x, axis, weight, bias, running_mean)
    elif running_mean is None or running_var is None:
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(
            f"{missing}=None with training=False; evaluation normalizes with running "
            f"statistics: give both, or training=True to use the batch's own"
        )


def _check_channel_values(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: int,
) -> None:
    """One of a floating type for each channel; running ones without a gradient."""
    channels, device = x.shape[1], x.device
    for value in (running_mean, running_var, weight, bias):
        if value is not None and (
            value.dim() != 1
            or value.numel() != channels
            or value.dtype not in FLOATING
            or value.device != device
        ):
            _raise_for_channel_values(x, running_mean, running_var, weight, bias, axis)
    for running in (running_mean, running_var):
        if running is not None and running.requires_grad:
            name = "running_mean" if running is running_mean else "running_var"
            raise ValueError(
                f"{name} requires a gradient, which batch norm has none for; expected a "
                f"buffer: {name}.detach()"
            )


def check_residual(x: Tensor, residual: Any) -> None:
    """Check what is added to the output."""
    if not isinstance(residual, Tensor):
        raise no_tensor("residual", residual, f"a tensor of x's shape {tuple(x.shape)}")
    if residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}; expected that of x, {tuple(x.shape)}"
        )
    if residual.dtype not in FLOATING or residual.device != x.device:
        raise _wrong_kind("residual", residual, x)


def _check_several(x: Tensor, axis: int, *own: Tensor | None) -> None:
    if one_value_a_channel(x, *own):
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size "
            f"{shown(x, axis)}: the variance of one value is zero; use larger batches, drop the "
            f"last partial one (DataLoader(drop_last=True)), evaluate with running statistics, or "
            f'say what one value gets: one_value="running" or "beta"'
        )


def one_value_a_channel(x: Tensor, *own: Tensor | None) -> bool:
    """Whether there is nothing to take a variance of, members with their `own` values apart."""
    channels = x.shape[1]
    if not channels or x.numel() != channels:
        return False
    return whole_shape(x).numel() == channels or not pools(x, *own)


def _raise_for_channel_values(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: int,
) -> None:
    named = (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    )
    for name, value in named:
        if value is not None:
            if value.shape != x.shape[1:2]:
                raise _wrong_shape(name, value, x, axis)
            if value.dtype not in FLOATING or value.device != x.device:
                raise _wrong_kind(name, value, x)


def _wrong_shape(name: str, value: Tensor, x: Tensor, axis: int) -> ValueError:
    channels = x.shape[1]
    return ValueError(
        f"{name} has shape {tuple(value.shape)}; expected ({channels},), one value for each of the "
        f"{channels} channels of x with shape {shown(x, axis)}"
        + (f" (channels on axis {axis})" if axis != 1 else "")
        + f"; a layer for them has num_features={channels}; if the channels of x are on another "
        f"axis, say which with axis=" + _vmap_hint(x)
    )


def _vmap_hint(x: Tensor) -> str:
    """What an example is under `torch.vmap`, which hides the axis of examples."""
    if not hidden(x):
        return ""
    return "; under torch.vmap x has no axis of examples unless it is given one: x.unsqueeze(0)"


def _wrong_kind(name: str, value: Tensor, x: Tensor) -> ValueError:
    way = f"{name}.to(x.device), or layer.to(x.device) for a layer's"
    if value.is_meta:
        way = f"a layer made on meta gets memory by layer.to_empty(device={str(x.device)!r})"
    elif value.device == x.device:
        way = f"{name}.float()"
    return ValueError(
        f"{name} is {value.dtype} on {value.device}; expected float64, float32, bfloat16 or "
        f"float16 on {x.device}, where x is: {way}"
    )


def check_momentum(running: Running) -> None:
    """Check that the share of a new batch in the running statistics, if there are, is known."""
    if running.mean is None and running.var is None:
        return
    momentum, uncounted = running.momentum, running.moves and running.batches is None
    if running.bias_correction and uncounted:
        raise ValueError(
            "bias_correction=True needs to know how many batches the running statistics have "
            "seen, which num_batches_tracked counts; expected it as a tensor, torch.tensor(0), or "
            "bias_correction=False"
        )
    if momentum is None:
        if uncounted:
            raise ValueError(
                "momentum=None averages over all batches, which num_batches_tracked counts; "
                "expected it as a tensor, torch.tensor(0), or a momentum such as 0.1"
            )
        return
    check_share("momentum", momentum)


def check_pool(pool: Any, x: Tensor) -> None:
    """Check that moments can be gathered in `pool`."""
    shape, dtype = (3, x.shape[1]), widest(x.device)
    expected = f"{dtype} of shape {shape} on {x.device}, such as torch.zeros{shape} made there"
    if not isinstance(pool, Tensor):
        raise no_tensor("pool", pool, f"a tensor, {expected}")
    if pool.shape != shape or pool.dtype != dtype or pool.device != x.device:
        raise ValueError(
            f"pool is {pool.dtype} of shape {tuple(pool.shape)} on {pool.device}; expected "
            f"{expected}"
        )


def shown(x: Tensor, axis: int) -> tuple[int, ...]:
    """The shape as the user gave it."""
    return tuple(x.movedim(1, axis).shape)


def check_invertible(activation: Activation) -> None:
    """Check that in place there is an input to be had back from the output."""
    if activation.kind not in INVERTIBLE:
        raise ValueError(
            f"inplace=True with activation {activation}, which cannot be undone; expected one of "
            f"{', '.join(INVERTIBLE)}, or inplace=False"
        )
    if activation.kind != "identity" and not 0 < activation.parameter < math.inf:
        raise ValueError(
            f"inplace=True with activation {activation}, which cannot be undone; expected a "
            f"parameter above zero, or inplace=False"
        )
