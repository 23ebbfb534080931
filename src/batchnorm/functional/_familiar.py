"""Calls like one before: what was checked and chosen for that one is not asked again.

A training loop makes the same calls over and over. On small inputs the questions (whether shapes
fit, which kernel computes, how tensors lie) take longer than the arithmetic; their answers depend
on what `look` compares, and on nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batchnorm.functional._direct import How, gradients, like
from batchnorm.functional._function import Function
from batchnorm.functional._guards import Guards
from batchnorm.functional._recomputed import recomputing
from batchnorm.functional._running import Running, fixed_moments, update
from batchnorm.functional._saved import Saved, hooked
from batchnorm.functional._unseen import quiet, unseen
from batchnorm.kernels import native, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Again, Call
from batchnorm.kernels._pick import pick

if TYPE_CHECKING:
    from batchnorm.kernels._native_step import Step
    from batchnorm.kernels._numba_running import Mover


class Familiar:
    """What is known of calls that look alike.

    Attributes:
        again: computes them; None until the first has gone the long way, or where all must.
        mover: moves the running statistics; None to leave that to `update`.
        how: for gradients that go the long way.
        wanted: whether x, weight and bias need gradients where all do that can.
        saves_bias: whether the backward pass needs its value.
        guards: of what fits.
        kept: what `fits` compares.
        step: torch's own way in training, where that is as good; what it leaves `again` computes.
        met: whether the first of them has gone the long way.
    """

    __slots__ = ("again", "guards", "how", "kept", "met", "mover", "saves_bias", "step", "wanted")

    again: Again | None
    mover: Mover | None
    how: How
    wanted: tuple[bool, ...]
    saves_bias: bool
    kept: tuple[Any, ...]
    step: Step | None

    def __init__(self) -> None:
        self.again = self.step = None
        self.met, self.guards = False, Guards()

    def learn(self, call: Call, training: bool, running: Running) -> None:
        """Take over what the long way has found out about `call`, the first of its kind."""
        if self.met:
            return
        self.met = True
        backend = pick(call)
        if backend is plain:
            return
        x, weight, bias, _, _, eps, f = call
        self.wanted = True, weight is not None, bias is not None
        self.saves_bias = bias is not None and f.kind != "identity"
        no_value = None
        if bias is not None and not self.saves_bias:
            no_value = like(bias.dtype, bias.shape[0])
        self.how = How(backend, not training, eps, f, bias=no_value)
        self.mover = None
        if training and backend is native:
            self.step = native.step_of(call, *(running[:2] if running.moves else (None, None)))
        if running.moves:
            moments = x.new_empty((3, x.shape[1]), device="meta")
            self.mover = numba.mover_of(running.mean, running.var, moments, running.momentum)
        y = torch.empty_like(x, device="meta")
        self.kept = _kept(y, x, weight, bias if self.saves_bias else None)
        self.again = backend.again(call, not training)

    def fits(
        self, dy: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> bool:
        """Whether what autograd got and kept is still what kernels were chosen for."""
        if not quiet():
            return False
        given = (dy, x, moments)
        if weight is not None:
            given = (*given, weight) if bias is None else (*given, weight, bias)
        elif bias is not None:
            given = (*given, bias)
        if self.guards.find(given):
            return True
        if not unseen(*given) or _kept(dy, x, weight, bias) != self.kept:
            return False
        self.guards.keep(given, True)
        return True


def _kept(dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
    """How they lie; a parameter is contiguous, as no others are familiar.

    What was saved may be another tensor by now, if its ``.data`` was set.
    """
    return (
        dy.stride(), x.dtype, x.shape, x.stride(),
        None if weight is None else (weight.dtype, weight.shape, weight.stride()),
        None if bias is None else (bias.dtype, bias.shape, bias.stride()),
    )  # fmt: skip


@lru_cache(1024)
def _known(*_: Any) -> Familiar:
    """Of calls that look like this."""
    return Familiar()


@lru_cache(1024)
def _guards(*_: Any) -> Guards:
    """What is known of calls whose x and options are these, by how their tensors look."""
    return Guards()


def forget() -> None:
    """Let every call go the long way once more."""
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
    options = (
        x.shape, not training, not moves, eps, activation.kind, activation.parameter, momentum,
        batches is None, none,
    )  # fmt: skip
    guards = _guards(*options)
    known = guards.find(tensors)
    if known is None and _usual(tensors):
        if any(t is not None and t.requires_grad for t in (mean, var)):
            return None
        known = _known(*options, *((t.dtype, t.stride()) for t in tensors))
        guards.keep(tensors, known)
    return known


def _usual(tensors: tuple[Tensor, ...]) -> bool:
    """Whether nobody sees them, and those after x hold a value a channel side by side."""
    channels = tensors[0].shape[1:2]
    return unseen(*tensors) and all(t.shape == channels and t.is_contiguous() for t in tensors[1:])


def batch_norm(
    known: Familiar, again: Again, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    running: Running,
) -> Tensor:  # fmt: skip
    """The output of a call of which that is known; its running statistics have moved."""
    if known.step is not None:
        y = known.step.forward(x, weight, bias, *running[:3], running.momentum)
        if y is not None:
            return y
    moments = None
    if known.how.fixed:
        moments = fixed_moments(running.mean, running.var, plain=True)
    if torch.is_grad_enabled():
        function: Any = BatchNorm
        seen: list[Tensor] = []
        y = function.apply(x, weight, bias, known, moments, seen)
        moments = seen[0]
    else:
        y, moments = again.forward(x, weight, bias, moments)
    if running.moves:  # after autograd took what it saves, which it may refuse
        mover = known.mover
        if mover is None or not mover.move(moments, *running[:4]):
            update(*running.arguments(moments))
    return y


class BatchNorm(Function):
    """One call of kernels that are known, and one for its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        known: Familiar,
        moments: Tensor | None,
        seen: list[Tensor],
    ) -> Tensor:
        assert known.again is not None, "looked at before"
        y, moments = known.again.forward(x, weight, bias, moments)
        seen.append(moments)
        ctx.known, ctx.fixed, ctx.moments = known, known.how.fixed, moments  # `observe` reads them
        ctx.save_for_backward(x, moments, weight, bias if known.saves_bias else None)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        dy = cotangents[0]
        if dy is None:
            return (None,) * 6
        known: Familiar = ctx.known
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[:3]
        short = saved[1] is ctx.moments  # through no hooks that were put on it since
        short = short and wanted == known.wanted and not torch.is_grad_enabled()
        if not (short and known.fits(dy, *saved)):
            found = gradients(dy, Saved(*saved), known.how, (*wanted, False))
            return *found[:3], None, None, None
        assert known.again is not None, "looked at before"
        return *known.again.backward(dy, *saved), None, None, None
