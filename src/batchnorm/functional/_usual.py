"""A place from which the same call comes over and over, such as a layer: its options are known."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from batchnorm.functional import _familiar, _in_place
from batchnorm.functional._guards import Guards
from batchnorm.functional._normalize import normalize
from batchnorm.functional._recomputed import recomputing
from batchnorm.functional._running import Running
from batchnorm.functional._saved import hooked
from batchnorm.kernels._activation import Activation

_State = dict[str, Any]


class Usual:
    """What is known of the calls of a layer whose options stay as they are.

    Args:
        mode: whether the layer trains.
        training: whether the batch's own statistics normalize.
        eps: added to the variance.
        activation: applied last; None for none.
        parameters: weight and bias, of which only whether there is one counts, now and later.
        running: running statistics, likewise, and how they move.
        inplace: whether to write the output over x.
    """

    __slots__ = (
        "_eps",
        "_guards",
        "_has",
        "_momentum",
        "_moves",
        "_training",
        "activation",
        "inplace",
        "mode",
    )

    def __init__(
        self,
        mode: bool,
        training: bool,
        eps: float,
        activation: Activation | None,
        parameters: tuple[Tensor | None, Tensor | None],
        running: Running,
        inplace: bool,
    ) -> None:
        self.mode, self.activation, self.inplace = mode, activation, inplace
        self._training, self._eps = training, eps
        self._momentum, self._moves = running.momentum, running.moves
        self._has = _present(*parameters, *running[:3])
        self._guards = Guards()

    def batch_norm(self, x: Tensor, parameters: _State, buffers: _State) -> Tensor | None:
        """The output of such a call, which nobody looks at; None where its like is not known."""
        try:
            weight, bias = parameters["weight"], parameters["bias"]
            mean, var = buffers["running_mean"], buffers["running_var"]
            batches, skipped = buffers["num_batches_tracked"], buffers["skipped"]
        except KeyError:  # another module keeps it
            return None
        if not self._moves:
            batches = skipped = None
        has = (
            weight is not None, bias is not None, mean is not None, var is not None,
            batches is not None,
        )  # fmt: skip
        if has != self._has:
            return None
        known = self._guards.find(_given((x, weight, bias, mean, var), has))
        if known is None or hooked() or recomputing():
            return None
        running = Running(mean, var, batches, skipped, self._momentum, False, self._moves)
        if self.inplace:
            y = _in_place.again(known, x, weight, bias, running)
            return self._fresh(x, weight, bias, running) if y is None else y
        return _familiar.batch_norm(known, known.again, x, weight, bias, running)

    def _fresh(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running
    ) -> Tensor:
        """The output in fresh memory, as the log tells."""
        f = self.activation
        options = weight, bias, running, self._training, self._eps, f, None, None, False
        return normalize(x, None, None, 1, options)

    def learn(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running
    ) -> None:
        """Take over what became known by a call that was made."""
        if self._guards.full() or _present(weight, bias, *running[:3]) != self._has:
            return
        f = Activation.parse(self.activation)
        how = running, self._training, self._eps, f, None, self.inplace
        known = _familiar.look(x, weight, bias, *how)
        if known is not None and (known.over if self.inplace else known.again) is not None:
            given = _given((x, weight, bias, *running[:2]), self._has)
            if self._guards.find(given) is None:  # an x that was overwritten has a gradient since
                self._guards.keep(given, known)


def _present(*tensors: Tensor | None) -> tuple[bool, ...]:
    return tuple(t is not None for t in tensors)


def _given(tensors: tuple[Any, ...], has: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """What is compared: x, whatever that is, and those that there are of the others."""
    if False not in has:
        return tensors
    return tensors[0], *(t for t in tensors[1:] if t is not None)
