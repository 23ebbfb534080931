"""What is of no kind that batch norm knows: a list for a tensor, a float for an integer."""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.kernels._check import check_switch as check_switch

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (int, np.integer)
_FLAGS = (int, np.bool_)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def no_tensor(name: str, value: object, expected: str) -> TypeError:
    """The error for what should have been a tensor."""
    kind = type(value).__name__
    return TypeError(f"{name} is of type {kind}, {reprlib.repr(value)}; expected {expected}")


def check_input(name: str, x: Any) -> None:
    """Check that what is to be normalized is a tensor."""
    if not isinstance(x, Tensor):
        raise no_tensor(name, x, "a tensor, such as torch.as_tensor makes of arrays")


def whole(value: object) -> bool:
    """Whether this is an integer and was meant as one."""
    return isinstance(value, _INTEGERS) and not isinstance(value, bool)


def check_tensors(shape: str, **values: Any) -> None:
    """Check that each is a tensor or None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            raise no_tensor(name, value, f"a tensor of shape {shape}, or None")


def check_count(name: str, count: Any) -> None:
    """Check that `count` can count batches."""
    if not isinstance(count, Tensor):
        raise no_tensor(name, count, f"an integer tensor, such as torch.tensor({count!r})")
    if count.dtype not in WHOLE or count.numel() != 1:
        raise ValueError(
            f"{name} is {count.dtype} of shape {tuple(count.shape)}; expected one integer, such as "
            f"torch.tensor(0)"
        )


def check_mask(mask: Any) -> None:
    """Check that `mask` is a tensor that selects or weights."""
    if not isinstance(mask, Tensor):
        raise no_tensor("mask", mask, "a tensor, bool or of real weights: torch.as_tensor(mask)")
    if mask.dtype != torch.bool and mask.dtype not in FLOATING:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; expected bool or real weights: "
            f"mask.bool() or mask.float(); of lengths, torch.arange(longest) < lengths[:, None]"
        )


def check_channels(num_features: Any) -> None:
    """Check a layer's number of channels."""
    if not whole(num_features) or num_features < 0:
        raise ValueError(
            f"num_features={num_features!r}; expected how many channels there are, an integer"
        )


def check_axis(axis: object, dims: int, what: str) -> None:
    """Check that channels can be on this axis of `what`, which has so many dimensions."""
    if not whole(axis) or not -dims < axis < dims or axis == 0:  # pyright: ignore
        raise ValueError(
            f"axis={axis!r} is no channel axis of {what}; expected one of 1 to {dims - 1}, or -1 "
            f"for the last (axis 0 is the batch)"
        )


def check_module(verb: str, model: Any) -> None:
    """Check that what is to be changed or watched is a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{verb} takes a model, a torch.nn.Module; got {type(model).__name__} "
            f"({str(model)[:60]}). {_way_to_a_module(model)}"
        )


def _way_to_a_module(model: Any) -> str:
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"Make one of the class: {model.__name__}(...)"
    if isinstance(getattr(model, "model", None), nn.Module):  # what a verb of ours returned
        return "It holds one: give its .model"
    return "Make one: nn.Sequential(*layers)"


def check_flag(name: str, value: object) -> None:
    """Check an argument of torch's that is on or off, which may also be 1, 0 or None there."""
    if value is not None and not (isinstance(value, _FLAGS) and value in (0, 1)):
        raise ValueError(f"{name}={value!r}; expected True or False")


def check_flags(**flags: object) -> None:
    """As `check_flag`, of each."""
    for name, value in flags.items():
        check_flag(name, value)


def check_eps(name: str, eps: Any) -> None:
    """Check that this is a number; like torch's, one not above zero is refused by the call."""
    try:
        good = not isinstance(eps, bool) and math.isfinite(eps)
    except (TypeError, ValueError, RuntimeError):
        good = False
    if not good:
        raise no_eps(name, eps)


def no_eps(name: str, eps: object) -> ValueError:
    """The error for what cannot be added to a variance to keep the root away from zero."""
    return ValueError(f"{name}={eps!r}; batch_norm eps must be positive, a number such as 1e-5")


def check_share(name: str, momentum: Any) -> None:
    """Check the share of a new batch in the running statistics."""
    try:
        good = momentum is None or (not isinstance(momentum, bool) and 0 <= momentum <= 1)
    except (TypeError, ValueError, RuntimeError):
        good = False
    if not good:
        raise ValueError(
            f"{name}={momentum!r}; expected None or the share of the new batch, from 0 to 1 "
            f"(torch's 0.1 is 0.9 in frameworks that give the share of the old)"
        )


def check_place(device: Any, dtype: Any) -> None:
    """Check where a layer's tensors are to be made, and of which type."""
    if dtype not in (None, float, *FLOATING):
        raise ValueError(
            f"dtype={dtype!r}; expected None or one of {', '.join(map(str, FLOATING))}, in which "
            f"the parameters are made"
        )
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except Exception as error:
        raise ValueError(
            f"device={device!r} cannot be had: {str(error).splitlines()[0]}; expected None, a name "
            f"such as 'cpu', 'cuda:0' or 'meta', or a torch.device"
        ) from error
