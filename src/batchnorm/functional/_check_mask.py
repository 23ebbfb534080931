"""What a mask gets that does not fit, and how one that does is laid beside x."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from batchnorm.functional._check import shown
from batchnorm.functional._check_kinds import check_mask
from batchnorm.functional._unseen import unseen
from batchnorm.kernels._check import fitting


def position_mask(mask: Any, x: Tensor, axis: int, training: bool) -> Tensor:
    """`mask` as the kernels take it: x's rank, 1 on the channel axis."""
    check_mask(mask)
    if mask.device != x.device:
        raise ValueError(
            f"mask is {mask.dtype} on {mask.device}; expected bool or real weights on {x.device}, "
            f"where x is: mask.to(x.device)"
        )
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} requires a gradient, which batch norm has none "
            f"for: weights are frequencies, not parameters; expected mask.detach()"
        )
    selects = mask.dtype == torch.bool
    if mask.numel() and (training or not selects) and unseen(mask):
        some = mask.any() if selects else _weighs(mask)
        if training and x.numel() and not some:
            raise ValueError(
                f"mask leaves no position of x with shape {shown(x, axis)}, and there are no "
                f"statistics of nothing; expected at least one: leave this batch out, or normalize "
                f"with running statistics (training=False)"
            )
    positions = (x.shape[0], *x.shape[2:])
    if mask.shape == x.shape[:1]:
        return mask.view(-1, *[1] * (x.dim() - 1))
    if mask.shape == positions:
        return mask.unsqueeze(1)
    raise ValueError(
        f"mask has shape {tuple(mask.shape)}; expected {fitting(positions)}, where x has shape "
        f"{shown(x, axis)}" + _way_out(mask, positions, axis)
    )


def _weighs(mask: Tensor) -> bool:
    """Whether some weight is above zero; an error where one is none."""
    least, most = (end.item() for end in mask.aminmax())
    if least >= 0 and most < math.inf:
        return most > 0
    wrong = most if least >= 0 else least
    raise ValueError(
        f"mask has a weight of {wrong:g}; expected finite weights of 0, which leaves a position "
        f"out, or more, how often it counts: mask > 0 selects, mask.clamp(min=0) drops what is "
        f"below, mask == 0 selects by a mask to be added (0 and -inf)"
    )


def _way_out(mask: Tensor, positions: tuple[int, ...], axis: int) -> str:
    """What makes a mask fit that has channels too, or lacks an axis."""
    if mask.dim() == len(positions) + 1:
        return f"; all channels have the same mask: mask.select({axis}, 0)"
    try:
        together = torch.broadcast_shapes(mask.shape, positions)
    except RuntimeError:
        return ""
    return f"; the same for several: mask.expand{positions}" if together == positions else ""
