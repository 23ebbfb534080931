"""Nested tensors: examples of unequal length or size, every one of whose positions is data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.functional._check_kinds import check_axis


class Flat(NamedTuple):
    """All positions of all examples as one batch.

    Attributes:
        x: the values.
        residual: its values.
        axis: of their channels.
        nested: what nests an output again as x was.
    """

    x: Tensor
    residual: Tensor | None
    axis: int
    nested: Callable[[Tensor], Tensor]


def flat(x: Any, residual: Any, mask: Tensor | None, axis: int, ghost_size: int | None) -> Flat:
    """The positions of a nested x."""
    if mask is not None:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} with a nested x; expected mask=None, since every "
            f"position of a nested tensor is data: leave positions out of it, or give x padded, "
            f"torch.nested.to_padded_tensor(x, 0.0), with its mask"
        )
    if ghost_size is not None:
        raise ValueError(
            f"ghost_size={ghost_size} with a nested x, whose positions are one batch; "
            f"expected ghost_size=None, or x padded with its mask, torch.nested.to_padded_tensor"
        )
    if residual is not None and not residual.is_nested:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)} and x is nested; expected a residual "
            f"nested as x is"
        )
    check_axis(axis, x.dim(), f"a nested x of {x.dim()} dimensions")
    way = _jagged if x.layout is torch.jagged and x.lengths() is None else _parts
    return way(x, residual, axis % x.dim())


def _jagged(x: Any, residual: Any, axis: int) -> Flat:
    """One ragged axis, along which the examples lie end to end: it is the batch axis then."""
    ragged = x._ragged_idx
    if axis == ragged:
        raise ValueError(
            f"axis={axis} is the ragged axis of x, whose length differs from example to example; "
            f"expected the channels' axis, such as axis=-1 for (N, lengths, C)"
        )
    values = x.values().movedim(ragged - 1, 0)
    if residual is not None:
        if residual.layout is not torch.jagged or not torch.equal(residual.offsets(), x.offsets()):
            raise ValueError(
                "residual's examples differ from those of x in length; expected a residual nested "
                "as x is"
            )
        residual = residual.values().movedim(residual._ragged_idx - 1, 0)

    def nested(y: Tensor) -> Tensor:
        y = y.movedim(0, ragged - 1)
        return torch.nested.nested_tensor_from_jagged(y, x.offsets(), jagged_dim=ragged)

    return Flat(values, residual, axis if axis < ragged else axis - 1, nested)


def _parts(x: Any, residual: Any, axis: int) -> Flat:
    """Examples of any sizes, one by one: their positions are put together and dealt out again."""
    parts = x.unbind()
    channels = {part.shape[axis - 1] for part in parts}
    if len(channels) > 1:
        raise ValueError(
            f"x has {sorted(channels)} channels on axis {axis}, from example to example; expected "
            f"one number of channels: say with axis= where the channels are"
        )
    rows = _rows(parts, axis)
    if residual is not None:
        others = residual.unbind()
        if [part.shape for part in others] != [part.shape for part in parts]:
            raise ValueError(
                "residual's examples differ from those of x in shape; expected a residual nested "
                "as x is"
            )
        residual = _rows(others, axis)
    moved = [part.movedim(axis - 1, -1).shape for part in parts]
    counts = [shape[:-1].numel() for shape in moved]

    def nested(y: Tensor) -> Tensor:
        dealt = [
            piece.reshape(shape).movedim(-1, axis - 1)
            for piece, shape in zip(y.split(counts), moved, strict=True)
        ]
        return torch.nested.as_nested_tensor(dealt, layout=x.layout)

    return Flat(rows, residual, 1, nested)


def _rows(parts: tuple[Tensor, ...], axis: int) -> Tensor:
    """All positions as rows, ``(positions, C)``."""
    return torch.cat([part.movedim(axis - 1, -1).flatten(0, -2) for part in parts])
