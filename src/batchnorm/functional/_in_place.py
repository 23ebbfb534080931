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

from batchnorm.functional._direct import How
from batchnorm.functional._function import Function
from batchnorm.functional._known import Familiar
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
    how = How(pick(call, backend), not training, call.eps, call.activation, hooked())
    return _batch_norm(x, call, axis, how, running, None)


def again(
    known: Familiar, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running
) -> Tensor | None:
    """As `batch_norm`, for a call of which that is known; the channels are on axis 1.

    Whatever may change from call to call is looked at each time.
    """
    how = known.how
    call = Call(x, weight, bias, None, None, how.eps, how.activation)
    return _batch_norm(x, call, 1, how, running, known)


def _batch_norm(
    x: Tensor, call: Call, axis: int, how: How, running: Running, known: Familiar | None
) -> Tensor | None:
    weight, bias = call[1:3]
    graph = torch.is_grad_enabled() and _differentiable(x, weight, bias, call.residual)
    over = None if known is None else known.over
    places = None if over is None else over.places(x, weight, bias, *running[:2])
    reason = reserved(x, call, running, graph, places is not None)
    if reason is None:
        fixed = seen = moments = own = None
        if how.fixed:
            if running.moves:
                seen = how.backend.statistics(call.x.detach(), call.mask)
            fixed = fixed_moments(*before(running, seen), plain=True)
        if over is not None and places is not None:
            if not graph:
                moments = over.forward(x, places, fixed)
            elif fixed is None:
                own, written = over.within_limits(x, places)
                moments = own if written else None
        if moments is None:
            with torch.no_grad():
                moments = _write(how.backend, call._replace(x=call.x.detach()), fixed, graph, own)
        if isinstance(moments, Tensor):
            function: Any = BatchNormInPlace
            y = function.apply(x, weight, bias, how, axis, moments, known)
            if running.moves:  # after autograd took what it saves
                mover = None if known is None else known.mover
                if mover is None or not mover.move(moments, *running[:4]):
                    update(*running.arguments(moments if seen is None else seen))
            return y
        reason = moments
    _log.info("batch norm not in place: %s", reason)
    return None


def _differentiable(*tensors: Tensor | None) -> bool:
    for t in tensors:  # noqa: SIM110 - `any` takes three times as long
        if t is not None and t.requires_grad:
            return True
    return False


def _write(
    backend: Backend, call: Call, moments: Tensor | None, graph: bool, own: Tensor | None
) -> Tensor | str:
    """Overwrite the input and return the moments, or the reason why not."""
    if graph:
        return _in_place.forward(backend, call, moments, own)
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
        how: How,
        axis: int,
        moments: Tensor,
        known: Familiar | None,
    ) -> Tensor:
        ctx.mark_dirty(x)
        ctx.how, ctx.axis, ctx.known, ctx.measured = how, axis, known, moments
        ctx.save_for_backward(x, moments, weight, bias)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        (dy,) = cotangents
        kept = ctx.saved_tensors  # once: a checkpoint gives each but once
        known: Familiar | None = ctx.known
        if known is not None and known.over is not None and not torch.is_grad_enabled():
            short = kept[1] is ctx.measured  # through no hooks that were put on it since
            short = short and ctx.needs_input_grad == known.wanted
            y, moments, weight, bias = kept
            if short and known.fits(dy, y, moments, weight, bias, None):
                dx, dweight, dbias = known.over.backward(dy, y, moments, weight, bias)
                return dx, dweight, dbias, None, None, None, None
        return *_gradients(ctx, dy, kept), *(None,) * 4


def _gradients(ctx: Any, dy: Tensor, kept: tuple[Any, ...]) -> list[Tensor | None]:
    """Those of x, weight and bias that are wanted."""
    how: How = ctx.how
    through = (dy, kept[0])  # how a gradient depends on all that came in
    with torch.no_grad():
        y, moments, weight, bias, *_ = restored(dy, Saved(*kept), ctx.axis)
        backend = how.backend
        if how.hooked or not unseen(dy, *kept):  # none of which a kernel can read by address
            backend, y = plain, torch.where(torch.zeros_like(dy, dtype=torch.bool), dy, y)
        y, dy = (t.movedim(ctx.axis, 1) for t in (y, dy))
        call = Call(y, weight, bias, None, None, how.eps, how.activation)
        wanted = (ctx.needs_input_grad[0], False)
        dx, dweight, dbias, _ = backend.backward_from_output(dy, call, moments, how.fixed, wanted)
        dx = None if dx is None else dx.movedim(1, ctx.axis)
    found = zip((dx, dweight, dbias), ctx.needs_input_grad, strict=False)
    return [_once(one if want else None, *through) for one, want in found]


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
