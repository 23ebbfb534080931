"""Calls like one before: what was checked and chosen for that one is not asked again.

A training loop makes the same calls over and over. On small inputs the questions (whether shapes
fit, which kernel computes, how tensors lie) take longer than the arithmetic; their answers depend
on what `look` compares, and on nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from batchnorm.functional._direct import gradients
from batchnorm.functional._function import Function
from batchnorm.functional._guards import Guards
from batchnorm.functional._known import Familiar
from batchnorm.functional._recomputed import recomputing
from batchnorm.functional._running import Running, fixed_moments, update
from batchnorm.functional._saved import Saved, hooked
from batchnorm.functional._unseen import quiet, unseen
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Again


@lru_cache(1024)
def _known(*_: Any) -> Familiar:
    """Of calls that look like this."""
    return Familiar()


@lru_cache(1024)
def _guards(*_: Any) -> Guards:
    """What is known of calls whose x and options are these, by how their tensors look."""
    return Guards()


def forget() -> None:
    """Let every call of functions go the long way once more."""
    _known.cache_clear()
    _guards.cache_clear()


def look(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Running,
    training: bool,
    eps: float,
    activation: Activation,
    residual: Tensor | None = None,
    inplace: bool = False,
) -> Familiar | None:
    """What is known of such calls, maybe nothing yet; None for those of which nothing will be.

    The channels are on axis 1, and there is nothing but these arguments.
    """
    mean, var, batches, _, momentum, corrected, moves, pool = running
    if corrected or pool is not None or (moves and not training):
        return None
    if type(eps) is not float or not (momentum is None or type(momentum) is float):
        return None
    if not quiet() or hooked() or recomputing() or x.is_nested:
        return None
    none = weight is None, bias is None, mean is None, var is None
    tensors: tuple[Any, ...] = x, weight, bias, mean, var
    if True in none:
        tensors = tuple(t for t in tensors if t is not None)
    if residual is not None:
        tensors = (*tensors, residual)
    options = (
        x.shape, not training, not moves, eps, activation.kind, activation.parameter, momentum,
        batches is None, none, residual is None, not inplace,
    )  # fmt: skip
    try:
        guards = _guards(*options)
    except TypeError:  # sizes that are symbols have no hash
        return None
    known = guards.find(tensors)
    if known is None and _usual(tensors, residual, inplace):
        if any(t is not None and t.requires_grad for t in (mean, var)):
            return None
        known = _known(*options, *((t.dtype, t.stride()) for t in tensors))
        guards.keep(tensors, known)
    return known


def _usual(tensors: tuple[Tensor, ...], residual: Tensor | None, inplace: bool) -> bool:
    """Whether nobody sees them, and those after x hold a value a channel side by side.

    But for the residual, the last of them, which is of x's shape.
    """
    if not unseen(*tensors):
        return False
    x, *others = tensors
    if residual is not None and (inplace or others.pop().shape != x.shape):
        return False
    return all(t.shape == x.shape[1:2] and t.is_contiguous() for t in others)


def batch_norm(
    known: Familiar, again: Again, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    running: Running, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The output of a call of which that is known; its running statistics have moved."""
    if known.step is not None:
        y = known.step.forward(x, weight, bias, residual, *running[:3], running.momentum)
        if y is not None:
            return y
    moments = None
    if known.how.fixed:
        moments = fixed_moments(running.mean, running.var, plain=True)
    if torch.is_grad_enabled():
        function: Any = BatchNorm
        seen: list[Tensor] = []
        y = function.apply(x, weight, bias, residual, known, moments, seen)
        moments = seen[0]
    else:
        y, moments = again.forward(x, weight, bias, moments, residual)
    if running.moves:  # after autograd took what it saves, which it may refuse
        mover = known.mover
        if mover is None or not mover.move(moments, *running[:4]):
            update(*running.arguments(moments))
    return y


class BatchNorm(Function):
    """One call of kernels that are known, and one for its gradients; named as the long way's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        known: Familiar,
        moments: Tensor | None,
        seen: list[Tensor],
    ) -> Tensor:
        assert known.again is not None, "looked at before"
        y, moments = known.again.forward(x, weight, bias, moments, residual)
        seen.append(moments)
        ctx.known, ctx.fixed, ctx.moments = known, known.how.fixed, moments  # `observe` reads them
        bias, residual = bias if known.saves_bias else None, None if known.adds else residual
        ctx.save_for_backward(x, moments, weight, bias, residual)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        dy = cotangents[0]
        if dy is None:
            return (None,) * 7
        known: Familiar = ctx.known
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad
        short = saved[1] is ctx.moments  # through no hooks that were put on it since
        short = short and wanted == known.wanted and not torch.is_grad_enabled()
        if not (short and known.fits(dy, *saved)):
            return *gradients(dy, Saved(*saved), known.how, wanted[:4]), None, None, None
        assert known.again is not None, "looked at before"
        dx, dweight, dbias, dresidual = known.again.backward(dy, *saved)
        return dx, dweight, dbias, dy if known.adds else dresidual, None, None, None
