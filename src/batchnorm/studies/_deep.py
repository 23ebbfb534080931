"""Networks of any depth, plain and residual: whether they train, and how their gradients grow."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from batchnorm.data import Data
from batchnorm.layers import BatchNorm1d
from batchnorm.studies._network import linear, scale_weights
from batchnorm.studies._range import Bracket
from batchnorm.studies._trial import Trial
from batchnorm.studies._verdict import WHOLE_RANGE
from batchnorm.train import batches, seeded

RECENT = 20  # mini-batches that a loss is averaged over


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def deep(trial: Trial, data: Data, layers: int) -> nn.Sequential:
    """``layers`` fully connected hidden layers with ReLU and He initialization, then the logits.

    Plain: ``relu(bn(W a))`` again and again. Residual: after the first layer ``a + W relu(bn(a))``,
    batch norm inside the branch, and once more before the logits. Both have the same weights.
    """
    width = trial.width

    def active() -> list[nn.Module]:
        return [BatchNorm1d(width), nn.ReLU()] if trial.batch_norm else [nn.ReLU()]

    first = linear(math.prod(data.shape), width, 2.0)
    parts: list[nn.Module] = [nn.Flatten(), first]
    for _ in range(layers - 1):
        following = linear(width, width, 2.0)
        if trial.option("residual"):
            parts.append(Residual(*active(), following))
        else:
            parts += [*active(), following]
    network = nn.Sequential(*parts, *active(), linear(width, data.classes, 1.0))
    scale_weights(network, trial.init_scale)
    return network


def deeper_and_deeper(trial: Trial, data: Data) -> list[dict[str, Any]]:
    """A row for each depth up to the first that does not train at any of the learning rates.

    A network trains when the loss over the last mini-batches has come below half of ``ln classes``,
    what guessing costs; there it is stopped.
    """
    rows: list[dict[str, Any]] = []
    for layers in trial.option("depths"):
        row: dict[str, Any] = {"layers": layers, "trained": False, "took": None, "rate": None}
        loss = None
        for rate in trial.option("rates"):
            with seeded(trial.seed):
                network = deep(trial, data, layers)
            steps, loss = _descend(network, trial, data, rate)
            if loss is not None and loss < math.log(data.classes) / 2:
                row |= {"trained": True, "took": steps, "rate": rate}
                break
        rows.append(row | {"loss": loss})
        if not row["trained"]:
            break
    return rows


def _descend(network: nn.Module, trial: Trial, data: Data, rate: float) -> tuple[int, float | None]:
    """Steps taken, and the recent loss at the end; None where it left the finite numbers."""
    descent = torch.optim.SGD(network.parameters(), rate)
    goal, recent = math.log(data.classes) / 2, math.inf
    x, y = data.train.x, data.train.y
    losses: list[float] = []
    for batch in batches(len(y), trial.batch_size, trial.steps, trial.seed):
        loss = cross_entropy(network(x[batch]), y[batch])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return len(losses), None
        recent = sum(losses[-RECENT:]) / len(losses[-RECENT:])
        if len(losses) >= RECENT and recent < goal:
            break
        descent.zero_grad()
        loss.backward()
        descent.step()
    return len(losses), recent


def gradients(trial: Trial, data: Data) -> list[dict[str, Any]]:
    """A row a hidden layer: root mean square of the loss's gradient by its activations, untrained.

    The mini-batch is drawn from the training set with the trial's seed.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    with seeded(trial.seed):
        network = deep(trial, data, trial.option("layers"))
        batch = torch.randperm(len(data.train))[: trial.batch_size]
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(keep)
    cross_entropy(network(data.train.x[batch]), data.train.y[batch]).backward()
    sizes = [torch.linalg.vector_norm(a.grad) / math.sqrt(a.numel()) for a in seen]
    return [
        {"layer": i, "gradient": size.item() if size > 0 and size.isfinite() else None}
        for i, size in enumerate(sizes, start=1)
    ]


def depths_of(rows: Iterable[dict[str, Any]]) -> dict[int, Bracket]:
    """By seed, the power of ten of the depth to which all trained, and of one below the next."""
    out: dict[int, Bracket] = {}
    for row in rows:
        before = out.get(row["seed"], Bracket(-math.inf, math.inf))
        out[row["seed"]] = (
            Bracket(math.log10(row["layers"]), before.most)
            if row["trained"]
            else Bracket(before.least, math.log10(row["layers"] - 1))
        )
    return out


def growths_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    """By seed, from the slope of the logarithm over layers; none where a gradient was lost."""
    out: list[float] = []
    for seed in sorted({row["seed"] for row in rows}):
        sizes = [row["gradient"] for row in rows if row["seed"] == seed]
        if None not in sizes:
            slope = np.polyfit(np.arange(len(sizes)), np.log(sizes), 1)[0]
            out.append(float(np.exp(-slope)))
    return out


def told(depths: dict[int, Bracket]) -> str:
    """To which depth each seed trained: "16, 23, 64 or more"."""
    words = [
        "none" if depth.least == -math.inf else f"{10**depth.least:.0f}"
        for _, depth in sorted(depths.items())
    ]
    beyond = [" or more" if depth.most == math.inf else "" for _, depth in sorted(depths.items())]
    return ", ".join(word + more for word, more in zip(words, beyond, strict=True))


def limits(rows: Sequence[dict[str, Any]]) -> str:
    """What the steps and the seeds that there are leave open."""
    words = [
        f"A network has {rows[0]['steps']} steps to train in: with more of them deeper ones may."
    ]
    if (seeds := len({row["seed"] for row in rows})) < WHOLE_RANGE:
        held = f"holds the true median with {100 * (1 - 2 / 2**seeds):.4g} % confidence alone"
        words.append(f"There are only {seeds} seeds: the interval {held}.")
    return " ".join(words)


def said(kind: str) -> str:
    """A kind of network in words that say what is plain about it.

    >>> said("plain, He weights")
    'no skip connections, He weights'
    """
    return kind.replace("plain", "no skip connections").replace("residual", "skip connections")
