"""Through the operators, which every mode, transform and tensor subclass of torch can see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from batchnorm.functional import _formula as _formula  # registers the derivatives
from batchnorm.functional import _ops, _sync
from batchnorm.functional import _vmap as _vmap  # registers the batching rules
from batchnorm.functional._running import Running, before, fixed_moments, update
from batchnorm.kernels._call import Call


def batch_norm(
    call: Call,
    backend: str,
    running: Running,
    training: bool,
    group: str = "",
    one_value: str = "raise",
) -> Tensor:
    """Normalize with the batch's own statistics and move the running ones, or with those."""
    x, weight, bias, residual, mask, eps, activation = call
    if running.mean is not None and torch._C._are_functorch_transforms_active():
        weight = _mapped_like(weight, running.mean, x.shape[1])
    options = (eps, activation.code, activation.parameter, backend)
    if not training:
        seen = None
        if running.moves:
            seen = _ops.statistics(x, mask, running.mean, backend, group)
        fixed = fixed_moments(*before(running, seen))
        y = _ops.normalize(x, fixed, weight, bias, residual, mask, *options)
    else:
        y, seen = _ops.train(x, weight, bias, residual, mask, *options, group)
        if group and one_value == "raise":
            _sync.check_several(seen, tuple(x.shape))
    if running.moves and seen is not None:
        if _functionalized():
            if running.skipped is not None and not torch._is_functional_tensor(running.skipped):
                running = running._replace(skipped=None)  # no state dict brings it in
            update(*running.arguments(seen), branching=False)
        else:
            _ops.update_running_(*running.arguments(seen))
    return y


def _functionalized() -> bool:
    """`torch.func.functionalize` rewrites torch's own in-place operations, and refuses others."""
    if torch.compiler.is_dynamo_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return any(t.key() == TransformType.Functionalize for t in get_interpreter_stack() or [])


def _mapped_like(weight: Tensor | None, running_mean: Tensor, channels: int) -> Tensor:
    """Under `torch.vmap` members that have running statistics of their own do not pool."""
    nothing = torch.zeros_like(running_mean)
    if channels != nothing.shape[0]:  # groups joined the channels
        nothing = nothing.repeat(channels // nothing.shape[0])
    return nothing + 1 if weight is None else (weight + nothing).to(weight.dtype)
