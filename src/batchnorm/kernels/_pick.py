"""Which backend takes a call: an ordered list, and the reasons of those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from batchnorm.kernels import native, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Backend, Call
from batchnorm.kernels._check import check_asked

ORDER: tuple[Backend, ...] = (numba, native, plain)


def pick(call: Call, name: str = "") -> Backend:
    """The first backend that takes `call`; a named one takes it or raises.

    Raises:
        ValueError: `name` is no backend, or that backend refuses; the message gives the reasons.
    """
    for backend in ORDER:
        if name in ("", backend.name) and backend.refuses(call) is None:
            return backend
    names = [backend.name for backend in ORDER]
    if name not in names:
        raise ValueError(f"backend={name!r} is not known; expected None or one of {names}")
    reasons = [f"{b.name}: {b.refuses(call) or 'would take it'}" for b in ORDER]
    raise ValueError(
        f"backend={name!r} cannot take x of shape {tuple(call.x.shape)}, {call.x.dtype} on "
        f"{call.x.device} ({'; '.join(reasons)}); use backend=None to let the first that can "
        f"take it"
    )


class Row(NamedTuple):
    """What one backend does.

    Attributes:
        name: what ``backend=`` takes.
        runs: whether it is chosen by itself: for some calls on this machine, or for the one asked
            about.
        words: for what, or why not.
    """

    name: str
    runs: bool
    words: str


@dataclass(frozen=True, repr=False)
class Backends:
    """The backends in the order in which they are asked; prints as a table.

    Attributes:
        rows: one for each.
    """

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = (
            f"{r.name:<{width}}  {'yes' if r.runs else 'no ':<3}  {r.words}" for r in self.rows
        )
        return "\n".join(lines)


def backends(
    x: Tensor | None = None,
    *,
    activation: str | nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Backends:
    """Which kernels run on this machine, and why the others do not.

    Args:
        x: where given, which of them takes this tensor, and why those before it do not; the
            channels on axis 1.
        activation: as `batchnorm.functional.batch_norm` takes it.
        residual: the same.
        mask: the same.

    Returns:
        Rows of a name, whether it is chosen, and for what or why not, in the order of asking.

    Raises:
        ValueError: an activation that is not known, a shape or dtype that `batch_norm` refuses.
        TypeError: what is no tensor.

    Example:
        >>> import torch
        >>> backends(torch.ones(4, 3, dtype=torch.float64, device="meta"))
        numba   no   it computes on the CPU, and x is on meta
        native  no   it serves the CPU, CUDA and MPS, and x is on meta
        plain   yes  takes it
    """
    if x is None:
        return Backends(tuple(Row(b.name, *b.here()) for b in ORDER))
    mask = check_asked(x, residual, mask)
    call = Call(x, None, None, residual, mask, 1e-5, Activation.parse(activation))
    chosen = pick(call)
    return Backends(
        tuple(
            Row(
                b.name, b is chosen, "takes it" if b is chosen else b.refuses(call) or "comes later"
            )
            for b in ORDER
        )
    )
