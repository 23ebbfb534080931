"""The operators as torch sees them: schema, kernels and fake kernels.

Everything a kernel decides is an argument of plain type, so that graphs can hold it:
an activation is its code and parameter, a backend its name ("" for the first that takes the call).
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.functional import _running, _sync
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Backend, Call
from batchnorm.kernels._pick import pick
from batchnorm.moments import widest

LIBRARY = torch.library.Library("batchnorm", "DEF")

_CALL = (
    "Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    "float eps, int activation, float parameter, str backend, str group=''"
)

LIBRARY.define(f"train(Tensor x, {_CALL}) -> (Tensor y, Tensor moments)")
LIBRARY.define(
    "statistics(Tensor x, Tensor? mask, Tensor? apart, str backend, str group='') -> Tensor"
)
LIBRARY.define(f"normalize(Tensor x, Tensor moments, {_CALL}) -> Tensor")
LIBRARY.define(
    "backward(Tensor dy, Tensor x, Tensor moments, bool fixed, bool want_x, bool want_residual, "
    f"{_CALL}) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
)
LIBRARY.define("total(Tensor values, str group) -> Tensor")
LIBRARY.define(
    "update_running_(Tensor(a!)? mean, Tensor(b!)? var, Tensor(c!)? batches, "
    "Tensor(d!)? skipped, Tensor moments, float? momentum, bool bias_correction, "
    "Tensor(e!)? pool=None) -> ()"
)

CallArguments = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, float, int, float, str, str
]


def _unpack(x: Tensor, arguments: CallArguments) -> tuple[Call, Backend, str]:
    weight, bias, residual, mask, eps, code, parameter, backend, *last = arguments
    activation = Activation.from_code(code, parameter)
    call = Call(x, weight, bias, residual, mask, eps, activation)
    group = last[0] if last else ""  # torch leaves out what equals the schema's default
    with _sync.telling(group):
        return call, pick(call, backend), group


def _train(x: Tensor, *arguments: *CallArguments) -> tuple[Tensor, Tensor]:
    call, backend, group = _unpack(x, arguments)
    return _sync.forward(call, backend, group) if group else backend.forward(call)


def _statistics(
    x: Tensor, mask: Tensor | None, apart: Tensor | None, backend: str, group: str = ""
) -> Tensor:
    """Under vmap a mapped `apart` tells that members keep statistics of their own."""
    call, chosen, group = _unpack(x, (None, None, None, mask, 0.0, 0, 0.0, backend, group))
    return _sync.statistics(call, chosen, group) if group else chosen.statistics(x, mask)


def _normalize(x: Tensor, moments: Tensor, *arguments: *CallArguments) -> Tensor:
    call, backend, _ = _unpack(x, arguments)
    return backend.normalize(call, moments)


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
    call, backend, group = _unpack(x, arguments)
    wanted = want_x, want_residual
    if group and not fixed:
        gradients = _sync.backward(dy, call, moments, wanted, backend, group)
    else:
        gradients = backend.backward(dy, call, moments, fixed, wanted)
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


def _fake_total(values: Tensor, group: str) -> Tensor:
    return torch.empty_like(values)


def _fake_update_running_(*_: object) -> None:
    return None


for _name, _kernel, _fake in (
    ("train", _train, _fake_train),
    ("statistics", _statistics, _fake_statistics),
    ("normalize", _normalize, _fake_normalize),
    ("backward", _backward, _fake_backward),
    ("total", _sync.total, _fake_total),
    ("update_running_", _running.update, _fake_update_running_),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"batchnorm::{_name}", _fake, lib=LIBRARY)

train = torch.ops.batchnorm.train.default
statistics = torch.ops.batchnorm.statistics.default
normalize = torch.ops.batchnorm.normalize.default
backward = torch.ops.batchnorm.backward.default
total = torch.ops.batchnorm.total.default
update_running_ = torch.ops.batchnorm.update_running_.default
