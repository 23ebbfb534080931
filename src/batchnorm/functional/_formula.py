"""Derivatives: which operator each gradient comes from, and how the gradients move in turn.

The first backward is a kernel. What follows it is written out in plain operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from batchnorm.functional import _ops
from batchnorm.functional._function import Function
from batchnorm.functional._quantities import Quantities
from batchnorm.functional._saved import Saved, restored


def _below_autograd(op: Any, *arguments: Any) -> Any:
    """Call past autograd; under nested function transforms with gradients on for the outer ones."""
    with torch._C._AutoDispatchBelowAutograd():
        if not torch._C._are_functorch_transforms_active():
            return op(*arguments)
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            return op(*arguments)


def _refuse_forward_over_forward() -> None:
    """Torch drops the inner tangent of a custom function here and would return a wrong number."""
    stack = get_interpreter_stack() or []
    if sum(level.key() == TransformType.Jvp for level in stack) > 1:
        raise NotImplementedError(
            "batch norm under forward-mode over forward-mode differentiation (jacfwd of jacfwd) "
            "is not supported by torch's custom functions; use torch.func.hessian, which is "
            "jacfwd(jacrev(f))"
        )


def _nothing(ctx: Any) -> tuple[None, ...]:
    """No gradient for the mask and the options."""
    return (None,) * (1 + len(ctx.options))


class _Forward(Function):
    """The operators `train` and, where moments are given, `normalize`."""

    @staticmethod
    def forward(ctx: Any, moments: Tensor | None, x: Tensor, *arguments: Any) -> Any:
        ctx.fixed = moments is not None
        if moments is None:
            y, moments = _below_autograd(_ops.train, x, *arguments)
        else:
            y = _below_autograd(_ops.normalize, x, moments, *arguments)
        weight, bias, residual, mask = arguments[:4]
        ctx.options = arguments[4:]
        ctx.residual_dtype = None if residual is None else residual.dtype
        if ctx.options[1] == 0:  # identity: z is not needed again, and they may change meanwhile
            bias = None if bias is None else torch.empty_like(bias)
            residual = None
        ctx.save_for_backward(x, moments, weight, bias, residual, mask)
        ctx.save_for_forward(x, moments, weight, bias, residual, mask)
        ctx.set_materialize_grads(False)
        if ctx.fixed:
            return y
        ctx.mark_non_differentiable(moments)
        return y, moments

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        dy = cotangents[0]
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = restored(dy, Saved(*ctx.saved_tensors), residual_dtype=ctx.residual_dtype)
        x, moments, *tensors = saved
        wanted = ctx.needs_input_grad[1:5]
        kept = wanted[3] and tensors[2] is not None
        *gradients, to_residual = _ops.backward(
            dy, x, moments, ctx.fixed, wanted[0], kept, *tensors, *ctx.options
        )
        if wanted[3] and not kept:
            to_residual = dy if tensors[3] is None else torch.where(tensors[3] > 0, dy, 0.0)
            to_residual = to_residual.to(ctx.residual_dtype)
        gradients = zip((*gradients, to_residual), wanted, strict=True)
        return (None, *(g if want else None for g, want in gradients), *_nothing(ctx))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _refuse_forward_over_forward()
        x, moments, *tensors = ctx.saved_tensors
        n = Quantities(x, moments, ctx.fixed, (*tensors, *ctx.options))
        dy = (n.slope * n.tangents(*tangents[1:5])[1]).to(x.dtype)
        return dy if ctx.fixed else (dy, None)


class _Backward(Function):
    """The operator `backward`."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, moments: Tensor, fixed: bool, *rest: Any) -> Any:
        gradients = _below_autograd(_ops.backward, dy, x, moments, fixed, *rest)
        ctx.fixed, ctx.wanted, ctx.options = fixed, rest[:2], rest[6:]
        ctx.save_for_backward(dy, x, moments, *rest[2:6])
        ctx.save_for_forward(dy, x, moments, *rest[2:6])
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        """Differentiate Phi = a.dx + b.dweight + c.dbias + r.dresidual = g.h, linear in g.

        There h = weight invstd Q(a) + b xhat + c + r. The cotangent of dy is f'(z) h, that of z is
        f''(z) dy h; x and weight also move Phi at constant g, x through invstd and both sums of Q.
        """
        dy, *saved = ctx.saved_tensors
        x, moments, *tensors = restored(dy, Saved(*saved))
        exists = (ctx.wanted[0], tensors[0] is not None, tensors[1] is not None, ctx.wanted[1])
        a, b, c, r = (v if there else None for v, there in zip(cotangents, exists, strict=True))
        n = Quantities(x, moments, ctx.fixed, (*tensors, *ctx.options))
        dy_inside = n.inside(dy)
        g = n.slope * dy_inside
        a = torch.zeros_like(g) if a is None else n.inside(a)
        b = torch.zeros_like(n.invstd) if b is None else n.channel(b)
        qa = n.q(a)
        h = n.weight * n.invstd * qa + b * n.xhat
        if c is not None:
            h = h + n.channel(c)
        if r is not None:
            h = h + n.inside(r)
        h = n.inside(h)
        to_z = n.activation.curvature(n.z) * dy_inside * h
        to_x = n.invstd * n.p(n.weight * to_z + b * g)
        if not ctx.fixed:
            through_std = n.share * n.xhat * n.whole(g * qa)
            through_sums = n.p(g) * n.whole(n.share * a * n.xhat)
            through_sums = through_sums + n.p(n.share * a) * n.whole(g * n.xhat)
            to_x = to_x - n.weight * n.invstd.square() * (through_std + through_sums)
        to_weight = n.total(to_z * n.xhat + g * n.invstd * qa).flatten()
        results = (to_x, to_weight, n.total(to_z).flatten(), to_z)
        to_x, to_weight, to_bias, to_residual = (
            None if t is None else v.to(t.dtype)
            for t, v in zip((x, *tensors[:3]), results, strict=True)
        )
        to_dy = (n.slope * h).to(dy.dtype)
        return (to_dy, to_x, *(None,) * 4, to_weight, to_bias, to_residual, *_nothing(ctx))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _refuse_forward_over_forward()
        dy, x, moments, *tensors = ctx.saved_tensors
        ddy, dx = tangents[:2]
        dweight, dbias, dresidual = tangents[6:9]
        n = Quantities(x, moments, ctx.fixed, (*tensors, *ctx.options))
        dxhat, dz = n.tangents(dx, dweight, dbias, dresidual)
        dy_inside = n.inside(dy)
        g = n.slope * dy_inside
        dg = n.activation.curvature(n.z) * dz * dy_inside
        if ddy is not None:
            dg = dg + n.slope * n.inside(ddy)
        moved = n.weight * n.p(dg)
        if dweight is not None:
            moved = moved + n.channel(dweight) * n.p(g)
        if not ctx.fixed:
            sums = dxhat * n.whole(g * n.xhat) + n.xhat * n.whole(g * dxhat)
            moved = moved - n.weight * n.share * sums
            if dx is not None:
                slower = n.invstd * n.whole(n.share * n.inside(dx) * n.xhat)
                moved = moved - n.weight * slower * n.p(g)
        results = (
            n.invstd * moved,
            n.total(dg * n.xhat + g * dxhat).flatten(),
            n.total(dg).flatten(),
            dg,
        )
        exists = (ctx.wanted[0], tensors[0] is not None, tensors[1] is not None, ctx.wanted[1])
        return tuple(
            v.to(like.dtype) if there else x.new_zeros(0)
            for v, like, there in zip(results, (x, *tensors[:3]), exists, strict=True)
        )


