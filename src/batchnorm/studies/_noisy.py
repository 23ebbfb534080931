"""Batch norm whose output is disturbed anew at every step, so that its distribution never rests."""

from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.studies._norms import norms_of

MEAN = 1.0  # a unit's mean is moved by up to so many standard deviations, up or down
SPREAD = 0.5  # its standard deviation is multiplied by a factor within so much of 1
OWN = 0.1  # standard deviation of what each example gets besides


def disturb(model: nn.Module) -> nn.Module:
    """Have every batch norm's output multiplied and shifted at random, unit by unit, in training.

    The numbers are drawn anew at every call, from torch's global generator: a mean other than 0 and
    a spread other than 1 for all examples of the mini-batch, and noise for each of them.

    Returns:
        The same model; its batch norms have a hook.
    """
    for norm in norms_of(model):
        norm.register_forward_hook(_disturbed)
    return model


def _disturbed(norm: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
    if not norm.training:
        return z
    units = (1, z.shape[1], *[1] * (z.dim() - 2))
    factor, shift = (2 * torch.rand(units, dtype=z.dtype, device=z.device) - 1 for _ in range(2))
    own = torch.randn((z.shape[0], *units[1:]), dtype=z.dtype, device=z.device)
    return (1 + SPREAD * factor) * z + MEAN * shift + OWN * own
