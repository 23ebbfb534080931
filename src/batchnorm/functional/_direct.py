"""The short way to a kernel: eager calls on plain tensors, past torch's dispatcher.

An operator written in Python costs ten microseconds and more at each of the dispatcher's stops.
Where nothing would look at the call on its way (no mode, transform, tracer or profiler, no tensor
subclass) it reaches the same kernels without them, and its backward pass likewise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.functional import _ops
from batchnorm.functional._function import Function
from batchnorm.functional._running import Running, before, fixed_moments, update
from batchnorm.functional._saved import Saved, hooked, restored
from batchnorm.functional._unseen import unseen
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Backend, Call, Gradients
from batchnorm.kernels._pick import pick


def batch_norm(call: Call, backend: str, running: Running, training: bool) -> Tensor:
    """Normalize with the batch's own statistics and move the running ones, or with those."""
    chosen = pick(call, backend)
    if torch.is_grad_enabled():
        function: Any = BatchNorm
        seen: list[Tensor] = []
        y = function.apply(*call[:4], call, chosen, running, training, seen)
    else:
        y, _, *seen = _run(call, chosen, running, training)
    if running.moves:  # after autograd took what it saves, which it may refuse
        update(*running.arguments(seen[0]))
    return y


def _run(call: Call, backend: Backend, running: Running, training: bool) -> tuple[Tensor, ...]:
    """The output, the moments that normalized it, and those that move the running ones."""
    if training:
        y, moments = backend.forward(call)
        return y, moments, moments
    if not running.moves:
        moments = fixed_moments(running.mean, running.var, plain=True)
        return backend.normalize(call, moments), moments
    seen = backend.statistics(call.x, call.mask)
    moments = fixed_moments(*before(running, seen), plain=True)
    return backend.normalize(call, moments), moments, seen


class How(NamedTuple):
    """How a call was made, for its gradients.

    Attributes:
        backend: by which.
        fixed: whether with statistics that do not depend on x.
        eps: added to the variance.
        activation: applied last.
        hooked: whether what was saved went through hooks.
        bias: in the place of a bias of which a backward pass needs no value.
        residual_dtype: that of the residual, if there was one.
    """

    backend: Backend
    fixed: bool
    eps: float
    activation: Activation
    hooked: bool = False
    bias: Tensor | None = None
    residual_dtype: torch.dtype | None = None


@lru_cache
def like(dtype: torch.dtype, channels: int) -> Tensor:
    """In the place of a bias of which a backward pass needs no value.

    It is kept for later calls, and autograd saves nothing that was made in inference mode.
    """
    with torch.inference_mode(False):
        return torch.empty(channels, dtype=dtype)


def gradients(dy: Tensor, saved: Saved, how: How, wanted: tuple[bool, ...]) -> Gradients:
    """Those that are wanted of x, weight, bias and the residual."""
    if saved.bias is None:
        saved = saved._replace(bias=how.bias)
    saved = restored(dy, saved, residual_dtype=how.residual_dtype)
    x, moments, weight, bias, residual, mask = saved
    want_x, want_weight, want_bias, want_residual = wanted
    kept, f = want_residual and residual is not None, how.activation
    if torch.is_grad_enabled() or how.hooked or not unseen(dy, *saved):
        dx, dweight, dbias, dresidual = _ops.backward(
            dy, x, moments, how.fixed, want_x, kept, weight, bias, residual, mask, how.eps,
            f.code, f.parameter, how.backend.name,
        )  # fmt: skip
    else:
        call = Call(x, weight, bias, residual, mask, how.eps, f)
        dx, dweight, dbias, dresidual = how.backend.backward(
            dy, call, moments, how.fixed, (want_x, kept)
        )
    if want_residual and not kept:
        dresidual = dy if mask is None else torch.where(mask > 0, dy, 0.0)
        dresidual = dresidual.to(how.residual_dtype or dy.dtype)
    return Gradients(
        dx if want_x else None,
        dweight if want_weight else None,
        dbias if want_bias else None,
        dresidual if want_residual else None,
    )


class BatchNorm(Function):
    """One call of a backend, and one for its gradients; of the name that autograd's graph shows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
        backend: Backend,
        running: Running,
        training: bool,
        seen: list[Tensor],
    ) -> Tensor:
        y, moments, *moving = _run(call, backend, running, training)
        seen.extend(moving)
        ctx.fixed, ctx.moments = not training, moments  # `observe` reads them
        how = How(backend, not training, call.eps, call.activation, hooked())
        if residual is not None:
            how = how._replace(residual_dtype=residual.dtype)
        if call.activation.kind == "identity":  # z is not needed again, and they may change
            if bias is not None:
                how = how._replace(bias=like(bias.dtype, bias.shape[0]))
            bias = residual = None
        ctx.how = how
        ctx.save_for_backward(x, moments, weight, bias, residual, call.mask)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        dy = cotangents[0]
        if dy is None:
            return (None,) * 9
        saved = Saved(*ctx.saved_tensors)
        return *gradients(dy, saved, ctx.how, ctx.needs_input_grad[:4]), *(None,) * 5
