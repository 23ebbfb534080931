"""Parameters and running statistics of many layers, copied by one operation."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batchnorm.observe._measured import Array

Key = tuple[str, str]  # path and quantity
States = list[tuple[list[Key], list[int], Tensor]]  # which, of what length, end to end
NAMES = (
    ("running_mean", "running_mean"),
    ("running_var", "running_var"),
    ("weight", "gamma"),
    ("bias", "beta"),
)


def states_of(layers: Mapping[str, nn.Module]) -> States:
    """Running statistics, gamma and beta as they are now."""
    return _copied(
        ((path, quantity), value)
        for path, module in layers.items()
        for name, quantity in NAMES
        if (value := _of(module, name)) is not None and not is_lazy(value)
    )


def gradients_of(layers: Mapping[str, nn.Module]) -> States:
    """The gradients that gamma and beta have now."""
    return _copied(
        ((path, f"{quantity}_gradient"), value.grad)
        for path, module in layers.items()
        for name, quantity in NAMES[2:]
        if (value := _of(module, name)) is not None and value.is_leaf and value.grad is not None
    )


def told(states: States) -> dict[Key, Array]:
    """Each quantity for itself."""
    out: dict[Key, Array] = {}
    for keys, lengths, values in states:
        out |= zip(keys, (v.numpy() for v in values.float().cpu().split(lengths)), strict=True)
    return out


def _of(module: nn.Module, name: str) -> Any:
    # An attribute of a module is looked up in three dictionaries, one after the other.
    held = module._parameters.get(name)
    if held is None:
        held = module._buffers.get(name)
    return getattr(module, name, None) if held is None else held


def _copied(named: Iterable[tuple[Key, Tensor]]) -> States:
    alike: dict[tuple[torch.dtype, torch.device], list[tuple[Key, Tensor]]] = {}
    for key, value in named:
        alike.setdefault((value.dtype, value.device), []).append((key, value))
    with torch.no_grad():
        return [
            (
                [key for key, _ in group],
                [value.numel() for _, value in group],
                torch.cat([v if v.dim() == 1 else v.reshape(-1) for _, v in group]),
            )
            for group in alike.values()
        ]
