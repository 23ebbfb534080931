"""What is kept of a layer's values while the model runs: copies of few, moments of many."""

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.moments import Moments

POSITIONS = 1024  # of a channel's values, as many decide its percentiles; all of them its moments
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill [0, 1) evenly, and on no grid of pixels


class Part(NamedTuple):
    """Values of one layer, of one call or of several.

    Args:
        sample: copies of values, ``(positions, C)``: all, or where there are many, some.
        moments: of all values; None where the sample holds them all.
    """

    sample: Tensor
    moments: Moments | None = None

    @property
    def channels(self) -> int:
        """C."""
        return self.sample.shape[1]

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return self.sample.numel() * self.sample.element_size()


Seen = dict[tuple[str, str], Part]  # by path and what: input, output, gradient


def mask_of(module: nn.Module, x: Tensor, axis: int, kwargs: dict[str, Any]) -> Tensor | None:
    """The mask of a batch norm's call: its own, or what `batchnorm.masked` puts around it."""
    mask = kwargs.get("mask")
    ambient = getattr(module, "ambient", None) if mask is None else None
    return mask if ambient is None or x.is_nested else ambient.fitted(x, axis)


def told_by(y: Tensor, axis: int) -> Part | None:
    """The moments of the input, from a call of ours that has normalized with them."""
    call: Any = y.grad_fn
    moments: Tensor | None = getattr(call, "moments", None)
    if moments is None or call.fixed or moments.shape[1] != y.shape[axis]:
        return None
    return Part(y.new_empty(0, moments.shape[1]), Moments.unpack(moments))


def squares_of(x: Tensor, axis: int, mask: Tensor | None = None) -> Part | None:
    """Keep what the mean square needs: of many values itself, as a variance about zero."""
    if mask is not None or x.is_nested or x.dim() < 2 or (x.dim() == 2 and len(x) <= POSITIONS):
        return part_of(x, axis, mask)
    x, count = x.detach(), x.numel() // x.shape[axis]
    wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    axes = [i for i in range(x.dim()) if i != axis % x.dim()]
    square = torch.linalg.vector_norm(x, dim=axes, dtype=wide).double().square_().div_(count)
    counts = torch.full_like(square, count)
    return Part(x.new_empty(0, len(square)), Moments(counts, torch.zeros_like(square), square))


def part_of(x: Tensor, axis: int, mask: Tensor | None = None) -> Part | None:
    """Keep what the statistics of `x` need; None where the mask leaves nothing.

    ``mask`` is that of our layers: one weight an example, or one for each of its positions.
    """
    x = x.detach()
    if mask is None and x.dim() == 2 and x.shape[0] <= POSITIONS and axis in (1, -1):
        return Part(x.clone())
    if x.is_nested:
        rows = [one.movedim(axis - 1 if axis > 0 else axis, -1) for one in x.unbind()]
        x, axis = torch.cat([one.flatten(0, -2) for one in rows]), 1
    x = x.movedim(axis, 1) if x.dim() > 1 else x.reshape(-1, 1)
    if mask is not None:
        return _masked(x, mask.detach())
    some = _some(x.numel() // x.shape[1], x.device)
    if some is None:
        return Part(x.movedim(1, -1).reshape(-1, x.shape[1]).clone())
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    rows = torch.div(some, flat.shape[2], rounding_mode="floor")
    return Part(flat[rows, :, some % flat.shape[2]], Moments.of(x))


def _masked(x: Tensor, mask: Tensor) -> Part | None:
    places = (len(x), *x.shape[2:])
    mask = mask.reshape(-1, *mask.shape[1:], *[1] * (len(places) - mask.dim()))
    kept = x.movedim(1, -1)[mask.expand(places) > 0]
    some = _some(len(kept), x.device)
    sample = kept if some is None else kept[some]
    return Part(sample, Moments.of(x, mask.unsqueeze(1))) if len(kept) else None


def _some(positions: int, device: torch.device) -> Tensor | None:
    """Which positions are looked at, spread evenly; None for all. Draws no random number."""
    if positions <= POSITIONS:
        return None
    spread = torch.arange(POSITIONS, dtype=torch.float64) * GOLDEN % 1 * positions
    return spread.long().to(device)


def together(parts: list[Part]) -> Part:
    """Several calls as one."""
    if len(parts) == 1:
        return parts[0]
    sample = torch.cat([part.sample for part in parts])  # none of those that are told by moments
    if all(part.moments is None for part in parts):
        return Part(sample)
    return Part(sample, reduce(Moments.merge, [p.moments or Moments.of(p.sample) for p in parts]))


def calls_as_one(seen: dict[tuple[str, str], list[Part]]) -> tuple[Seen, dict[str, list[int]]]:
    """The calls of each layer as one; of those with other channels than the first had, none.

    Returns:
        The values; and the channels, the first call's first, of each layer that had several.
    """
    widths: dict[str, int] = {}
    for what in ("output", "input"):
        for (path, kind), parts in seen.items():
            if kind == what:
                widths.setdefault(path, parts[0].channels)
    kept: Seen = {}
    odd: dict[str, list[int]] = {}
    for (path, what), parts in seen.items():
        alike = [part for part in parts if part.channels == widths.get(path)]
        if alike:
            kept[path, what] = together(alike)
        if path in widths and len(alike) < len(parts):
            odd.setdefault(path, [widths[path], *(part.channels for part in parts)])
    return kept, odd
