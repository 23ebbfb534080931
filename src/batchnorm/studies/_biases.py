"""Biases in front of batch norm: their gradient, how far they move, and what a shift does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from batchnorm.copies import scratch
from batchnorm.data import Data
from batchnorm.studies._norms import paired
from batchnorm.train import evaluate

SHIFT = 1.0  # standard deviations
Found = dict[str, Any]


def gradient(model: nn.Module, biases: list[nn.Parameter], x: Tensor, y: Tensor) -> float:
    r"""The largest of all layers: norm of dL/db, relative to that of the sums of \|dL/dz\|."""
    copied = scratch(model).train()
    found: list[Tensor] = []
    for norm, bias in paired(copied, biases):
        seen: list[Tensor] = []

        def see(norm: nn.Module, args: tuple[Any, ...], seen: list[Tensor] = seen) -> None:
            seen.append(args[0])

        hook = norm.register_forward_pre_hook(see)
        loss = cross_entropy(copied(x.clone()), y)
        hook.remove()
        by_value, by_bias = torch.autograd.grad(loss, [*seen, bias])
        apart = by_value.abs().movedim(1, 0).flatten(1).sum(1)
        found.append(by_bias.norm() / apart.norm())
    return torch.stack(found).max().item()  # NaN where one is: Python's max would pass it over


def wandered(model: nn.Module, biases: list[nn.Parameter], before: list[Tensor]) -> float:
    """Root mean square of how far the biases are from where they began, in deviations of z."""
    with torch.no_grad():
        moved = [
            (bias - start) / norm.running_var.clamp(min=norm.eps).sqrt()
            for (norm, bias), start in zip(paired(model, biases), before, strict=True)
        ]
        return torch.cat(moved).square().mean().sqrt().item()


def shifted(model: nn.Module, biases: list[nn.Parameter], data: Data, x: Tensor) -> Found:
    """What a shift of every bias by a deviation of its unit does, in training and in evaluation."""
    outcome: Found = {}
    with torch.no_grad():
        before, right = _answers(model, x), evaluate(model, data.test)[1]
        for norm, bias in paired(model, biases):
            bias += SHIFT * norm.running_var.sqrt()
        after = _answers(model, x)
        outcome["moved_training"] = ((after - before).abs().max() / before.std()).item()
        outcome["lost_evaluation"] = 100 * (right - evaluate(model, data.test)[1])
        for norm, _ in paired(model, biases):
            norm.running_mean += SHIFT * norm.running_var.sqrt()
        outcome["lost_folded"] = 100 * (right - evaluate(model, data.test)[1])
    return outcome


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """In training mode, by a copy: the running averages stay."""
    return scratch(model).train()(x.clone())
