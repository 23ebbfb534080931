"""The axes of a tensor that `torch.vmap` has hidden, in eager calls and while dynamo traces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_level,
)

from batchnorm.functional import _ops


def mapped_levels(x: Tensor) -> set[int]:
    """The levels of `torch.vmap` that have hidden an axis of `x`."""
    levels: set[int] = set()
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            levels.add(maybe_get_level(x))
        x = get_unwrapped(x)
    return levels


def whole_shape(x: Tensor) -> torch.Size:
    """The shape of `x` with its hidden axes."""
    if not torch._C._are_functorch_transforms_active():
        return x.shape
    if torch.compiler.is_dynamo_compiling():  # which looks inside an operator alone
        return torch.ops.batchnorm.whole(x).shape
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x.shape


def hidden(x: Tensor) -> int:
    """How many axes of `x` are hidden."""
    return len(whole_shape(x)) - x.dim()


def pools(x: Tensor, *own: Tensor | None) -> bool:
    """Whether statistics pool over a hidden axis of `x`, which none of its `own` values has."""
    most = 0
    for t in own:
        if t is not None:
            most = max(most, hidden(t))
    return hidden(x) > most


def _whole(x: Tensor) -> Tensor:
    return torch.empty(x.shape, device="meta")


def _unhidden(info: Any, dims: tuple[int], x: Tensor) -> tuple[Tensor, None]:
    return torch.ops.batchnorm.whole(x.movedim(dims[0], 0)), None


_ops.LIBRARY.define("whole(Tensor x) -> Tensor")
_ops.LIBRARY.impl("whole", _whole, "CompositeExplicitAutograd")
torch.library.register_fake("batchnorm::whole", _whole, lib=_ops.LIBRARY)
torch.library.register_vmap("batchnorm::whole", _unhidden, lib=_ops.LIBRARY)
