"""Inputs that are not as a layer's formula has them: packed, without a batch axis, wrong."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional import _group, _sync
from batchnorm.functional._check_kinds import check_input
from batchnorm.functional._hidden import hidden

if TYPE_CHECKING:
    from batchnorm.layers._masked import Ambient
    from batchnorm.layers._state import Layer


def prepared(
    layer: Layer, input: Any, residual: Any, mask: Tensor | None, ambient: Ambient | None
) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """What the function takes for an input that it could not take, or not under this mask.

    Args:
        layer: whose input it is.
        input: as the layer was given it.
        residual: likewise.
        mask: likewise.
        ambient: the mask around the layer.

    Returns:
        x, residual, mask and the axis of the channels.
    """
    if isinstance(input, PackedSequence):
        x, residual = _rows(
            layer, input, residual, ambient.mask if mask is None and ambient else mask
        )
        return x, residual, None, 1
    x = with_batch_axis(input, layer.ranks)
    check_rank(x, layer.ranks)
    if x is not input:
        residual, mask = (t.unsqueeze(0) if isinstance(t, Tensor) else t for t in (residual, mask))
    if mask is None and ambient is not None:
        if x is not input and hidden(ambient.mask):
            ambient = ambient._replace(mask=ambient.mask.unsqueeze(0))
        mask = ambient.fitted(x, layer.axis)
    return x, residual, mask, layer.axis


def with_batch_axis(x: Any, ranks: tuple[int, ...]) -> Any:
    """`x`, where `torch.vmap` has hidden the only axis of examples with one in its place."""
    if isinstance(x, Tensor) and x.dim() not in ranks and x.dim() + 1 in ranks and hidden(x):
        return x.unsqueeze(0)
    return x


@contextmanager
def telling(process_group: Any) -> Generator[None]:
    """What is raised inside keeps this process from its exchange: the others are told."""
    try:
        yield
    except Exception:
        if process_group is not None:
            with suppress(Exception):  # a group that cannot be told of it
                _sync.refuse(_group.name_of(process_group))
        raise


def _rows(
    layer: Layer, input: PackedSequence, residual: Any, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The values of all sequences, each of which is data, and those of the residual."""
    if mask is not None:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} with a PackedSequence; expected mask=None, since "
            f"all of its values are data: leave others out of it, or give the padded sequence"
        )
    if layer.ghost_size is not None:
        raise ValueError(
            f"ghost_size={layer.ghost_size} with a PackedSequence, whose values are one batch; "
            f"expected ghost_size=None, or the padded sequence with its mask"
        )
    if residual is None:
        return input.data, None
    if not isinstance(residual, PackedSequence):
        raise TypeError(
            f"residual is a {type(residual).__name__} and the input a PackedSequence; expected "
            f"a residual packed as the input is"
        )
    return input.data, residual.data


def rewrapped(input: Any, y: Tensor) -> Any:
    """`y`, which came of what `prepared` made of `input`, as a packed sequence or example again."""
    return input._replace(data=y) if isinstance(input, PackedSequence) else y.squeeze(0)


def check_rank(x: Any, ranks: tuple[int, ...]) -> None:
    """Check that a layer's input is a tensor, and has the dimensions that it takes."""
    check_input("input", x)
    if x.dim() not in ranks:
        wanted = " or ".join(f"{rank}D" for rank in ranks)
        fewer = min(ranks) - 1
        example = f"under torch.vmap also {fewer}D, one example; " if hidden(x) else ""
        raise ValueError(
            f"expected {wanted} input (got {x.dim()}D input of shape {tuple(x.shape)}); {example}"
            f"BatchNorm1d takes 2D or 3D, BatchNorm2d 4D and BatchNorm3d 5D input"
        )
