"""Several running averages of one training run, side by side, and a network judged with each."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.copies import scratch
from batchnorm.data import Data
from batchnorm.moments import Moments
from batchnorm.studies._norms import norms_of
from batchnorm.surgery import recalibrate
from batchnorm.train import evaluate

POPULATION, AVERAGES = "population statistics", "running averages"
EXAMPLES, ALONE = "mini-batches of test examples", "one example alone"
TOGETHER = 64  # examples whose answers are compared with those to each alone
TINY = 1e-12  # a unit that never varies
Found = dict[str, Any]
Statistics = list[tuple[Tensor, Tensor]]  # mean and variance of each batch norm


class Averages:
    """``running := (1 - momentum) running + momentum batch`` for each momentum, from (0, 1) on."""

    def __init__(self, model: nn.Module, momenta: Sequence[float]) -> None:
        self.norms = norms_of(model)
        begin: Statistics = [
            (torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var))
            for norm in self.norms
        ]
        self.kept = {momentum: begin for momentum in momenta}
        self.watching = True
        for norm in self.norms:
            norm.register_forward_pre_hook(self._see)

    def _see(self, norm: Any, args: tuple[Any, ...]) -> None:
        if not (norm.training and self.watching):
            return
        batch, place = Moments.of(args[0]), self.norms.index(norm)
        for momentum, before in self.kept.items():
            mean, var = before[place]
            moved = (
                mean.lerp(batch.mean.to(mean), momentum),
                var.lerp(batch.unbiased().to(var), momentum),
            )
            self.kept[momentum] = [*before[:place], moved, *before[place + 1 :]]

    @contextmanager
    def paused(self) -> Generator[None]:
        """Calls meanwhile do not count."""
        self.watching = False
        try:
            yield
        finally:
            self.watching = True


def with_statistics(model: nn.Module, statistics: Statistics | None = None) -> nn.Module:
    """A copy in evaluation mode, with these statistics or the model's own, and without hooks."""
    copied = scratch(model, hooks=False).eval()
    for norm, (mean, var) in zip(norms_of(copied), statistics or [], strict=False):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return copied


def statistics_of(model: nn.Module) -> Statistics:
    """The running statistics of every batch norm."""
    return [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms_of(model)]


def by_themselves(model: nn.Module, x: Tensor, y: Tensor, size: int) -> float:
    """The accuracy where so many examples at a time are normalized with their own statistics."""
    copied = with_statistics(model)
    for norm in norms_of(copied):
        norm.train()
    whole = len(x) // size * size
    with torch.no_grad():
        right = sum(
            int((copied(inputs.clone()).argmax(1) == labels).sum())
            for inputs, labels in zip(x[:whole].split(size), y[:whole].split(size), strict=True)
        )
    return right / whole


def judged(model: nn.Module, averages: Averages, data: Data, sizes: Sequence[int]) -> list[Found]:
    """Accuracy and distance from the population's statistics, for every estimate of them."""
    like = next(model.parameters())
    train_x, x = (part.x.to(like.device, like.dtype) for part in (data.train, data.test))
    population = with_statistics(model)
    recalibrate(population, train_x.split(500))
    right = statistics_of(population)
    found: list[Found] = [{"way": POPULATION, "accuracy": evaluate(population, data.test)[1]}]
    for momentum, statistics in averages.kept.items():
        copied = with_statistics(model, statistics)
        found.append(
            {
                "way": AVERAGES,
                "momentum": momentum,
                "accuracy": evaluate(copied, data.test)[1],
                **_off(statistics, right),
            }
        )
    labels = data.test.y.to(like.device)
    return found + [
        {"way": EXAMPLES, "size": size, "accuracy": by_themselves(model, x, labels, size)}
        for size in sizes
        if size <= len(x)
    ]


def _off(statistics: Statistics, right: Statistics) -> Found:
    """Medians over units: means, in standard deviations, and the logarithm of the variances."""
    pairs = list(zip(statistics, right, strict=True))
    means = [(a[0] - b[0]).abs() / b[1].clamp(min=TINY).sqrt() for a, b in pairs]
    ratios = [(a[1].clamp(min=TINY) / b[1].clamp(min=TINY)).log().abs() for a, b in pairs]
    return {
        "mean_off": torch.cat(means).median().item(),
        "variance_off": torch.cat(ratios).median().item(),
    }


def alone(model: nn.Module, data: Data) -> float:
    """The largest change of a logit from an example in a batch to the same example alone."""
    like = next(model.parameters())
    x = data.test.x[:TOGETHER].to(like.device, like.dtype)
    copied = with_statistics(model)
    with torch.no_grad():
        together = copied(x.clone())
        apart = torch.cat([copied(one.clone()) for one in x.split(1)])
    return ((apart - together).abs().max() / together.std()).item()
