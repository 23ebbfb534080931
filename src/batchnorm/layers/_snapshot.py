"""Running statistics as they were: taken, and given back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from batchnorm.functional._check_kinds import check_module
from batchnorm.layers._state import Layer


@dataclass(frozen=True, repr=False)
class Snapshot:
    """The running statistics and counters of all batch norms of a model, at one moment.

    Attributes:
        taken: for each batch norm's path the layer and copies of its buffers.
    """

    taken: dict[str, tuple[nn.Module, dict[str, Tensor]]]

    def __repr__(self) -> str:
        count = len(self.taken)
        paths = ", ".join(path or "the model" for path in self.taken)
        return f"Snapshot of {count} batch norm{'s' if count != 1 else ''}: {paths}"

    def restore(self) -> None:
        """Write all back, in place; as often as wanted.

        Raises:
            ValueError: a layer has lost a buffer since, or has one of another shape.
        """
        for path, (layer, buffers) in self.taken.items():
            for name, value in buffers.items():
                now = layer._buffers.get(name)
                if now is None or now.shape != value.shape:
                    found = "is gone" if now is None else f"has shape {tuple(now.shape)}"
                    raise ValueError(
                        f"{name} of {path or type(layer).__name__} {found}; expected shape "
                        f"{tuple(value.shape)}, as when the snapshot was taken: take another one"
                    )
        with torch.no_grad():
            for layer, buffers in self.taken.values():
                for name, value in buffers.items():
                    layer.get_buffer(name).copy_(value)


def snapshot(model: nn.Module) -> Snapshot:
    """Take the running statistics and counters of all batch norms of `model`, torch's included.

    Args:
        model: whose batch norms are meant; a single layer will do. Layers without running
            statistics have nothing to take.

    Raises:
        ValueError: the model has no batch norm; a lazy layer that has not seen its first batch.
        TypeError: ``model`` is no module.

    Example:
        >>> from batchnorm.layers import BatchNorm1d
        >>> layer = BatchNorm1d(2)
        >>> before = snapshot(layer)
        >>> _ = layer(torch.randn(4, 2))
        >>> before.restore()
        >>> layer.running_mean.tolist(), layer.num_batches_tracked.item()
        ([0.0, 0.0], 0)
    """
    check_module("snapshot", model)
    taken: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, Layer | _BatchNorm):
            continue
        buffers = {name: b for name, b in layer._buffers.items() if b is not None}
        if any(is_lazy(b) for b in buffers.values()):
            raise ValueError(
                f"{path or type(layer).__name__} is lazy and has no statistics yet; expected a "
                f"model that has seen a batch: call it once first"
            )
        taken[path] = layer, {name: b.detach().clone() for name, b in buffers.items()}
    if not taken:
        raise ValueError(
            f"{type(model).__name__} has no batch norm to take statistics of; expected a model "
            f"with batch norms, this package's or torch's"
        )
    return Snapshot(taken)
