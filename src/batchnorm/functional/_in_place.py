"""In-place normalization: the output takes the input's memory, and gradients come from the output.

An eager Function of its own, which falls back to fresh memory where the input could not be had back
to its last digits, or where autograd needs it elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import _functions
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd.function import _SingleLevelFunction

from batchnorm.functional._running import Running, before, fixed_moments, update
from batchnorm.functional._unseen import unseen
from batchnorm.kernels import _in_place
from batchnorm.kernels._call import Backend, Call
from batchnorm.kernels._pick import pick

_log = logging.getLogger("batchnorm")
_hooks: Callable[[bool], Any] = _top_saved_tensors_default_hooks


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
    reason = _needed(x) if graph else _seen(x)
    if reason is None:
        with torch.no_grad():
            ahead = running.moves and not training
            seen = chosen.statistics(call.x.detach(), call.mask) if ahead else None
            mean, var = before(running, seen)
            fixed = None if training else fixed_moments(mean, var, plain=True)
            moments = _write(chosen, call._replace(x=call.x.detach()), fixed, graph)
        if isinstance(moments, Tensor):
            if running.moves:
                update(*running.arguments(moments if seen is None else seen))
            function: Any = _InPlace
            return function.apply(x, *call[1:3], call, axis, moments, chosen, not training)
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


def _seen(x: Tensor) -> str | None:
    if unseen(x):
        return None
    return "a transform, mode, tracer or tensor subclass looks at the call"


def _needed(x: Tensor) -> str | None:
    """Who else needs the values of `x`, as far as can be seen before the backward pass."""
    if x._is_view():
        return "the input is a view of another tensor"
    if x.is_leaf and x.requires_grad:
        return "the input is a leaf that requires a gradient"
    node = x.grad_fn
    if node is not None and _hooks(True) is not None and _may_save_its_output(type(node)):
        return f"{node.name()} may have saved its output through hooks, as checkpointing does"
    if node is not None and any(_holds(node, name, x) for name in _saved_names(type(node))):
        return f"{node.name()} saved its output, which is the input here, for its gradient"
    return _seen(x)


def _may_save_its_output(node: type) -> bool:
    """By its names: to look at what hooks packed would call them, and run a checkpoint again."""
    return any(n == "saved_tensors" or n.startswith("_saved_result") for n in _saved_names(node))


def _holds(node: Any, name: str, x: Tensor) -> bool:
    try:
        saved = getattr(node, name)
    except RuntimeError:  # freed by a backward pass
        return False
    saved = saved if isinstance(saved, tuple | list) else (saved,)
    return any(isinstance(t, Tensor) and t.data_ptr() == x.data_ptr() for t in saved)


@cache
def _saved_names(node: type) -> tuple[str, ...]:
    """The attributes of a node of the graph that hold what it saved."""
    return tuple(n for n in dir(node) if n == "saved_tensors" or n.startswith("_saved_"))


class _InPlace(_SingleLevelFunction):
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
        ctx.save_for_backward(x, weight, bias, moments)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        (dy,) = cotangents
        y, weight, bias, moments = ctx.saved_tensors
        with torch.no_grad():
            y, dy = (t.movedim(ctx.axis, 1) for t in (y, dy))
            call = Call(y, weight, bias, None, None, ctx.eps, ctx.activation)
            wanted = (ctx.needs_input_grad[0], False)
            dx, dweight, dbias, _ = ctx.backend.backward_from_output(
                dy, call, moments, ctx.fixed, wanted
            )
            dx = None if dx is None else dx.movedim(1, ctx.axis)
        gradients = (
            t if want else None
            for t, want in zip((dx, dweight, dbias), ctx.needs_input_grad, strict=False)
        )
        return (*map(_once, gradients), *(None,) * 5)


def _once(gradient: Tensor | None) -> Tensor | None:
    """`gradient`, which says so when it is differentiated itself."""
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    text = (
        "batch norm with inplace=True has no second derivatives: the input that they need is "
        "overwritten; use inplace=False"
    )
    delayed: Any = _functions.DelayedError(text, 1)
    return delayed(gradient.detach().requires_grad_())
