"""How the gradient changes: when earlier layers have taken their step, and along its direction."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from batchnorm.train import seeded

WAYS = (0.5, 1.0, 2.0, 4.0)  # times the learning rate, along the gradient
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Ground:
    """A network on one mini-batch: loss and gradients wherever its parameters are put.

    Every look has the same draws (dropout, noise), and leaves the model's buffers as they are.

    Args:
        model: in training mode.
        x: inputs.
        y: classes.
        seed: of what the model draws.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    seed: int

    def parameters(self) -> Values:
        """All that descent changes, in the model's order."""
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def at(self, moved: Mapping[str, Tensor], wanted: Iterable[str]) -> tuple[float, Values]:
        """The loss with these parameters in place of the model's, and gradients by the wanted."""
        state = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        state |= {name: p.detach() for name, p in self.model.named_parameters()} | dict(moved)
        leaves = {name: state[name].detach().requires_grad_() for name in wanted}
        with seeded(self.seed, self.x.device), torch.enable_grad():
            logits = functional_call(self.model, state | leaves, (self.x.clone(),))
            loss = cross_entropy(logits, self.y)
            given = list(leaves.values())
            found = torch.autograd.grad(loss, given, materialize_grads=True) if given else ()
        return loss.item(), dict(zip(leaves, found, strict=True))


def terrain(grounds: Sequence[Ground], rate: float) -> dict[str, Any]:
    """Means over mini-batches of the loss, :func:`after_earlier` and :func:`along`.

    A number that is not finite on one of them is None.
    """
    found: list[dict[str, Any]] = []
    for ground in grounds:
        parameters = ground.parameters()
        loss, gradient = ground.at(parameters, parameters)
        weights = [name for name, value in parameters.items() if value.dim() >= 2]
        found.append(
            {"loss_here": loss}
            | after_earlier(ground, parameters, gradient, weights, rate)
            | along(ground, parameters, gradient, weights, rate)
        )
    out: dict[str, Any] = {}
    for name, first in found[0].items():
        if isinstance(first, list):
            out[name] = [_mean(many) for many in zip(*(f[name] for f in found), strict=True)]
        else:
            out[name] = _mean(f[name] for f in found)
    return out


def after_earlier(
    ground: Ground, parameters: Values, gradient: Values, weights: list[str], rate: float
) -> dict[str, list[float]]:
    """What becomes of a layer's gradient when the layers before it have taken their step.

    ``G`` is the gradient by a layer's weights, ``G'`` that on the same mini-batch after every
    parameter before them took a step of gradient descent.

    Returns:
        A number for each layer but the first: "norms" ``|G' - G|``, "changes" ``|G' - G| / |G|``,
        "angles" between both, in degrees.
    """
    out: dict[str, list[float]] = {"norms": [], "changes": [], "angles": []}
    names = list(parameters)
    for weight in weights[1:]:
        earlier = names[: names.index(weight)]
        moved = parameters | {name: parameters[name] - rate * gradient[name] for name in earlier}
        now = ground.at(moved, [weight])[1][weight].double()
        was = gradient[weight].double()
        size, change = was.norm().item(), (now - was).norm().item()
        out["norms"].append(change)
        out["changes"].append(change / size if size else math.nan)
        out["angles"].append(_angle(was, now))
    return out


def along(
    ground: Ground, parameters: Values, gradient: Values, weights: list[str], rate: float
) -> dict[str, float]:
    """Loss and gradient by the weights ``w`` at ``w - eta g``, for ``eta`` in WAYS times the rate.

    Returns:
        "range" of the loss; "unpredicted", the largest ``|g' - g|``; "roughness", the largest
        ``|g' - g| / (eta |g|)``; and "relative_roughness", that times ``|w| / |g|``: relative
        change of the gradient for a relative change of the weights, which has no scale.
    """
    was = _joined(gradient, weights)
    size, weight = was.norm().item(), _joined(parameters, weights).norm().item()
    losses: list[float] = []
    changes: list[float] = []
    for way in WAYS:
        moved = {name: parameters[name] - way * rate * gradient[name] for name in weights}
        loss, now = ground.at(parameters | moved, weights)
        losses.append(loss)
        changes.append((_joined(now, weights) - was).norm().item())
    steepest = max(change / (way * rate) for change, way in zip(changes, WAYS, strict=True))
    roughness = steepest / size if size else math.nan
    return {
        "range": max(losses) - min(losses),
        "unpredicted": max(changes),
        "roughness": roughness,
        "relative_roughness": roughness * weight / size if size else math.nan,
    }


def _joined(values: Values, names: list[str]) -> Tensor:
    return torch.cat([values[name].flatten().double() for name in names])


def _angle(a: Tensor, b: Tensor) -> float:
    """In degrees; by the half angle, which keeps its digits where the cosine is near 1."""
    a, b = a.flatten(), b.flatten()
    if not (a.norm() and b.norm()):
        return math.nan
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def _mean(values: Iterable[float]) -> float | None:
    mean = fmean(values)
    return mean if math.isfinite(mean) else None
