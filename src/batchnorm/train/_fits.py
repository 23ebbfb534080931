"""Whether a network and a data set fit each other, found out before training starts."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batchnorm.copies import scratch, undisturbed
from batchnorm.data import Data
from batchnorm.train._evaluate import modes_given_back


def take_sizes(model: nn.Module, data: Data) -> None:
    """Run a model with lazy parameters once, so that the data decide their shapes.

    Raises:
        ValueError: as :func:`check_output`.
    """
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        like = next(model.parameters(), data.train.x)
        x = data.train.x[:2].clone().to(like.device, like.dtype)
        with torch.no_grad(), modes_given_back(model):
            _logits(model.eval(), x, data, "evaluation")


def check_output(model: nn.Module, x: Tensor, data: Data) -> bool:
    """Try the model in evaluation and in training mode; what it is and draws stays as it was.

    Lazy parameters are the exception: the inputs decide their shapes, for good.

    Returns:
        Whether the model writes into its input, as ``nn.ReLU(inplace=True)`` in front would.

    Raises:
        ValueError: it cannot take ``x``, or its output is not ``(m, classes)``.
    """
    take_sizes(model, data)
    overwrites = False
    for mode in ("evaluation", "training"):
        # Without hooks: they may count or record the calls of the real run.
        copy = scratch(model, hooks=False)
        with undisturbed(model):
            given = x.clone()
            _logits(copy.eval() if mode == "evaluation" else copy, given, data, mode)
            overwrites |= not torch.equal(given, x)
    return overwrites


def _logits(model: nn.Module, x: Tensor, data: Data, mode: str) -> None:
    name, shape = type(model).__name__, tuple(x.shape)
    try:
        logits = model(x)
    except Exception as error:
        raise ValueError(
            f"{name} cannot take inputs of shape {shape}, {len(x)} examples of data "
            f"{data.name!r}, in {mode} mode: {type(error).__name__}: {error}"
        ) from error
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != (len(x), data.classes):
        several = ", one tensor" if not isinstance(logits, Tensor) else ""
        raise ValueError(
            f"{name} gives {got} for inputs of shape {shape} in {mode} mode; expected logits of "
            f"shape {(len(x), data.classes)}{several}: one for each of the {data.classes} classes "
            f"of data {data.name!r}"
        )
