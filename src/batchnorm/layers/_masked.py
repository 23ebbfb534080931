"""A mask for the batch norms inside a model, whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.functional._check_kinds import check_input, check_mask, check_module, whole
from batchnorm.kernels._check import fitting
from batchnorm.layers._passes import Passes
from batchnorm.layers._state import Layer
from batchnorm.layers._switches import ADOPTED, named_others

Resize = Callable[[Tensor, tuple[int, ...]], Tensor]


class Ambient(NamedTuple):
    """A mask that `masked` has put around a layer's calls.

    Attributes:
        mask: as it was given.
        resize: what makes it fit where a layer's input has other positions; None to refuse.
        path: the layer's, for messages.
    """

    mask: Tensor
    resize: Resize | None
    path: str

    def fitted(self, x: Tensor, axis: int) -> Tensor:
        """The mask for the positions of x: one a position, or one an example."""
        if x.is_nested:
            return self.mask  # which is refused
        mask, positions = self.mask, list(x.shape)
        del positions[axis]
        if list(mask.shape) == positions or mask.shape == x.shape[:1]:
            return mask
        if len(positions) == 1:
            if x.shape[0] == mask.numel():  # every position has become a row
                return mask.flatten()
            if x.shape[0] == mask.shape[0]:  # pooled over its positions: data where one was
                return (mask > 0).flatten(1).any(1)
        if self.resize is not None and mask.shape[0] == x.shape[0]:
            mask = self.resize(mask, tuple(positions))
            if list(mask.shape) == positions:
                return mask
        layer = f"the batch norm {self.path}" if self.path else "the model"
        raise ValueError(
            f"mask of shape {tuple(self.mask.shape)} does not fit {layer}, whose input has shape "
            f"{tuple(x.shape)} with the channels on axis {axis}; expected "
            f"{fitting(positions)}; where the model makes its input smaller give "
            f"masked(resize='nearest'), or a function (mask, positions) -> mask"
        )


def nearest(mask: Tensor, positions: tuple[int, ...]) -> Tensor:
    """The mask at position ``floor(i * old / new)`` of each axis, as strided layers sample."""
    if mask.dim() != len(positions):
        return mask
    for axis, new in enumerate(positions):
        old = mask.shape[axis]
        if axis and old != new:
            at = torch.arange(new, device=mask.device) * old // max(new, 1)
            mask = mask.index_select(axis, at)
    return mask


@contextmanager
def masked(
    model: nn.Module, mask: Tensor | None, *, resize: str | Resize | None = None
) -> Generator[None]:
    """Inside the block every batch norm of `model` takes `mask`, however deep it lies.

    What the mask leaves out enters neither statistics nor gradients, comes out of each batch norm
    as 0, and may hold NaN. A layer that is given a mask of its own keeps to that. A mask for each
    position also serves where positions have become rows, ``(N * L, C)``, and where they were
    pooled to ``(N, C)``: there an example counts if any of its positions does. Layers that are no
    batch norm know nothing of the mask: a convolution, a pooling, an instance or group norm takes
    in what lies at those positions, which is 0 where it comes out of a batch norm.

    A compiled block in an eager activation checkpoint is recomputed under what holds then: let the
    mask's block last until after ``backward()``.

    Args:
        model: whose batch norms are meant; a single layer will do.
        mask: ``(N,)``, one value for each example, or one for each position, ``(N, L)`` or
            ``(N, H, W)``, bool or real-valued as `batchnorm.functional.batch_norm` takes it; None
            lifts the mask of a block around this one.
        resize: for layers whose input has other positions than the mask: "nearest" samples it as
            strided layers do, or a function ``(mask, positions) -> mask``; None raises.

    Raises:
        ValueError: the model has batch norms that know no mask, such as torch's, or none at all;
            a mask that does not fit a layer's input, when that layer is called.
        TypeError: a mask that is no tensor, or ``model`` is no module.

    Example:
        >>> from batchnorm.layers import BatchNorm1d
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 1), BatchNorm1d(3), nn.ReLU())
        >>> is_data = lengths_mask(torch.tensor([4, 2]))
        >>> with masked(model, is_data):
        ...     y = model(torch.randn(2, 2, 4))
        >>> y[1, :, 2:].count_nonzero().item()
        0
    """
    if resize is not None and resize != "nearest" and not callable(resize):
        raise ValueError(
            f"resize={resize!r}; expected None, 'nearest', or a function (mask, positions) -> mask"
        )
    if mask is not None:
        check_mask(mask)
    how = resize if callable(resize) else nearest if resize else None
    layers = _layers(model)
    before = {layer: layer.ambient for layer in layers.values()}
    try:
        for path, layer in layers.items():
            layer.ambient = None if mask is None else Ambient(mask, how, path)
            layer.passes = layer.passes or Passes()
        yield
    finally:
        for layer, ambient in before.items():
            layer.ambient = ambient


def _layers(model: nn.Module) -> dict[str, Layer]:
    check_module("masked", model)
    norms = Layer | _BatchNorm
    found = {path: m for path, m in model.named_modules() if isinstance(m, norms)}
    deaf = named_others(found)
    if deaf:
        raise ValueError(f"no mask reaches {deaf}; {ADOPTED}")
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no batch norm that a mask could reach; expected a model "
            f"with batch norms of this package"
        )
    return {path: m for path, m in found.items() if isinstance(m, Layer)}


def lengths_mask(lengths: Tensor, longest: int | None = None) -> Tensor:
    """Which positions of padded sequences are data: ``mask[n, i] = i < lengths[n]``.

    Args:
        lengths: ``(N,)``, integers from 0 to `longest`.
        longest: the padded length; None for the largest of `lengths`.

    Returns:
        Bool, ``(N, longest)``, on the device of `lengths`.

    Raises:
        TypeError: lengths that are no integers, or `longest` is none.
        ValueError: lengths of another rank, below 0 or, on the CPU, above `longest`.

    Example:
        >>> lengths_mask(torch.tensor([2, 3])).int().tolist()
        [[1, 1, 0], [1, 1, 1]]
    """
    check_input("lengths", lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths is {lengths.dtype}; expected integers, such as lengths.long()")
    if lengths.dim() != 1:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; expected (N,), one an example")
    if longest is not None and not whole(longest):
        raise TypeError(
            f"longest={longest!r}; expected the padded length, an integer, such as x.shape[1], or "
            f"None for the largest of lengths"
        )
    if longest is None:
        longest = max(int(lengths.max()), 0) if len(lengths) else 0
    elif longest < 0:
        raise ValueError(f"longest={longest}; expected the padded length, 0 or more")
    looked = lengths.is_cpu and not torch.compiler.is_compiling()
    if looked and len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= longest:
        raise ValueError(
            f"lengths run from {int(lengths.min())} to {int(lengths.max())}; expected 0 to "
            f"{longest}, the padded length, which longest= says"
        )
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
