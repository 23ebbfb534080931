"""Dropout put beside the batch norms of a network, and the variances that they learned by it."""

import math
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from batchnorm import copies
from batchnorm.data import Data
from batchnorm.studies._looks import places
from batchnorm.studies._network import build
from batchnorm.studies._norms import norms_of
from batchnorm.studies._trial import Trial
from batchnorm.train import seeded

BEFORE, AFTER, LAST = "before", "after", "last"
TINY = 1e-12  # the variance of a unit that never varies
EXAMPLES = 2000  # of the training set, whose variances are taken


def dropouts_of(model: nn.Module) -> list[str]:
    """Where the model drops values out itself."""
    return [path for path, one in model.named_modules() if isinstance(one, _DropoutNd)]


def with_dropout(trial: Trial, data: Data, order: str | None, rate: float) -> nn.Module:
    """The trial's network, with dropout before or after each batch norm, or after the last alone.

    In a network without batch norm it goes where batch norm would stand.
    """
    model = build(trial, data)
    if order is None:
        return model
    if trial.batch_norm:
        names = {module: path for path, module in model.named_modules()}
        paths = [names[norm] for norm in _taken_in(model, _some(model, data, 2))]
    else:
        paths = places(trial, data)
    pairs: dict[str, nn.Module] = {}
    for path in paths[-1:] if order == LAST else paths:
        both = [model.get_submodule(path), nn.Dropout(rate)]
        pairs[path] = nn.Sequential(*(reversed(both) if order == BEFORE else both))
    return copies.replace(model, pairs)


def shifts(model: nn.Module, data: Data, dropped: float) -> dict[str, Any]:
    """How far the variances that batch norm learned are from those that evaluation brings.

    Args:
        model: trained.
        data: whose training set is looked at.
        dropped: the rate of the dropout that stands in front of the first batch norm, 0 for none.

    Returns:
        "ratios", by layer in the order of their calls: the median over channels of
        ``running_var / var``; and "predicted", the first layer's ratio by that which dropout at
        this rate gives, ``1 / p + (1 / p - 1) mean^2 / var`` with ``p = 1 - dropped``.
    """
    ratios: list[float | None] = []
    predicted: float | None = None
    p = 1 - dropped
    for norm, z in _taken_in(model, _some(model, data, EXAMPLES)).items():
        mean, var = z.mean(1), z.var(1)
        varied = (var > TINY) & var.isfinite()
        if norm.running_var is None or not varied.any():
            ratios.append(None)
            continue
        ratio = norm.running_var.double()[varied] / var[varied]
        if not ratios:
            expected = 1 / p + (1 / p - 1) * mean[varied].square() / var[varied]
            predicted = _finite(median((ratio / expected).tolist()))
        ratios.append(_finite(median(ratio.tolist())))
    return {"ratios": ratios, "predicted": predicted}


def _taken_in(model: nn.Module, x: Tensor) -> dict[Any, Tensor]:
    """What each batch norm takes in in evaluation mode, channels first, in the order of calls."""
    seen: dict[Any, Tensor] = {}

    def see(norm: Any, args: tuple[Tensor, ...]) -> None:
        seen[norm] = args[0].movedim(getattr(norm, "axis", 1), 0).flatten(1).double()

    hooks = [norm.register_forward_pre_hook(see) for norm in norms_of(model)]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), seeded(0, x.device):
            model.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return seen


def _some(model: nn.Module, data: Data, count: int) -> Tensor:
    like = next(model.parameters())
    return data.train.x[:count].clone().to(like.device, like.dtype)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
