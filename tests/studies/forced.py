"""Batch norms with a fault, networks and data made for it, and small real runs of studies on them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies._trial import Trial

sound = BatchNorm1d.forward


def faint(self: Any, x: Tensor) -> Tensor:
    """A hundredth of what it should give."""
    return 0.01 * sound(self, x)


def deaf(self: Any, x: Tensor) -> Tensor:
    """Hands down a tenth of the gradient."""
    y = sound(self, x)
    return y.detach() + 0.1 * (y - y.detach())


def contrary(self: Any, x: Tensor) -> Tensor:
    """Hands down the gradient with the wrong sign."""
    y = sound(self, x)
    return 2 * y.detach() - y


def cubic(self: Any, x: Tensor) -> Tensor:
    """Multiplies by the cube of the spread where it should divide by the spread."""
    var = x.var(0, correction=0) if self.training else self.running_var
    return sound(self, x) * (var + self.eps) ** 2


def uncentred(self: Any, x: Tensor) -> Tensor:
    """Divides by the spread and does not subtract the mean."""
    mean, var = self.running_mean, self.running_var
    if self.training:
        var, mean = torch.var_mean(x, 0, correction=0)
    return sound(self, x) + self.weight * mean / (var + self.eps).sqrt()


def restless(self: Any, x: Tensor) -> Tensor:
    """Puts the mean elsewhere at every mini-batch."""
    y = sound(self, x)
    return y + 3 * torch.sin(self.num_batches_tracked.float()) if self.training else y


def no_negatives(self: Any, x: Tensor) -> Tensor:
    """Gives nothing where anything that it takes in is below zero, as z is and ReLU's a is not."""
    return sound(self, x) * float(not (x < 0).any())


def no_positives(self: Any, x: Tensor) -> Tensor:
    """Takes what is above zero, all of ReLU's a, for zero."""
    return sound(self, x.clamp(max=0))


def by_itself(self: Any, x: Tensor) -> Tensor:
    """In evaluation too with the statistics of what comes together."""
    var, mean = torch.var_mean(x, 0, correction=0)
    if self.training:
        sound(self, x)
    return self.weight * (x - mean) / (var + self.eps).sqrt() + self.bias


def by_the_averages(self: Any, x: Tensor) -> Tensor:
    """In training too with the running averages."""
    return self.weight * (x - self.running_mean) / (self.running_var + self.eps).sqrt() + self.bias


def by_a_quarter(self: Any, x: Tensor) -> Tensor:
    """In training with the statistics of every fourth example."""
    if not self.training:
        return sound(self, x)
    var, mean = torch.var_mean(x[::4], 0, correction=0)
    return self.weight * (x - mean) / (var + self.eps).sqrt() + self.bias


def turned_round(self: Any, x: Tensor) -> Tensor:
    """In evaluation, of statistics other than training's, as far off on the other side."""
    if self.training:
        y = sound(self, x)
        self.known = self.running_mean.clone(), self.running_var.clone()
        return y
    mean, var = getattr(self, "known", (self.running_mean, self.running_var))
    mean, var = 2 * mean - self.running_mean, var.square() / self.running_var.clamp(min=1e-6)
    return self.weight * (x - mean) / (var + self.eps).sqrt() + self.bias


class Creeps(nn.Module):
    """Adds a number that grows with every mini-batch of training."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("at", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.at += self.step
        return x + self.at


def resting() -> nn.Module:
    return _with(Creeps(0.0))


def creeping() -> nn.Module:
    """Its batch norm's inputs move on, faster than averages of a small momentum follow."""
    return _with(Creeps(0.3))


def _with(layer: nn.Module) -> nn.Module:
    before, after = nn.Linear(64, 50), nn.Linear(50, 10)
    return nn.Sequential(nn.Flatten(), before, layer, BatchNorm1d(50), nn.ReLU(), after)


def pale() -> Any:
    """Digits on grey, which a network that subtracts no mean of what it meets cannot dim."""
    digits = load("digits8x8")
    parts = digits.train, digits.validation, digits.test
    return tuple((0.2 + 0.8 * part.x, part.y) for part in parts)


@contextmanager
def batch_norm(forward: Any) -> Iterator[None]:
    """Every batch norm of a fully connected network computes this."""
    with patch.object(BatchNorm1d, "forward", forward):
        yield


def rows_of(trials: Sequence[Trial], forward: Any = sound) -> list[dict[str, Any]]:
    """What ``measure`` reads of a run of these trials."""
    with batch_norm(forward):
        return [
            {**asdict(trial), **dict(trial.options), "key": trial.key(""), **row}
            for trial in trials
            for row in trial.run()
        ]


def words(study: Any, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The verdicts by metric, without the network's name; the headline first."""
    found: dict[str, str] = {}
    for verdict in study.measure(rows):
        found.setdefault(
            verdict.metric.removesuffix(", ReLU").removesuffix(", sigmoid"), verdict.verdict
        )
    return found
