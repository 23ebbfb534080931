"""Networks whose norms are one of four kinds, for mini-batches that are small."""

from typing import Any

from torch import Tensor, nn

from batchnorm import copies
from batchnorm.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
)
from batchnorm.studies._ghosts import in_groups
from batchnorm.surgery import is_batch_norm

NORM, GHOST, RENORM, GROUP = "batch norm", "ghost batches", "batch renormalization", "group norm"
RENORMS: dict[type, type] = {
    **dict.fromkeys((nn.BatchNorm1d, BatchNorm1d), BatchRenorm1d),
    **dict.fromkeys((nn.BatchNorm2d, BatchNorm2d), BatchRenorm2d),
    **dict.fromkeys((nn.BatchNorm3d, BatchNorm3d), BatchRenorm3d),
}
CHANNELS = 16  # at most, in a group: Wu & He's other setting beside 32 groups
R_MAX, D_MAX, RAMP = 3.0, 5.0, 0.2  # Ioffe's limits, reached after this share of the steps


def with_norm(model: nn.Module, arm: str, group: int, steps: int) -> nn.Module:
    """The model, which has batch norm, with the arm's norm in the place of each.

    Args:
        model: left as it is; what the result shares with it are the other layers' weights.
        arm: which norm.
        group: examples that ghost batches hold.
        steps: of training, over which renormalization's limits are raised.
    """
    if arm == GHOST:
        return in_groups(model, group)
    if arm == NORM:
        return model
    make = grouped if arm == GROUP else _renormed
    norms = {path: norm for path, norm in model.named_modules() if is_batch_norm(norm)}
    out = copies.replace(model, {path: make(norm) for path, norm in norms.items()})
    if arm == RENORM:
        for path in norms:
            _raise_limits(out.get_submodule(path), steps)
    return out


def other(model: nn.Module) -> str:
    """The first batch norm that has no counterpart here, and why; nothing where all have one."""
    for path, norm in model.named_modules():
        if is_batch_norm(norm):
            if type(norm) not in RENORMS:
                return f"{path} is {type(norm).__name__}, not BatchNorm1d, 2d or 3d"
            if norm.running_var is None:
                return f"{path} has no running statistics, by which to renormalize"
            if getattr(norm, "axis", 1) != 1:
                return f"{path} has its channels on axis {norm.axis}, where group norm has none"
    return ""


def grouped(norm: Any) -> nn.GroupNorm:
    """Group norm for as many channels; groups as large as divide them, of 16 channels at most.

    >>> grouped(nn.BatchNorm1d(100)).num_groups, grouped(nn.BatchNorm2d(32)).num_groups
    (10, 2)
    """
    channels: int = norm.num_features
    # A group of one channel would leave nothing of one value: then all channels are one group.
    sizes = [size for size in range(2, CHANNELS + 1) if channels % size == 0]
    groups = channels // max(sizes, default=channels)
    return nn.GroupNorm(groups, channels, norm.eps, norm.affine)


def _renormed(norm: Any) -> nn.Module:
    return RENORMS[type(norm)](
        norm.num_features, norm.eps, norm.momentum, norm.affine, r_max=1.0, d_max=0.0
    )


def _raise_limits(norm: Any, steps: int) -> None:
    """From batch norm's at the first step to Ioffe's, step by step."""
    calls = 0

    def see(norm: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal calls
        if norm.training:
            share = min(1.0, calls / max(1.0, RAMP * steps))
            norm.r_max, norm.d_max = 1 + share * (R_MAX - 1), share * D_MAX
            calls += 1

    norm.register_forward_pre_hook(see)