class _Total(Function):
    """The operator `total`; all ranks' copies of the sum send their cotangents back to each."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: str) -> Tensor:
        ctx.group = group
        return _below_autograd(_ops.total, values, group)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        return _ops.total(cotangents[0], ctx.group), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _refuse_forward_over_forward()
        return _ops.total(tangents[0], ctx.group)


def _apply(function: Any, op: Any, op_arguments: tuple[Any, ...], *arguments: Any) -> Any:
    """Through `function` where a derivative may be asked for, else straight to the operator."""
    if torch._C._are_functorch_transforms_active():
        with enable_single_level_autograd_function():
            return function.apply(*arguments)
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return function.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*op_arguments)


def _train(*arguments: Any) -> Any:
    return _apply(_Forward, _ops.train, arguments, None, *arguments)


def _normalize(x: Tensor, moments: Tensor, *arguments: Any) -> Any:
    return _apply(_Forward, _ops.normalize, (x, moments, *arguments), moments, x, *arguments)


def _backward(*arguments: Any) -> Any:
    return _apply(_Backward, _ops.backward, arguments, *arguments)


def _total(*arguments: Any) -> Tensor:
    return _apply(_Total, _ops.total, arguments, *arguments)


def _statistics(*arguments: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.statistics(*arguments)


def _update_running(*arguments: Any) -> None:
    with torch._C._AutoDispatchBelowAutograd():
        _ops.update_running_(*arguments)


for _name, _function in (
    ("train", _train),
    ("statistics", _statistics),
    ("normalize", _normalize),
    ("backward", _backward),
    ("total", _total),
    ("update_running_", _update_running),
):
    _ops.LIBRARY.impl(_name, _function, "Autograd")
