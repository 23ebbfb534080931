"""What bad options for small batches get; see `_check`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from batchnorm.functional._check import one_value_a_channel
from batchnorm.functional._check_kinds import whole
from batchnorm.functional._hidden import pools

ONE_VALUE = ("raise", "running", "beta")


class Small(NamedTuple):
    """The options for small batches, as `batch_norm` takes them."""

    one_value: str
    ghost_size: int | None
    renorm: tuple[float, float] | None
    group: str = ""
    training: bool = True


def check_unmapped(size: int, x: Tensor, *own: Tensor | None) -> None:
    """Check that `torch.vmap` has hidden no axis of x but those of members with their `own`.

    What pools over a hidden axis would be in other groups than was asked for.
    """
    if pools(x, *own):
        raise ValueError(
            f"ghost_size={size} under torch.vmap, which hides the axis of the examples that pool "
            f"their statistics; expected ghost_size=None, or a call without vmap"
        )


def check_group(group: Tensor, x: Tensor, size: int, *own: Tensor | None) -> None:
    """Check that the examples of a ghost batch, or what is left over, are several values."""
    if one_value_a_channel(group, *own):
        raise ValueError(
            f"ghost_size={size} leaves a group with 1 value per channel of x, which has "
            f"{x.shape[0]} examples: the variance of one value is zero; choose a size with more "
            f'to each group, or say what one value gets: one_value="running" or "beta"'
        )


def check_small(one_value: str, ghost_size: int | None) -> None:
    """Check the options for small batches."""
    if one_value not in ONE_VALUE:
        raise ValueError(f"one_value={one_value!r}; expected one of {', '.join(ONE_VALUE)}")
    if ghost_size is not None and not (whole(ghost_size) and ghost_size >= 1):
        raise ValueError(
            f"ghost_size={ghost_size!r}; expected None or how many examples are normalized "
            f"together, an integer such as 32"
        )


def check_renorm(renorm: Any) -> None:
    """Check the limits of batch renormalization."""
    if renorm is None:
        return
    try:
        r_max, d_max = renorm
    except (TypeError, ValueError):
        raise ValueError(
            f"renorm={renorm!r}; batch renormalization expects two limits, (r_max, d_max), such as "
            f"(3.0, 5.0)"
        ) from None
    try:
        within = r_max >= 1 and d_max >= 0 and not {type(r_max), type(d_max)} & {bool}
    except TypeError:
        within = False
    if not within:
        raise ValueError(
            f"r_max={r_max!r}, d_max={d_max!r}; batch renormalization expects r_max >= 1 and "
            f"d_max >= 0, such as 3 and 5; 1 and 0 are plain batch norm"
        )


def check_options(small: Small, running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Check the options for a call, which may need running statistics in training."""
    check_small(small.one_value, small.ghost_size)
    check_renorm(small.renorm)
    if small.ghost_size is not None and small.group:
        raise ValueError(
            f"ghost_size={small.ghost_size} with process_group, which is either smaller groups "
            f"than this process's batch or a larger one; expected one of the two to be None"
        )
    if (small.renorm is not None or small.one_value == "running") and (
        running_mean is None or running_var is None
    ):
        what = "batch renormalization" if small.renorm is not None else 'one_value="running"'
        raise ValueError(
            f"{what} needs running statistics, and "
            f"{'running_mean' if running_mean is None else 'running_var'} is None: give both "
            f"(in a layer, track_running_stats=True)"
        )
