"""What is of no kind that batch norm knows: a list for a tensor, a float for an integer."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (int, np.integer)
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


def check_switch(name: str, value: object) -> None:
    """Check that this is on or off: any other text or object would count as on."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}; expected True or False")
