"""Running statistics of k micro-batches as of one mini-batch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from batchnorm.functional import _ops
from batchnorm.functional._running import update
from batchnorm.layers._switches import layers_of
from batchnorm.moments import widest


@contextmanager
def pooled(model: nn.Module) -> Generator[None]:
    """Inside the block running statistics gather; on its end they move once, as for one batch.

    For gradient accumulation: the moments of all batches seen inside are merged exactly, so that
    the running statistics become those of the whole mini-batch, however it was divided, and
    ``num_batches_tracked`` counts one. Each micro-batch is still normalized by its own statistics.
    One that is not finite keeps the whole mini-batch out. Where the block raises, nothing moves.

    Args:
        model: whose batch norms are meant; a single layer will do. Layers that do not update, in
            evaluation or by their switch, stay as they are.

    Raises:
        ValueError: the model has batch norms that cannot pool, such as torch's, or none at all,
            one that has not seen its first input, or one that is inside such a block already.
        TypeError: ``model`` is no module.

    Example:
        >>> from batchnorm.layers import BatchNorm1d
        >>> layer = BatchNorm1d(1, momentum=1.0)
        >>> with pooled(layer):
        ...     for part in (torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0], [8.0]])):
        ...         y = layer(part)
        >>> layer.running_mean.item(), layer.running_var.item(), layer.num_batches_tracked.item()
        (4.0, 10.0, 1)
    """
    layers = layers_of(model, "pooled", "pool their statistics")
    for layer in layers:
        if layer.pool is not None:
            raise ValueError(
                f"{layer} pools its statistics already; expected no pooled() around this one: "
                f"one block holds all micro-batches of a step"
            )
        if not layer.num_features:
            raise ValueError(
                f"{layer} is lazy and has not seen its channels; expected a model that has seen a "
                f"batch: call it once first"
            )
    layers = [layer for layer in layers if layer.running_mean is not None]
    try:
        for layer in layers:
            device = layer.get_buffer("running_mean").device
            layer.pool = torch.zeros(3, layer.num_features, dtype=widest(device), device=device)
        yield
        move = _ops.update_running_ if torch.compiler.is_compiling() else update
        for layer in layers:
            mean, var, batches, skipped = (
                layer._buffers.get(name)
                for name in ("running_mean", "running_var", "num_batches_tracked", "skipped")
            )
            seen = layer.pool
            assert seen is not None, "made above"
            if layer.one_value != "raise":
                seen = torch.where(seen[0] > 1, seen, 0.0)
            with torch.no_grad():
                move(mean, var, batches, skipped, seen, layer.momentum, layer.bias_correction)
    finally:
        for layer in layers:
            layer.pool = None
