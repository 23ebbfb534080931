"""What a block gave a layer for a pass, found again when checkpointing recomputes the pass later.

`masked`, `switches` and `in_domain` may end before the backward pass begins, in which activation
checkpointing calls the layer again, with the same input to the last bit.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional._recomputed import KEPT, recomputing

if TYPE_CHECKING:
    from batchnorm.layers._masked import Ambient

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_hooks: Any = _top_saved_tensors_default_hooks


class Given(NamedTuple):
    """What a layer normalizes by: its switch, a mask around it and the running statistics."""

    statistics: str
    ambient: Ambient | None
    mean: Tensor | None
    var: Tensor | None

    def kept(self) -> Given:
        """With the running statistics as they are now, where they normalize."""
        if self.statistics != "running" or self.mean is None or self.var is None:
            return self
        return self._replace(mean=self.mean.clone(), var=self.var.clone())


class InDomain(NamedTuple):
    """What a layer with domains normalizes by."""

    domain: int | Tensor | None

    def kept(self) -> InDomain:
        """As it is."""
        return self


T = TypeVar("T", Given, InDomain)


class Passes(Generic[T]):
    """The last passes of a layer that may be recomputed, each known by the bits of its input."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Tensor, T]] = deque(maxlen=KEPT)

    def first(self, x: Any, now: T) -> T:
        """`now`; in a recomputation what it was in the first pass with this input.

        Of passes with the same input the later one is recomputed first.
        """
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return now
        if recomputing():
            bits = _bits(x)
            for i in reversed(range(len(self._kept))):
                one = self._kept[i]
                if one[0].device == bits.device and torch.equal(one[0], bits):
                    del self._kept[i]
                    self._kept.appendleft(one)
                    return one[1]
        elif not torch.is_grad_enabled() or _hooks(True) is not None:  # as under checkpointing
            self._kept.append((_bits(x), now.kept()))
        return now


def _bits(x: Any) -> Tensor:
    """Sums of x's bits along each axis, in which NaN is as good as any."""
    x = x.data if isinstance(x, PackedSequence) else x
    x = x.values() if x.is_nested else x
    kind = _INTEGERS.get(x.dtype.itemsize, torch.int8)
    whole = x.detach().contiguous().view(kind)
    axes = range(whole.dim())
    return torch.cat([whole.sum([d for d in axes if d != axis]) for axis in axes])
