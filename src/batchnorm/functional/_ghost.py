"""Ghost batches: groups of examples that are normalized each by its own statistics.

A batch norm over ``(G k, C, ...)`` in groups of k is one over ``(k, G C, ...)``: the groups join
the channels, by a copy, and every kernel, derivative and transform does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels._call import Call


def split(call: Call, size: int) -> list[Call]:
    """The groups of `size` as one call, and one for the examples that are left over."""
    examples = call.x.shape[0]
    groups, rest = examples // size, examples % size  # dynamo has no divmod of sizes that vary
    if groups == 0:
        return [call]
    call = call._replace(weight=_wide(call.weight), bias=_wide(call.bias))
    parts = [_joined(_some(call, 0, groups * size), groups)]
    return [*parts, _some(call, groups * size, examples)] if rest else parts


def together(parts: list[Tensor], x: Tensor) -> Tensor:
    """The outputs of `split` as one of x's shape."""
    left = sum(part.shape[0] for part in parts[1:])
    groups = (x.shape[0] - left) // max(parts[0].shape[0], 1)
    first = _apart(parts[0], x, groups) if groups > 1 else parts[0]
    return first if len(parts) == 1 else torch.cat((first, *parts[1:]))


def _some(call: Call, start: int, end: int) -> Call:
    if start == 0 and end == call.x.shape[0]:
        return call
    x, residual, mask = (
        None if t is None else t[start:end] for t in (call.x, call.residual, call.mask)
    )
    assert x is not None, "a call has an x"
    return call._replace(x=x, residual=residual, mask=mask)


def _joined(call: Call, groups: int) -> Call:
    """The call over ``(k, G C, ...)``."""
    if groups == 1:
        return call
    x, weight, bias, residual, mask, *_ = call
    if mask is not None:
        mask = mask.expand(-1, x.shape[1], *mask.shape[2:])
    return call._replace(
        x=_join(x, x, groups),
        weight=None if weight is None else weight.repeat(groups),
        bias=None if bias is None else bias.repeat(groups),
        residual=None if residual is None else _join(residual, x, groups),
        mask=None if mask is None else _join(mask, x, groups),
    )


def _wide(parameter: Tensor | None) -> Tensor | None:
    """In a type in which the gradients of all groups, and of what is left over, can add up."""
    if parameter is None:
        return None
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def _join(t: Tensor, x: Tensor, groups: int) -> Tensor:
    """(G k, C, ...) as (k, G C, ...), in an order of memory like that of x."""
    if _channels_last(x):
        t = t.movedim(1, -1).unflatten(0, (groups, -1))
        return t.movedim(0, -2).flatten(-2).movedim(-1, 1)
    return t.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _apart(y: Tensor, x: Tensor, groups: int) -> Tensor:
    """What undoes `_join`."""
    if _channels_last(x):
        y = y.movedim(1, -1).unflatten(-1, (groups, -1))
        return y.movedim(-2, 0).flatten(0, 1).movedim(-1, 1)
    return y.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


def _channels_last(x: Tensor) -> bool:
    return x.dim() > 2 and x.stride(1) == 1 and x.shape[1] > 1
