"""What `torch.vmap` does to the operators.

Mapping over examples that share their parameters pools the statistics over the mapped axis: the
mapped axis is one more batch axis. Where the parameters are mapped too, as in an ensemble made by
`torch.func.stack_module_state`, each member keeps its own statistics: the axis joins the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm.functional import _ops

Dims = tuple[int | None, ...]


def _front(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """`t` with the mapped axis first, made by expansion where it has none."""
    if t is None:
        return None
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _into_batch(t: Any, dim: int | None, size: int) -> Any:
    """(B, N, ...) as (B N, ...)."""
    t = _front(t, dim, size)
    return None if t is None else t.flatten(0, 1)


def _into_channels(t: Any, dim: int | None, size: int) -> Any:
    """(B, N, C, ...) as (N, B C, ...)."""
    t = _front(t, dim, size)
    return None if t is None else t.movedim(0, 1).flatten(1, 2)


def _per_channel(t: Any, dim: int | None, size: int) -> Any:
    """(B, C) as (B C)."""
    t = _front(t, dim, size)
    return None if t is None else t.flatten(0, 1)


def _out_of_channels(t: Tensor, size: int, channels: int, axis: int = 1) -> Tensor:
    return t.unflatten(axis, (size, channels))


def _example(x: Tensor, dim: int | None) -> list[int]:
    """The shape of one."""
    return [n for axis, n in enumerate(x.shape) if axis != dim]


def _looped(op: Callable[..., Any], size: int, dims: Dims, arguments: tuple[Any, ...]) -> Any:
    """One call for each index, for masks, which have no channel axis to join."""
    results = [
        op(*(a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def _train(info: Any, dims: Dims, x: Tensor, *arguments: Any) -> Any:
    size = info.batch_size
    weight, bias, residual, mask, *options = arguments
    if dims[1] is None and dims[2] is None:
        pooled = (
            _into_batch(t, d, size)
            for t, d in zip((x, residual, mask), (dims[0], *dims[3:5]), strict=True)
        )
        shape = size, *_example(x, dims[0])
        x, residual, mask = pooled
        y, moments = _ops.train(x, weight, bias, residual, mask, *options)
        return (y.view(shape), moments), (0, None)
    if mask is not None:
        return _looped(_ops.train, size, dims, (x, *arguments))
    channels = _example(x, dims[0])[1]
    y, moments = _ops.train(
        _into_channels(x, dims[0], size),
        _per_channel(weight, dims[1], size),
        _per_channel(bias, dims[2], size),
        _into_channels(residual, dims[3], size),
        None,
        *options,
    )
    return tuple(_out_of_channels(t, size, channels) for t in (y, moments)), (1, 1)


def _statistics(
    info: Any,
    dims: Dims,
    x: Tensor,
    mask: Tensor | None,
    apart: Tensor | None,
    backend: str,
    group: str = "",
) -> Any:
    size = info.batch_size
    if dims[2] is None:
        mask = _into_batch(mask, dims[1], size)
        return _ops.statistics(_into_batch(x, dims[0], size), mask, None, backend), None
    if mask is not None:
        return _looped(_ops.statistics, size, dims, (x, mask, apart, backend))
    moments = _ops.statistics(_into_channels(x, dims[0], size), None, None, backend)
    return _out_of_channels(moments, size, _example(x, dims[0])[1]), 1


def _normalize(info: Any, dims: Dims, x: Tensor, moments: Tensor, *arguments: Any) -> Any:
    size = info.batch_size
    weight, bias, residual, mask, *options = arguments
    if mask is not None:
        return _looped(_ops.normalize, size, dims, (x, moments, *arguments))
    y = _ops.normalize(
        _into_channels(x, dims[0], size),
        _into_channels(moments, dims[1], size),
        _per_channel(weight, dims[2], size),
        _per_channel(bias, dims[3], size),
        _into_channels(residual, dims[4], size),
        None,
        *options,
    )
    return _out_of_channels(y, size, _example(x, dims[0])[1]), 1


def _backward(
    info: Any, dims: Dims, dy: Tensor, x: Tensor, moments: Tensor, fixed: bool, *arguments: Any
) -> Any:
    """Of pooled statistics the gradient of x is pooled too; parameters get one for each index."""
    size = info.batch_size
    want_x, want_residual, weight, bias, residual, mask, *options = arguments
    if fixed or dims[1] is None or dims[2] is not None:
        return _backward_separately(size, dims, (dy, x, moments, fixed, *arguments))
    pooled = _ops.backward(
        _into_batch(dy, dims[0], size),
        _into_batch(x, dims[1], size),
        moments,
        fixed,
        want_x,
        want_residual,
        weight,
        bias,
        _into_batch(residual, dims[8], size),
        _into_batch(mask, dims[9], size),
        *options,
    )
    own, own_dims = _backward_separately(
        size, dims, (dy, x, moments, True, False, False, *arguments[2:])
    )
    shape = size, *_example(x, dims[1])
    kept = want_x, want_residual and residual is not None
    images = [t.view(shape) if there else t for t, there in zip(pooled[::3], kept, strict=True)]
    image_dims = [0 if there else None for there in kept]
    return (images[0], own[1], own[2], images[1]), (image_dims[0], *own_dims[1:3], image_dims[1])


def _backward_separately(size: int, dims: Dims, arguments: tuple[Any, ...]) -> Any:
    dy, x, moments, fixed, want_x, want_residual, weight, bias, residual, mask, *options = arguments
    if mask is not None:
        return _looped(_ops.backward, size, dims, arguments)
    dx, dweight, dbias, dresidual = _ops.backward(
        _into_channels(dy, dims[0], size),
        _into_channels(x, dims[1], size),
        _into_channels(moments, dims[2], size),
        fixed,
        want_x,
        want_residual,
        _per_channel(weight, dims[6], size),
        _per_channel(bias, dims[7], size),
        _into_channels(residual, dims[8], size),
        None,
        *options,
    )
    channels = _example(x, dims[1])[1]
    kept = want_x, weight is not None, bias is not None, want_residual and residual is not None
    results, out = [], []
    for t, axis, there in zip((dx, dweight, dbias, dresidual), (1, 0, 0, 1), kept, strict=True):
        results.append(_out_of_channels(t, size, channels, axis) if there else t)
        out.append(axis if there else None)
    return tuple(results), tuple(out)


def _total(*_: Any) -> Any:
    raise NotImplementedError(
        "batch norm with process_group under vmap around forward-mode or second derivatives "
        "(jacfwd, hessian) is not supported; differentiate without vmap, or use process_group=None"
    )


def _update_running_(info: Any, dims: Dims, *arguments: Any) -> Any:
    """Each member of an ensemble updates its own; those that share one do so in turn."""
    for i in range(info.batch_size):
        one = (a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True))
        _ops.update_running_(*one)
    return None, None


for _name, _rule in (
    ("train", _train),
    ("statistics", _statistics),
    ("normalize", _normalize),
    ("backward", _backward),
    ("total", _total),
    ("update_running_", _update_running_),
):
    torch.library.register_vmap(f"batchnorm::{_name}", _rule, lib=_ops.LIBRARY)
