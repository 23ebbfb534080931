"""How far hidden units' means have moved, as what comes to their activations shows it."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from statistics import fmean, median
from typing import Any

from torch import Tensor, nn

from batchnorm.studies._terrain import Ground

Moments = dict[str, tuple[Tensor, Tensor]]  # by place: mean and standard deviation of each unit


def moments(ground: Ground, at: list[str]) -> Moments:
    """Of what the modules at these paths give, in training mode, hooks and noise included."""
    seen: dict[str, Tensor] = {}

    def see(place: str, module: nn.Module, args: tuple[Any, ...], z: Tensor) -> None:
        seen[place] = z.detach().movedim(1, 0).flatten(1).double()

    with ExitStack() as hooks:
        for place in at:
            module = ground.model.get_submodule(place)
            hooks.callback(module.register_forward_hook(partial(see, place)).remove)
        ground.at({}, [])
    return {place: (z.mean(1), z.std(1, correction=0)) for place, z in seen.items()}


def drift(before: Mapping[str, Any], now: Mapping[str, Any]) -> float | None:
    """By how many of its former standard deviations a unit's mean has moved.

    The median over a layer's units, averaged over layers; units that were the same for all examples
    have no scale, and are left out.
    """
    layers: list[float] = []
    for place, (mean, _) in now.items():
        was, spread = before[place]
        moved = ((mean - was).abs() / spread)[spread > 0]
        moved = moved[moved.isfinite()].tolist()
        layers += [median(moved)] if moved else []
    return fmean(layers) if layers else None
