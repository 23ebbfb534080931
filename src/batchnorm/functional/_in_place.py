"""In-place normalization: the output takes the input's memory, and gradients come from the output.

An eager Function of its own, which falls back to fresh memory where the input could not be had back
to its last digits, or where autograd needs it elsewhere.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch._C import _functions

from batchnorm.functional._function import Function
from batchnorm.functional._reserved import reserved
from batchnorm.functional._running import Running, before, fixed_moments, update
from batchnorm.functional._saved import Saved, hooked, restored
from batchnorm.functional._unseen import unseen
from batchnorm.kernels import _in_place, plain
from batchnorm.kernels._call import Backend, Call
from batchnorm.kernels._pick import pick

_log = logging.getLogger("batchnorm")


def batch_norm(
    x: Tensor, call: Call, axis: int, backend: str, running: Running, training: bool
) -> Tensor | None:
    """`x`, normalized in place, or None where that must not be; the log tells why.

    Args:
        x: the tensor to overwrite.
        call: what to compute; its x is a view of `x` with the channels on axis 1.
        axis: where the channels of `x` are.
        backend: the name of one that must be used, or "".
        running: running statistics.
        training: whether to normalize with the batch's own.
    """
    chosen = pick(call, backend)
    graph = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in call[:4])
    reason = reserved(x, call, running, graph)
    if reason is None:
        with torch.no_grad():
            ahead = running.moves and not training
            seen = chosen.statistics(call.x.detach(), call.mask) if ahead else None
            mean, var = before(running, seen)
            fixed = None if training else fixed_moments(mean, var, plain=True)
            moments = _write(chosen, call._replace(x=call.x.detach()), fixed, graph)
        if isinstance(moments, Tensor):
            function: Any = BatchNormInPlace
            y = function.apply(x, *call[1:3], call, axis, moments, chosen, not training)
            if running.moves:  # after autograd took what it saves
                update(*running.arguments(moments if seen is None else seen))
            return y
        reason = moments
    _log.info("batch norm not in place: %s", reason)
    return None


def _write(backend: Backend, call: Call, moments: Tensor | None, graph: bool) -> Tensor | str:
    """Overwrite the input and return the moments, or the reason why not."""
    if graph:
        return _in_place.forward(backend, call, moments)
    reason = _in_place.gaps(call.x)
    if reason is not None:
        return reason
    if moments is None:
        return backend.forward(call, out=call.x)[1]
    backend.normalize(call, moments, out=call.x)
    return moments


class BatchNormInPlace(Function):
    """Puts into the graph what was written already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        call: Call,
        axis: int,
        moments: Tensor,
        backend: Backend,
        fixed: bool,
    ) -> Tensor:
        ctx.mark_dirty(x)
        ctx.eps, ctx.activation = call.eps, call.activation
        ctx.axis, ctx.backend, ctx.fixed = axis, backend, fixed
        ctx.hooked = hooked()
        ctx.save_for_backward(x, moments, weight, bias)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        (dy,) = cotangents
        kept = ctx.saved_tensors  # once: a checkpoint gives each but once
        through = (dy, kept[0])  # how a gradient depends on all that came in
        with torch.no_grad():
            y, moments, weight, bias, *_ = restored(dy, Saved(*kept), ctx.axis)
            backend = ctx.backend
            if ctx.hooked or not unseen(dy, y):  # none of which a kernel can read by address
                backend, y = plain, torch.where(torch.zeros_like(dy, dtype=torch.bool), dy, y)
            y, dy = (t.movedim(ctx.axis, 1) for t in (y, dy))
            call = Call(y, weight, bias, None, None, ctx.eps, ctx.activation)
            wanted = (ctx.needs_input_grad[0], False)
            dx, dweight, dbias, _ = backend.backward_from_output(
                dy, call, moments, ctx.fixed, wanted
            )
            dx = None if dx is None else dx.movedim(1, ctx.axis)
        gradients = (
            t if want else None
            for t, want in zip((dx, dweight, dbias), ctx.needs_input_grad, strict=False)
        )
        return (*(_once(one, *through) for one in gradients), *(None,) * 5)


def _once(gradient: Tensor | None, *through: Tensor) -> Tensor | None:
    """`gradient`, which says so when it is differentiated itself, by whatever lies behind it."""
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    text = (
        "batch norm with inplace=True has no second derivatives: the input that they need is "
        "overwritten; use inplace=False"
    )
    delayed: Any = _functions.DelayedError(text, 1 + len(through))
    return delayed(gradient.detach().requires_grad_(), *through)[0]
