"""Statistics merged over the ranks of a process group: one exchange forward, one backward.

Every rank gives its moments (count, mean, variance) to all, and all merge them in the same order,
so that they normalize with the same bits. A rank without data takes part with a count of zero.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from batchnorm.functional import _exchange
from batchnorm.functional._group import found
from batchnorm.kernels._call import Backend, Call, Gradients
from batchnorm.moments import Moments


def statistics(call: Call, backend: Backend, name: str) -> Tensor:
    """The packed moments of what all ranks are called with."""
    with telling(name):
        own = backend.statistics(call.x, call.mask)
    return _merged(own, name)


def _merged(moments: Tensor, name: str) -> Tensor:
    """The packed moments of all ranks together."""
    group = found(name)
    if group is None:
        return moments
    parts = _exchange.exchange(moments, _exchange.FORWARD, group).transpose(0, 1)
    while parts.shape[1] > 1:  # neighbours merge, and an empty part with what is left over
        if parts.shape[1] % 2:
            parts = torch.cat((parts, torch.zeros_like(parts[:, :1])), 1)
        parts = Moments.unpack(parts[:, ::2]).merge(Moments.unpack(parts[:, 1::2])).pack()
    return parts[:, 0].contiguous()


def forward(call: Call, backend: Backend, name: str) -> tuple[Tensor, Tensor]:
    """Normalize with the statistics of all ranks; y and the merged moments."""
    moments = statistics(call, backend, name)
    return backend.normalize(call, moments), moments


def backward(
    dy: Tensor, call: Call, moments: Tensor, wanted: tuple[bool, bool], backend: Backend, name: str
) -> Gradients:
    """The gradients of `forward`; those of weight and bias are of this rank's own positions."""
    dresidual = None
    with telling(name):
        own = backend.backward_reduce(dy, call, moments)
        if wanted[1] and call.residual is not None:
            dresidual = backend.backward(dy, call, moments, True, (False, True)).residual
    group = found(name)
    sums = own if group is None else _exchange.exchange(own, _exchange.BACKWARD, group).sum(0)
    dbias, dweight = own.unbind(0)
    return Gradients(
        backend.backward_input(dy, call, moments, sums) if wanted[0] else None,
        None if call.weight is None else dweight.to(call.weight.dtype, copy=True),
        None if call.bias is None else dbias.to(call.bias.dtype, copy=True),
        dresidual,
    )


def check_several(moments: Tensor, shape: tuple[int, ...]) -> None:
    """Check that all ranks together have two values a channel, where looking costs nothing."""
    if torch.compiler.is_compiling() or not moments.is_cpu or moments.shape[1] == 0:
        return
    if moments[0].max() == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got one on all ranks of the "
            f"process group together, and input of size {shape} on this one: the variance of one "
            f"value is zero; use larger batches, drop the last partial one "
            f"(DataLoader(drop_last=True)), or evaluate with running statistics"
        )


@contextmanager
def telling(name: str) -> Generator[None]:
    """What this rank raises inside keeps it from its exchange: the others are told."""
    try:
        yield
    except Exception:
        refuse(name)
        raise


def refuse(name: str) -> None:
    """Let the other ranks' exchange fail at once; this one's own error is the one to see."""
    group = found(name) if name else None
    if group is not None:
        with suppress(RuntimeError):
            _exchange.refuse(group)


def total(values: Tensor, name: str) -> Tensor:
    """One value for each channel, summed over all ranks."""
    group = found(name)
    if group is None:
        return values.clone()
    parts = _exchange.exchange(values.reshape(1, -1), _exchange.FURTHER, group)
    return parts.sum(0).view_as(values)
