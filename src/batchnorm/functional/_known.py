"""What is known of calls that look alike: what computes them, and what must not have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batchnorm.functional._direct import How, like
from batchnorm.functional._guards import Guards
from batchnorm.functional._running import Running
from batchnorm.functional._unseen import quiet, unseen
from batchnorm.kernels import _in_place, native, numba, plain
from batchnorm.kernels._call import Again, Backend, Call
from batchnorm.kernels._pick import pick

if TYPE_CHECKING:
    from batchnorm.kernels._native_step import Step
    from batchnorm.kernels._numba_over import Over
    from batchnorm.kernels._numba_running import Mover


class Familiar:
    """What is known of calls that look alike.

    Attributes:
        again: computes them; None until the first has gone the long way, or where all must.
        over: the same for calls in place, which have no `again`.
        mover: moves the running statistics; None to leave that to `update`.
        how: for gradients that go the long way.
        wanted: which arguments of the function need gradients, where all do that can.
        saves_bias: whether the backward pass needs its value.
        adds: whether there is a residual whose gradient is that of the output.
        guards: of what fits.
        kept: what `fits` compares.
        step: torch's own way, where that is as good; what it leaves `again` computes.
        met: whether the first of them has gone the long way.
    """

    __slots__ = (
        *("adds", "again", "guards", "how", "kept", "met", "mover", "over"),
        *("saves_bias", "step", "wanted"),
    )

    again: Again | None
    over: Over | None
    mover: Mover | None
    how: How
    wanted: tuple[bool, ...]
    saves_bias: bool
    adds: bool
    kept: tuple[Any, ...]
    step: Step | None

    def __init__(self) -> None:
        self.again = self.over = self.step = None
        self.met, self.guards = False, Guards()

    def learn(self, call: Call, training: bool, running: Running, inplace: bool) -> None:
        """Take over what the long way has found out about `call`, the first of its kind."""
        if self.met:
            return
        backend = pick(call)
        if backend is not plain:
            self._take_over(backend, call, training, running, inplace)
        self.met = True  # not before: compiling takes seconds, in which users interrupt

    def _take_over(
        self, backend: Backend, call: Call, training: bool, running: Running, inplace: bool
    ) -> None:
        x, weight, bias, residual, _, eps, f = call
        there = (t is not None for t in (x, weight, bias, residual))
        self.wanted = *there, False, False, False
        flat = f.kind == "identity"
        self.saves_bias = bias is not None and (inplace or not flat)
        self.adds = residual is not None and flat
        no_value = None
        if bias is not None and not self.saves_bias:
            no_value = like(bias.dtype, bias.shape[0])
        of_residual = None if residual is None else residual.dtype
        self.how = How(backend, not training, eps, f, bias=no_value, residual_dtype=of_residual)
        self.mover = None
        if backend is native and not inplace:
            given = running[:2] if running.moves or not training else (None, None)
            self.step = native.step_of(call, not training, *given)
        if running.moves:
            moments = x.new_empty((3, x.shape[1]), device="meta")
            self.mover = numba.mover_of(running.mean, running.var, moments, running.momentum)
        y = torch.empty_like(x, device="meta")
        saved_bias, saved_residual = bias if self.saves_bias else None, None if flat else residual
        self.kept = _kept(y, x, weight, saved_bias, saved_residual)
        if inplace:
            self.over = _in_place.again(backend, call, not training)
        else:
            self.again = backend.again(call, not training)

    def fits(
        self,
        dy: Tensor,
        x: Tensor,
        moments: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> bool:
        """Whether what autograd got and kept is still what kernels were chosen for."""
        if not quiet():
            return False
        given = (dy, x, moments)
        if weight is not None:
            given = (*given, weight) if bias is None else (*given, weight, bias)
        elif bias is not None:
            given = (*given, bias)
        if residual is not None:
            given = (*given, residual)
        if self.guards.find(given):
            return True
        if not unseen(*given) or _kept(dy, x, weight, bias, residual) != self.kept:
            return False
        self.guards.keep(given, True)
        return True


def _kept(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> tuple[Any, ...]:
    """How they lie; a parameter is contiguous, as no others are familiar.

    What was saved may be another tensor by now, if its ``.data`` was set.
    """
    return (
        dy.stride(), x.dtype, x.shape, x.stride(),
        None if weight is None else (weight.dtype, weight.shape, weight.stride()),
        None if bias is None else (bias.dtype, bias.shape, bias.stride()),
        None if residual is None else (residual.dtype, residual.shape, residual.stride()),
    )  # fmt: skip
