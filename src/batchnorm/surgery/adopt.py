"""Torch's batch norms in a model made ours, one for one."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchnorm.surgery._changes import Changes


def adopt(model: nn.Module, example: Any = None, **options: Any) -> Changes:
    """Make each of torch's batch norms in a model ours; the state dict's keys stay what they were.

    ``torch.nn.BatchNorm1d``, ``2d`` and ``3d`` become :class:`batchnorm.BatchNorm1d`, ``2d`` and
    ``3d``, with their parameters, running statistics, mode, hooks and whatever else was set on
    them. Parameters are shared with the model given, so that an optimizer made for one trains the
    other; that model itself stays as it was. Running statistics are shared too, unless they are in
    half precision: ours are in float32.

    What is no plain batch norm of torch's is left alone, with the reason: a class derived from one
    or a ``forward`` put on one, since these may compute something else; ``SyncBatchNorm``; a lazy
    one before its first input; one in TorchScript, or with a ``qconfig``, since torch quantizes
    its own classes alone; one with an attribute that means something else in ours, such as
    ``axis``.

    Args:
        model: any model.
        example: what the model is called with: a value, a tuple of them, or a dict by name. With
            it the new model's output is compared with the old one's, in evaluation mode.
        options: of our layers, given to all: ``process_group``, ``ghost_size``, ``one_value``,
            ``bias_correction``, as :class:`batchnorm.BatchNorm1d` takes them.

    Raises:
        TypeError: ``model`` is no module, or wrapped or compiled; an option there is not.
        ValueError: the value of an option, or the model cannot run the example.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(adopt(net, ghost_size=16))
        Sequential: 1 changed, 0 left alone
        changed:
          1  torch's BatchNorm2d(8) is ours, ghost_size=16
    """
    # Only here: few who import the package change a model.
    from batchnorm.surgery._adopting import adopted

    return adopted(model, example, options)
