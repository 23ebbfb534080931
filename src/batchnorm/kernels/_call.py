"""What a kernel is given, what it gives back, and what a backend is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from batchnorm.kernels._activation import Activation


class Call(NamedTuple):
    """Everything about one batch norm but its statistics; checked before it is made.

    Attributes:
        x: ``(N, C, ...)``, any strides.
        weight: gamma, ``(C,)`` or None for ones.
        bias: beta, ``(C,)`` or None for zeros.
        residual: added before the activation, of x's shape, or None.
        mask: which positions count, broadcastable to x with size 1 on axis 1, or None for all.
        eps: added to the variance.
        activation: applied last.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    mask: Tensor | None
    eps: float
    activation: Activation


class Gradients(NamedTuple):
    """What `Backend.backward` returns; None for what was not asked for or does not exist."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None


class Again(Protocol):
    """Both directions of calls that look like one that was made.

    x, weight, bias and residual must have that call's dtypes, shapes and strides, and dy those of
    its output. No mask. All gradients are computed.
    """

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """y, and the moments: those given, or the batch's own."""
        ...

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        moments: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, weight, bias and residual; no identity needs a value of the last two."""
        ...


class Backend(Protocol):
    """One way to compute batch norm: the whole operation, and its halves.

    Statistics travel packed as `Moments.pack` makes them, shape ``(3, C)``. Outputs have the dtype
    of what they belong to and the strides of ``torch.empty_like(x)``. Positions that the mask
    leaves out come out as 0, send no gradient, and may hold NaN.
    """

    name: str

    def here(self) -> tuple[bool, str]:
        """Whether it is chosen by itself on this machine, and for what or why not."""
        ...

    def refuses(self, call: Call) -> str | None:
        """Why this backend will not take this call; None if it will."""
        ...

    def again(self, call: Call, fixed: bool) -> Again | None:
        """Calls like this one, with given statistics where `fixed`; None for no shorter way."""
        ...

    def forward(self, call: Call, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize with the batch's own statistics; y and the moments.

        y is `out` where that is given, of the strides of ``torch.empty_like(x)``; it may be x.
        """
        ...

    def backward(
        self, dy: Tensor, call: Call, moments: Tensor, fixed: bool, wanted: tuple[bool, bool]
    ) -> Gradients:
        """Gradients of `forward`, or of `normalize` where the statistics are `fixed`.

        `wanted` says whether the gradients of x and of the residual are needed.
        """
        ...

    def backward_from_output(
        self,
        dy: Tensor,
        call: Call,
        moments: Tensor,
        fixed: bool,
        wanted: tuple[bool, bool],
        out: Tensor | None = None,
    ) -> Gradients:
        """As `backward`, where ``call.x`` is the output that was written over the input.

        dx is `out` where that is given, of the strides of ``torch.empty_like(x)``; it may be dy.
        `batchnorm.kernels._in_place` says when this loses no digits.
        """
        ...

    def statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The packed moments of x."""
        ...

    def normalize(self, call: Call, moments: Tensor, out: Tensor | None = None) -> Tensor:
        """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, as `forward`."""
        ...

    def backward_reduce(self, dy: Tensor, call: Call, moments: Tensor) -> Tensor:
        """``sum(g)`` and ``sum(g xhat)``, shape ``(2, C)``, with g before the activation."""
        ...

    def backward_input(self, dy: Tensor, call: Call, moments: Tensor, sums: Tensor) -> Tensor:
        """The gradient of x, from sums that may have been merged with those of other processes."""
        ...
