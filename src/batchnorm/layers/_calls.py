"""The one call that a layer's forward makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional._normalize import Rare, normalize
from batchnorm.functional._running import Running
from batchnorm.functional._unseen import quiet
from batchnorm.functional._usual import Usual
from batchnorm.kernels._activation import Activation
from batchnorm.layers._buffers import widen
from batchnorm.layers._foreign import called
from batchnorm.layers._forwards import ours
from batchnorm.layers._passes import Given
from batchnorm.layers._rows import prepared, rewrapped, telling

if TYPE_CHECKING:
    from batchnorm.layers._state import Layer

Input = TypeVar("Input", Tensor, PackedSequence)


def normalized(
    self: Layer,
    input: Input,
    activation: Activation | None = None,
    residual: Input | None = None,
    mask: Tensor | None = None,
    inplace: bool = False,
    parameters: tuple[Tensor | None, Tensor | None] | None = None,
) -> Input:
    """What `functional.batch_norm` gives of a layer's state and options: the method of layers."""
    x: Any = input
    added: Any = residual
    axis, ambient = self.axis, None
    if isinstance(input, Proxy):
        return called(self, input, residual, mask)
    alone = quiet() and parameters is residual is mask is None
    changed = self.changed if alone else None
    usual = self.usual if alone else None
    if usual is not None and _same(usual, self, activation, inplace):
        y = usual.batch_norm(x, self._parameters, self._buffers)
        if y is not None:
            return y
    weight, bias, running_mean, running_var, num_batches_tracked, skipped = _state(self)
    if parameters is not None:
        weight, bias = parameters
    statistics = self._statistics
    if not self.plain and self.passes is not None:
        now = Given(statistics, self.ambient, running_mean, running_var)
        statistics, ambient, running_mean, running_var = self.passes.first(input, now)
    batch, moves = self.training, self.training and self.track_running_stats and self.update
    if statistics != "auto":
        batch = statistics == "batch"
    if running_mean is None or running_var is None:
        batch = batch or running_mean is running_var
        moves = moves and running_mean is not running_var
    elif running_mean.dtype.itemsize < 4 or running_var.dtype.itemsize < 4:
        widen(self, in_place=True)
    rare = pool = group = None
    if not self.plain:
        pool = self.pool
        group = self.process_group if self.training and (batch or moves) else None
        rare = Rare(self.one_value, self.ghost_size, self.renorm, group)
    if ambient is not None or not isinstance(x, Tensor) or x.dim() not in self.ranks:
        with telling(group):
            x, added, mask, axis = prepared(self, input, residual, mask, ambient)
    running = Running(
        running_mean, running_var, num_batches_tracked if moves else None,
        skipped if moves else None, self.momentum, self.bias_correction, moves, pool,
    )  # fmt: skip
    options = weight, bias, running, batch, self.eps, activation, None, rare, inplace
    y: Any = normalize(x, added, mask, axis, options)
    if alone and x is input:
        _remember(self, x, activation, (weight, bias), running, batch, inplace)
        if self.changed is not changed:  # by another thread, meanwhile
            self.__dict__.pop("usual", None)
    return y if x is input else rewrapped(input, y)


def _remember(
    self: Layer,
    x: Tensor,
    activation: Activation | None,
    parameters: tuple[Tensor | None, Tensor | None],
    running: Running,
    batch: bool,
    inplace: bool,
) -> None:
    """What this call has made known is for those like it, until an attribute changes."""
    if not self.plain or self.axis != 1 or self.bias_correction:
        return
    if not (activation is None or type(activation) is Activation) or not ours(type(self)):
        return  # its options may change without being set
    usual = self.usual
    if usual is None or not _same(usual, self, activation, inplace):
        usual = Usual(self.training, batch, self.eps, activation, parameters, running, inplace)
        self.__dict__["usual"] = usual
    usual.learn(x, *parameters, running)


def _same(usual: Usual, self: Layer, activation: Activation | None, inplace: bool) -> bool:
    """Whether a layer's calls are still of that kind."""
    return (
        usual.activation is activation and usual.mode is self.training and usual.inplace is inplace
    )


def _state(self: Layer) -> tuple[Tensor | None, ...]:
    """What `forward` reads; by attribute only where another module keeps it: that is slower."""
    p, b = self._parameters, self._buffers
    if "weight" in p and "bias" in p and "running_mean" in b and "running_var" in b:
        batches, skipped = b.get("num_batches_tracked"), b.get("skipped")
        return p["weight"], p["bias"], b["running_mean"], b["running_var"], batches, skipped
    state = self.weight, self.bias, self.running_mean, self.running_var
    return (*state, self.num_batches_tracked, getattr(self, "skipped", None))
