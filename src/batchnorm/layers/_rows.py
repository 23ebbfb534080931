"""Inputs that are not as a layer's formula has them: packed sequences, and other ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional import _group, _sync

if TYPE_CHECKING:
    from batchnorm.functional._normalize import Rare
    from batchnorm.layers._state import Layer


def rows(
    layer: Layer, input: PackedSequence, residual: Any, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The values of all sequences, each of which is data, and those of the residual."""
    if mask is None and layer.ambient is not None:
        mask = layer.ambient.mask
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
    """`y`, the values that came of those of `input`, as a packed sequence again."""
    return input._replace(data=y)


def refuse_rank(x: Tensor, ranks: tuple[int, ...], rare: Rare | None) -> Never:
    """Say which ranks the layer takes, and let no other process wait for this one."""
    if rare is not None and rare.process_group is not None:
        _sync.refuse(_group.name_of(rare.process_group))
    wanted = " or ".join(f"{rank}D" for rank in ranks)
    raise ValueError(
        f"expected {wanted} input (got {x.dim()}D input of shape {tuple(x.shape)}); "
        f"BatchNorm1d takes 2D or 3D, BatchNorm2d 4D and BatchNorm3d 5D input"
    )
