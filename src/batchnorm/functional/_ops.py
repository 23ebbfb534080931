"""The operators as torch sees them: schema, kernels and fake kernels.

Everything a kernel decides is an argument of plain type, so that graphs can hold it:
an activation is its code and parameter, a backend its name ("" for the first that takes the call).
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.functional import _running
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call
from batchnorm.kernels._pick import pick
from batchnorm.moments import widest

LIBRARY = torch.library.Library("batchnorm", "DEF")

_CALL = (
    "Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    "float eps, int activation, float parameter, str backend"
)

LIBRARY.define(f"train(Tensor x, {_CALL}) -> (Tensor y, Tensor moments)")
LIBRARY.define("statistics(Tensor x, Tensor? mask, Tensor? apart, str backend) -> Tensor")
LIBRARY.define(f"normalize(Tensor x, Tensor moments, {_CALL}) -> Tensor")
LIBRARY.define(
    "backward(Tensor dy, Tensor x, Tensor moments, bool fixed, bool want_x, bool want_residual, "
    f"{_CALL}) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
)
LIBRARY.define(
    "update_running_(Tensor(a!)? mean, Tensor(b!)? var, Tensor(c!)? batches, "
    "Tensor(d!)? skipped, Tensor moments, float? momentum, bool bias_correction) -> ()"
)

CallArguments = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, float, int, float, str
]


def _unpack(x: Tensor, arguments: CallArguments) -> tuple[Call, str]:
    weight, bias, residual, mask, eps, code, parameter, backend = arguments
    activation = Activation.from_code(code, parameter)
    return Call(x, weight, bias, residual, mask, eps, activation), backend


def _train(x: Tensor, *arguments: *CallArguments) -> tuple[Tensor, Tensor]:
    call, backend = _unpack(x, arguments)
    return pick(call, backend).forward(call)


def _statistics(x: Tensor, mask: Tensor | None, apart: Tensor | None, backend: str) -> Tensor:
    """Under vmap a mapped `apart` tells that members keep statistics of their own."""
    call = Call(x, None, None, None, mask, 0.0, Activation())
    return pick(call, backend).statistics(x, mask)


def _normalize(x: Tensor, moments: Tensor, *arguments: *CallArguments) -> Tensor:
    call, backend = _unpack(x, arguments)
    return pick(call, backend).normalize(call, moments)


def _backward(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    fixed: bool,
    want_x: bool,
    want_residual: bool,
    *arguments: *CallArguments,
) -> tuple[Tensor, ...]:
    """A gradient that was not asked for is an empty tensor: operators cannot return None."""
    call, backend = _unpack(x, arguments)
    gradients = pick(call, backend).backward(dy, call, moments, fixed, (want_x, want_residual))
    return tuple(x.new_empty(0) if g is None else g for g in gradients)


def _fake_train(x: Tensor, *arguments: *CallArguments) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _fake_statistics(x)


def _fake_statistics(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((3, x.shape[1]), dtype=widest(x.device))


def _fake_normalize(x: Tensor, moments: Tensor, *arguments: *CallArguments) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    fixed: bool,
    want_x: bool,
    want_residual: bool,
    *arguments: *CallArguments,
) -> tuple[Tensor, ...]:
    weight, bias, residual = arguments[:3]
    nothing = x.new_empty(0)
    return (
        torch.empty_like(x) if want_x else nothing,
        nothing if weight is None else torch.empty_like(weight),
        x.new_empty(0) if bias is None else torch.empty_like(bias),
        torch.empty_like(residual) if want_residual and residual is not None else x.new_empty(0),
    )


def _fake_update_running_(*_: object) -> None:
    return None


for _name, _kernel, _fake in (
    ("train", _train, _fake_train),
    ("statistics", _statistics, _fake_statistics),
    ("normalize", _normalize, _fake_normalize),
    ("backward", _backward, _fake_backward),
    ("update_running_", _running.update, _fake_update_running_),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"batchnorm::{_name}", _fake, lib=LIBRARY)

train = torch.ops.batchnorm.train.default
statistics = torch.ops.batchnorm.statistics.default
normalize = torch.ops.batchnorm.normalize.default
backward = torch.ops.batchnorm.backward.default
update_running_ = torch.ops.batchnorm.update_running_.default
