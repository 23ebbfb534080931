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
from batchnorm.functional._recomputed import recomputing
from batchnorm.functional._running import Running, fixed_moments, update
from batchnorm.functional._saved import Saved, hooked
from batchnorm.functional._unseen import unseen
from batchnorm.kernels import numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Again, Call
from batchnorm.kernels._pick import pick

if TYPE_CHECKING:
    from batchnorm.kernels._numba_running import Mover


class Familiar:
    """What is known of calls that look alike.

    Attributes:
        again: computes them; None until the first has gone the long way, or where all must.
        mover: moves the running statistics; None to leave that to `update`.
        how: for gradients that go the long way.
        wanted: whether x, weight and bias need gradients where all do that can.
        saves_bias: whether the backward pass needs its value.
        kept: what `fits` compares.
        met: whether the first of them has gone the long way.
    """

    __slots__ = ("again", "how", "kept", "met", "mover", "saves_bias", "wanted")

    again: Again | None
    mover: Mover | None
    how: How
    wanted: tuple[bool, ...]
    saves_bias: bool
    kept: tuple[Any, ...]

    def __init__(self) -> None:
        self.again, self.met = None, False

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
        if running.moves:
            moments = x.new_empty((3, x.shape[1]), device="meta")
            self.mover = numba.mover_of(running.mean, running.var, moments, running.momentum)
        y = torch.empty_like(x, device="meta")
        self.kept = _kept(y, x, weight, bias if self.saves_bias else None)
        self.again = backend.again(call, not training)

    def fits(
        self, dy: Tensor, x: Tensor, _moments: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> bool:
        """Whether what autograd got and kept is still what kernels were chosen for."""
        return unseen(dy, x, weight, bias) and _kept(dy, x, weight, bias) == self.kept


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


def forget() -> None:
    """Let every call go the long way once more."""
    _known.cache_clear()


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
    if not unseen(x, weight, bias, mean, var) or hooked() or recomputing():
        return None
    shape = x.shape
    channels = shape[1:2]
    for t in (weight, bias, mean, var):
        if t is not None and (t.shape != channels or not t.is_contiguous()):
            return None
    if (mean is not None and mean.requires_grad) or (var is not None and var.requires_grad):
        return None
    return _known(
        x.dtype, shape, x.stride(), not training, not moves, eps,
        activation.kind, activation.parameter, momentum, batches is None,
        None if weight is None else weight.dtype, None if bias is None else bias.dtype,
        None if mean is None else mean.dtype, None if var is None else var.dtype,
    )  # fmt: skip


def batch_norm(
    known: Familiar, again: Again, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    running: Running,
) -> Tensor:  # fmt: skip
    """The output of a call of which that is known; its running statistics have moved."""
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
