"""One batch norm: its arguments are checked once, and the way to the kernels is chosen."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from batchnorm.functional import (
    _direct,
    _dispatched,
    _exported,
    _familiar,
    _group,
    _in_place,
    _ragged,
    _small,
    _sync,
)
from batchnorm.functional._check import (
    check,
    check_invertible,
    check_momentum,
    check_pool,
    check_residual,
)
from batchnorm.functional._check_kinds import check_axis
from batchnorm.functional._check_mask import position_mask
from batchnorm.functional._check_small import Small, check_options
from batchnorm.functional._running import Running
from batchnorm.functional._unseen import unseen
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call


class Rare(NamedTuple):
    """Options that few calls have, in one object: None, which stands for none, is told at once."""

    one_value: str = "raise"
    ghost_size: int | None = None
    renorm: tuple[float, float] | None = None
    process_group: Any = None

    def small(self, group: str, training: bool, running: Running) -> Small | None:
        """Those for small batches, checked, if there are any."""
        if self.one_value == "raise" and self.ghost_size is None and self.renorm is None:
            return None
        small = Small(self.one_value, self.ghost_size, self.renorm, group, training)
        check_options(small, running.mean, running.var)
        return small


# What `batch_norm` takes beside x and what is of x's shape: weight, bias, running statistics,
# training, eps, activation, backend, rare options and inplace.
Options = tuple[
    Tensor | None, Tensor | None, Running, bool, float, str | nn.Module | Activation | None,
    str | None, Rare | None, bool,
]  # fmt: skip


def normalize(
    x: Tensor, residual: Tensor | None, mask: Tensor | None, axis: int, options: Options
) -> Tensor:
    """What `batchnorm.functional.batch_norm` says of these arguments."""
    weight, bias, running, training, eps, activation, backend, rare, inplace = options
    known = None
    if rare is backend is mask is None and axis == 1:
        f = Activation.parse(activation)
        known = _familiar.look(x, weight, bias, running, training, eps, f, residual, inplace)
        if known is not None:
            again = known.again
            if again is not None:
                return _familiar.batch_norm(known, again, x, weight, bias, running, residual)
            if known.over is not None:
                y = _in_place.again(known, x, weight, bias, running)
                if y is not None:
                    return y
                inplace = False  # as the log tells
    group = ""
    if rare is not None and rare.process_group is not None:
        group = _group.name_of(rare.process_group)
    if x.is_nested:
        with _sync.telling(group):
            flat = _ragged.flat(x, residual, mask, axis, None if rare is None else rare.ghost_size)
        fresh = (*options[:-1], False)
        return flat.nested(normalize(flat.x, flat.residual, None, flat.axis, fresh))
    try:
        call, small = _checked(x, residual, mask, axis, options, group)
    except Exception:
        _sync.refuse(group)
        raise
    name = backend or ""
    if small is not None and (training or running.moves):
        y = _small.batch_norm(call, name, running, small)
    elif group:
        y = _dispatched.batch_norm(call, name, running, training, group)
    elif not unseen(x, weight, bias, residual, mask, running.mean, running.var):
        if backend is None and _exported.wanted(call, running, training):
            y = _exported.batch_norm(call, running, training)
        else:
            y = _dispatched.batch_norm(call, name, running, training)
    else:
        y = _in_place.batch_norm(x, call, axis, name, running, training) if inplace else None
        if known is not None:
            known.learn(call, training, running, inplace)
            if known.again is not None and known.step is not None:  # of other last digits
                return _familiar.batch_norm(known, known.again, x, weight, bias, running, residual)
        if y is not None:
            return y
        y = _direct.batch_norm(call, name, running, training)
    return y if call.x is x else y.movedim(1, axis)


def _checked(
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    axis: int,
    options: Options,
    group: str,
) -> tuple[Call, Small | None]:
    """The call with its channels on axis 1, and the options for small batches if there are any."""
    weight, bias, running, training, eps, activation, _, rare, inplace = options
    f = Activation.parse(activation)
    if residual is not None:
        check_residual(x, residual)
    if axis != 1 and axis != 1 - x.dim():
        x = _channels_to_front(x, axis)
        residual = None if residual is None else _channels_to_front(residual, axis)
    several = training and not group and (rare is None or rare.one_value == "raise")
    check(x, weight, bias, running, training, eps, axis, several)
    check_momentum(running)
    if running.pool is not None:
        check_pool(running.pool, x)
    if mask is not None:
        mask = position_mask(mask, x, axis, training and not group)
    if inplace:
        check_invertible(f)
    call = Call(x, weight, bias, residual, mask, eps, f)
    return call, None if rare is None else rare.small(group, training, running)


def _channels_to_front(x: Tensor, axis: int) -> Tensor:
    check_axis(axis, x.dim(), f"x with shape {tuple(x.shape)}")
    return x.movedim(axis, 1)
