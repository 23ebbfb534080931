"""Count, mean and variance per channel: the one formula that kernels, sync and recording share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type that `device` has: float64, but float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Moments:
    """The first two moments of a batch, per channel, exactly mergeable.

    Attributes:
        count: how many values (or how much weight) each channel saw, shape ``(C,)``.
        mean: ``sum(x) / count``, shape ``(C,)``.
        var: the biased variance ``sum((x - mean)^2) / count``, shape ``(C,)``.

    All three are float64 whatever the input (float32 on MPS, which has nothing wider). An empty
    batch has count, mean and var of zero.

    Example:
        >>> z = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> first, second = Moments.of(z), Moments.of(z + 4)
        >>> both = first.merge(second)
        >>> both.mean.tolist(), both.var.tolist()
        ([3.0, 22.0], [5.0, 104.0])
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Measure `x` of shape ``(N, C, ...)`` by two passes, the second one corrected.

        Args:
            x: any floating tensor; channels on axis 1.
            mask: which positions count, broadcastable to `x` with size 1 on axis 1. A bool mask
                selects; a real-valued one gives each position a weight that counts as a frequency.
                Positions with weight zero do not enter, even where they hold NaN.

        Source: the corrected two-pass algorithm of Chan, Golub and LeVeque (1983), equation 1.7.
        """
        wide = widest(x.device)
        dims = [d for d in range(x.dim()) if d != 1]
        x = x.detach().to(wide)
        if mask is None:
            weight = None
            count = x.new_full((x.shape[1],), x.numel() // max(x.shape[1], 1))
        else:
            weight = mask_weight(mask.detach(), wide).expand(x.shape)
            x = torch.where(weight > 0, x, 0.0)
            count = weight.sum(dims)
        divisor = torch.where(count > 0, count, 1.0)

        def average(values: Tensor) -> Tensor:
            return (values if weight is None else values * weight).sum(dims) / divisor

        mean = average(x)
        centred = x - per_channel(mean, x)
        rest = average(centred)
        var = (average(centred.square()) - rest.square()).clamp(min=0)
        return cls(count, mean + rest, var)

    def merge(self, other: Moments) -> Moments:
        """The moments of both batches together; exact for any split, empty parts included.

        ``mean = mean_a + d n_b / n`` and
        ``var = (n_a var_a + n_b var_b) / n + d^2 n_a n_b / n^2`` with ``d = mean_b - mean_a``
        (Chan, Golub and LeVeque 1983, equation 2.1).
        """
        count = self.count + other.count
        share = other.count / torch.where(count > 0, count, 1.0)
        distance = other.mean - self.mean
        within = self.var + (other.var - self.var) * share
        between = distance.square() * share * (1 - share)
        return Moments(count, self.mean + distance * share, within + between)

    def unbiased(self) -> Tensor:
        """``var * count / (count - 1)``; a channel with one value or none keeps its biased one."""
        several = self.count > 1
        return torch.where(
            several, self.var * self.count / torch.where(several, self.count - 1, 1.0), self.var
        )

    def pack(self) -> Tensor:
        """One tensor of shape ``(3, C)``: count, mean, var; what operators pass around."""
        return torch.stack((self.count, self.mean, self.var))

    @classmethod
    def unpack(cls, packed: Tensor) -> Moments:
        """The inverse of `pack`, without a copy."""
        return cls(*packed.unbind(0))


def mask_weight(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of each position: what is not above zero, NaN included, does not count."""
    return torch.where(mask > 0, mask, 0).to(dtype)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View `values` of shape ``(C,)`` so that it broadcasts along axis 1 of `x`."""
    return values.view(-1, *[1] * (x.dim() - 2))
