"""A network judged in evaluation mode, where batch norm uses its running averages."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from batchnorm.data import Examples

CHUNK = 1000  # examples evaluated at once: bounds memory, and large enough to cost nothing


def evaluate(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Mean cross-entropy and the share of examples classified right, in evaluation mode.

    Batch norm uses its running averages. The mode of every submodule is given back.

    Args:
        model: maps ``(m, ...)`` to logits ``(m, classes)``.
        examples: moved to the model's device and floating dtype.

    Raises:
        ValueError: there are no examples.

    >>> from batchnorm.data import load
    >>> untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> loss, accuracy = evaluate(untrained, load("digits8x8").test)
    >>> 0 <= accuracy < 0.5
    True
    """
    if len(examples) == 0:
        raise ValueError("examples is empty: expected at least one example to evaluate on")
    x, y = moved(examples, next(model.parameters(), examples.x))
    return judge(model, x, y, overwrites=True)


def judge(model: nn.Module, x: Tensor, y: Tensor, *, overwrites: bool) -> tuple[float, float]:
    """As :func:`evaluate`; a model that overwrites its input gets a copy of it."""
    loss, right = 0.0, 0
    with torch.no_grad(), modes_given_back(model):
        model.eval()
        for inputs, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            logits = model(inputs.clone() if overwrites else inputs)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
    return loss / len(y), right / len(y)


@contextmanager
def modes_given_back(model: nn.Module) -> Generator[None]:
    """Give every module its own training or evaluation mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def moved(examples: Examples, like: Tensor) -> tuple[Tensor, Tensor]:
    """The examples where `like` is, the inputs in its dtype."""
    return examples.x.to(like.device, like.dtype), examples.y.to(like.device)
