"""Strides where channels last and first are one order in memory, which torch's kernel mixes up.

With one channel, or images of one pixel, only the strides of sizes of one tell which of the two was
meant. The kernel gives its output the default ones, and the gradient of x too. A gradient of the
output that has those while x has the others, as ReLU's has, it reads in a way that took six times
as long at (64, 512, 1, 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Strides:
    """The strides that were meant; the order of the elements in memory stays.

    Args:
        x: the input, contiguous.
    """

    __slots__ = ("_meant", "_shape", "made")

    def __init__(self, x: Tensor) -> None:
        self._shape, self._meant = x.shape, x.stride()
        self.made = torch.empty(x.shape, device="meta").stride()

    def differ(self) -> bool:
        """Whether torch's kernel makes others, which are `made`."""
        return self.made != self._meant

    def of_gradients(self, node: Any) -> None:
        """Let gradients have them too, on their way in and out of the kernel's node in a graph."""
        node.register_prehook(self._first)
        node.register_hook(self._first)

    def of_output(self, y: Tensor) -> Tensor:
        """The same tensor, which nobody else sees, with the strides that were meant.

        A view would enter the graph, and its gradient would be a copy.
        """
        y.data = y.data.as_strided(self._shape, self._meant)
        return y

    def _first(self, gradients: tuple[Any, ...], *_: Any) -> tuple[Any, ...]:
        """Those of a node, of which the first is that of y or of x; what else a hook is given."""
        first, *others = gradients
        if first is None or first.stride() != self.made:
            return gradients
        return first.as_strided(self._shape, self._meant), *others
