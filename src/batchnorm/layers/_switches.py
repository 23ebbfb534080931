"""The two switches of every batch norm in a model, for a block of code."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.functional._check_kinds import check_module
from batchnorm.layers._passes import Passes
from batchnorm.layers._state import Layer


@contextmanager
def switches(
    model: nn.Module, *, statistics: str | None = None, update: bool | None = None
) -> Generator[None]:
    """Inside the block every batch norm of `model` has these switches; each gets its own back.

    ``update=False`` is for a forward pass that must not count: the second one of sharpness-aware
    minimization, the generator's pass through a discriminator, the other view of a contrastive
    step. A compiled block in an eager activation checkpoint is recomputed under what holds then:
    let the switches' block last until after ``backward()``.

    Args:
        model: whose batch norms are meant; a single layer will do.
        statistics: "auto", "batch" or "running", as `BatchNorm1d` has it; None to leave it.
        update: whether running statistics move in training; None to leave it.

    Raises:
        ValueError: the model has batch norms without switches, such as torch's, or none at all;
            statistics of another name.
        TypeError: ``model`` is no module.

    Example:
        >>> import torch
        >>> from batchnorm.layers import BatchNorm1d
        >>> model = nn.Sequential(nn.Linear(2, 3), BatchNorm1d(3))
        >>> with switches(model, update=False):
        ...     y = model(torch.randn(4, 2))
        >>> model[1].num_batches_tracked.item(), model[1].update
        (0, True)
    """
    before = [
        (layer, layer.statistics, layer.update) for layer in layers_of(model, "switches", "switch")
    ]
    try:
        for layer, *_ in before:
            if statistics is not None:
                layer.statistics = statistics
                layer.passes = layer.passes or Passes()
            if update is not None:
                layer.update = update
        yield
    finally:
        for layer, statistics, update in before:
            layer.statistics, layer.update = statistics, update


ADOPTED = (
    "expected batch norms of this package: model = batchnorm.adopt(model).model makes torch's "
    "ours, or put them in their place, such as batchnorm.BatchNorm2d for torch.nn.BatchNorm2d"
)


def named_others(found: Mapping[str, nn.Module]) -> str:
    """Those batch norms that are not of this package, by path and class."""
    others = ((p, m) for p, m in found.items() if not isinstance(m, Layer))
    return ", ".join(f"{p or 'the model'} ({type(m).__name__})" for p, m in others)


def layers_of(model: nn.Module, verb: str, what: str) -> list[Layer]:
    """The batch norms of `model`, all of which must be of this package to do `what`."""
    check_module(verb, model)
    found = {p: m for p, m in model.named_modules() if isinstance(m, Layer | _BatchNorm)}
    without = named_others(found)
    if without:
        raise ValueError(f"{without} cannot {what}; {ADOPTED}")
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no batch norm to {what}; expected a model with batch "
            f"norms of this package"
        )
    return [m for m in found.values() if isinstance(m, Layer)]
