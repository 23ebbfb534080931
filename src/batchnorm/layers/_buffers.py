"""Running statistics in float32 or wider, whatever a module is cast to, assigned or emptied to."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from batchnorm.functional._check_kinds import WHOLE
from batchnorm.functional._unseen import unseen

if TYPE_CHECKING:
    from batchnorm.layers._state import Layer

_MOVING = ("running_mean", "running_var")


def widen(layer: _NormBase, *, in_place: bool = False) -> None:
    """Cast what came narrow; `in_place` where another, such as FSDP, holds the tensors too."""
    for name in _MOVING:
        buffer = layer._buffers.get(name)
        if buffer is not None and buffer.dtype.itemsize < 4 and not is_lazy(buffer):
            if in_place:
                buffer.data = buffer.data.float()
            else:
                layer._buffers[name] = buffer.float()


def keep(layer: Layer, before: dict[str, Tensor | None]) -> None:
    """After a cast or a move: from the buffers `before`, which no half precision has rounded."""
    for name in _MOVING:
        kept, now = before.get(name), layer._buffers.get(name)
        if kept is not None and now is not None and now.dtype.itemsize < 4:
            layer._buffers[name] = kept.to(device=now.device, dtype=torch.float32)
    mean, now = before.get("running_mean"), layer._buffers.get("running_mean")
    if mean is not None and now is not None and mean.is_meta and not (now.is_meta or is_lazy(now)):
        layer.reset_anew()  # to_empty leaves what the memory held
    elif before.get("skipped") is not None:
        place_count(layer, before["skipped"])


def place_count(layer: _NormBase, skipped: Tensor | None) -> None:
    """Put the count of batches kept out, which no state dict brings, where the others are."""
    mean = layer._buffers.get("running_mean")
    if mean is not None and skipped is not None:
        if skipped.is_meta and not mean.is_meta:
            layer._buffers["skipped"] = torch.zeros_like(skipped, device=mean.device)
        else:
            layer._buffers["skipped"] = skipped.to(mean.device)


def kept_out(skipped: Tensor | None) -> int:
    """How many batches were kept out, where looking at the count is no part of a computation."""
    if skipped is None or not unseen(skipped):
        return 0
    return int(skipped)


def take_count(state_dict: dict[str, Any], key: str, own: Tensor | None) -> str:
    """Make the number of batches of a state dict an integer; what is wrong with one that is none.

    Where state dicts were averaged, it is a float. In the place of what is wrong comes the layer's
    `own`, which is as good as nothing loaded.
    """
    count = state_dict.get(key)
    if not isinstance(count, Tensor) or count.dtype in WHOLE or own is None:
        return ""
    good = count.dtype.is_floating_point and count.numel() == 1
    if good and not count.is_meta:
        good = count.item() >= 0 and count.item() % 1 == 0
    state_dict[key] = count.to(own.dtype) if good else own
    if good:
        return ""
    return (
        f"{key} is {count.dtype}, {reprlib.repr(count.tolist())}; expected how many batches were "
        f"seen, an integer: state_dict[{key!r}] = torch.tensor(0), or as many as there were"
    )
