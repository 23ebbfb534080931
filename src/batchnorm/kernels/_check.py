"""What public functions are given, checked: what is on or off, and tensors that are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels._takes import DTYPES


def check_switch(name: str, value: object) -> None:
    """Check that this is on or off: any other text or object would count as on."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}; expected True or False")


def check_asked(x: Any, residual: Any, mask: Any) -> Tensor | None:
    """Check tensors that `batch_norm` could be called with; the mask as the kernels take it."""
    given = {"x": x, "residual": residual, "mask": mask}
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}; expected a tensor, or to leave it out"
            )
    if x.dim() < 2 or x.dtype not in DTYPES:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}; expected a batch and channels, "
            f"(N, C, ...), in one of {', '.join(map(str, DTYPES))}"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}; expected that of x, {tuple(x.shape)}"
        )
    if mask is not None and not (mask.dtype.is_floating_point or mask.dtype == torch.bool):
        raise ValueError(f"mask is {mask.dtype}; expected bool or real weights: mask.bool()")
    positions = (x.shape[0], *x.shape[2:])
    if mask is None or mask.shape == positions:
        return None if mask is None else mask.unsqueeze(1)
    if mask.shape == x.shape[:1]:
        return mask.view(-1, *[1] * (x.dim() - 1))
    raise ValueError(
        f"mask has shape {tuple(mask.shape)}; expected {fitting(positions)}, where x has shape "
        f"{tuple(x.shape)}"
    )


def fitting(positions: Sequence[int]) -> str:
    """The shapes that a mask of these positions may have, in words."""
    examples = f"({positions[0]},), one value for each example"
    if len(positions) == 1:
        return examples
    return f"{tuple(positions)}, one value for each position, or {examples}"
