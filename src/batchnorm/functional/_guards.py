"""What is known of tensors that look alike, found by one question of torch's to all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._C._dynamo import guards

_MOST = 8  # kinds of tensors: each that is not the right one costs a third of a microsecond


class Guards:
    """What tensors look like, each kind with what is known of it.

    Torch's compiled graphs are guarded by the same question: it compares class, dispatch keys with
    those that the thread adds, dtype, device, whether a gradient is required, sizes and strides.
    """

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: list[tuple[Any, Any]] = []

    def full(self) -> bool:
        """Whether no more kinds are kept."""
        return len(self._kinds) >= _MOST

    def find(self, tensors: tuple[Tensor, ...]) -> Any:
        """What is known of such tensors, or None."""
        for check, known in self._kinds:
            if check(*tensors):
                return known
        return None

    def keep(self, tensors: tuple[Tensor, ...], known: Any) -> None:
        """Remember what is known of such tensors, unless there are too many kinds.

        Not of a call that has the same tensor twice, to which torch's answer is always no.
        """
        if not self.full():
            make: Any = guards.TensorGuards  # whose stub is wrong about sizes
            guard = make(
                *tensors,
                dynamic_dims_sizes=[list(t.shape) for t in tensors],
                dynamic_dims_strides=[list(t.stride()) for t in tensors],
            )
            if guard.check(*tensors):
                self._kinds.append((guard.check, known))
