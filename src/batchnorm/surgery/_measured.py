"""One batch norm while its statistics are measured, and the passes that measure all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from batchnorm.functional._check_mask import position_mask
from batchnorm.functional._ragged import _rows
from batchnorm.layers._state import Layer
from batchnorm.moments import Moments, widest
from batchnorm.surgery._batches import Batches


class Measured:
    """A batch norm whose running statistics are, from call to call, those merged so far.

    Attributes:
        path: where it stands in the model.
        norm: one of ``KINDS``.
        calls: how often it was called in the pass that goes on.
        moments: what it has taken in since the pass began.
        final: whether they stand.
    """

    KINDS = (_BatchNorm, Layer)

    def __init__(self, path: str, norm: Any) -> None:
        self.path, self.norm = path, norm
        self.mean, self.var = norm.running_mean.clone(), norm.running_var.clone()
        self.final = False
        self.begin([])

    def begin(self, order: list[Measured]) -> None:
        """Start a pass, in which all that are called put themselves into ``order``."""
        self.order = order
        self.calls = 0
        self.weight = 0.0  # of the statistics as they were, for one new value
        self.moments = Moments.unpack(
            torch.zeros(
                3,
                self.norm.num_features,
                dtype=widest(self.mean.device),
                device=self.mean.device,
            )
        )

    def see(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each call: merge the input's moments, and normalize it with the result."""
        if self.final:
            return
        new = _moments(norm, args[0] if args else kwargs["input"], kwargs.get("mask"))
        if not (new.mean.isfinite().all() and new.var.isfinite().all()):
            raise NotFiniteError(self.name)
        if not self.calls:
            self.order.append(self)
        self.calls += 1
        self.moments = self.moments.merge(new)
        self.set(self.moments)

    @property
    def name(self) -> str:
        """As a message calls it."""
        return f"{type(self.norm).__name__} {self.path!r}"

    def set(self, moments: Moments) -> None:
        """Make them the running statistics, together with the earlier ones as these weigh."""
        if self.weight:
            count = moments.count * self.weight
            moments = Moments(count, self.mean.to(count.dtype), self.var.to(count.dtype)).merge(
                moments
            )
        self.norm.running_mean.copy_(moments.mean)
        self.norm.running_var.copy_(moments.unbiased())

    def finish(self) -> None:
        """After a pass; a synchronized layer's are those of its whole process group."""
        self.moments = _of_group(self.norm, self.moments)
        if self.calls and not self.weight and bool((self.moments.count <= 1).any()):
            raise ValueError(
                f"{self.name} has seen {_values(self.moments.count.min())}, too few for a "
                "variance: expected more than one; give more examples, or a prior"
            )
        if self.calls:
            self.set(self.moments)
        self.final = True

    def give_back(self) -> None:
        """The statistics as they were."""
        self.norm.running_mean.copy_(self.mean)
        self.norm.running_var.copy_(self.var)

    def told(self) -> str:
        """What was done, in words."""
        least = torch.finfo(self.var.dtype).tiny
        spread = self.var.clamp(min=least).sqrt()
        moved = ((self.norm.running_mean - self.mean).abs() / spread).max().item()
        times = (self.norm.running_var / self.var.clamp(min=least)).aminmax()
        ends = list(dict.fromkeys(f"{end.item():.3g}" for end in times))
        most = "up to " if self.norm.num_features > 1 else ""
        return (
            f"{_values(self.moments.count.max())}: mean moved by {most}"
            f"{moved:.3g} standard deviations, variance times {' to '.join(ends)}"
        )


def _values(count: Tensor) -> str:
    return f"{count.item():,.10g} value{'' if count == 1 else 's'} a channel"


class NotFiniteError(ValueError):
    """A batch norm took in values that are not finite; the message is its name."""


def calibrate(norms: list[Measured], batches: Batches, prior: float, layer_by_layer: bool) -> None:
    """Measure all in one pass; or one a pass, the first in the order of calls that is not final.

    Raises:
        ValueError: no examples, or values that are not finite.
    """
    while waiting := [one for one in norms if not one.final]:
        order: list[Measured] = []
        for one in waiting:
            one.begin(order)
        _pass(waiting, batches, prior)
        # Not in the order of calls: every process of a group must ask for the same one's moments.
        for one in order[:1] if layer_by_layer else waiting:
            one.finish()
        if not order:
            return


def _pass(norms: list[Measured], batches: Batches, prior: float) -> None:
    examples = 0
    for number, (size, call, run) in enumerate(batches()):
        examples += size
        for one in norms:
            one.weight = prior / examples
        try:
            run()
        except NotFiniteError as error:
            raise ValueError(_not_finite(str(error), number, call)) from None
    if not examples:
        raise ValueError(
            "batches has no examples: nothing to measure the statistics on; a generator or an "
            "iterator that was gone through before is empty, a DataLoader is not"
        )


def _not_finite(norm: str, number: int, call: Any) -> str:
    for value in pytree.tree_leaves(call):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            bad = ~value.isfinite().flatten(1).all(1) if value.dim() > 1 else ~value.isfinite()
            if bad.any():
                return (
                    f"batch {number} (counted from 0) holds NaN or infinity in {int(bad.sum())} of "
                    f"{len(value)} examples, first in example {int(bad.nonzero()[0])}: fill or "
                    "drop them first"
                )
    return (
        f"{norm} takes in values that are not finite in batch {number} (counted from 0), which is "
        "finite itself: a weight or a statistic in front of it is not, or they overflow"
    )


def _moments(norm: Any, x: Any, mask: Tensor | None) -> Moments:
    """Of what the layer is called with, as it would take it in itself."""
    axis: int = getattr(norm, "axis", 1)
    if isinstance(x, PackedSequence):
        return Moments.of(x.data)
    if x.is_nested:
        return Moments.of(_rows(x.unbind(), axis % x.dim()))
    if mask is None and (ambient := getattr(norm, "ambient", None)) is not None:
        mask = ambient.fitted(x, axis)
    x = x.movedim(axis, 1)
    return Moments.of(x, None if mask is None else position_mask(mask, x, axis, training=False))


def _of_group(norm: nn.Module, moments: Moments) -> Moments:
    """Merged over the processes of a synchronized layer, in the order of their ranks."""
    group: Any = getattr(norm, "process_group", None)
    synchronized = isinstance(norm, nn.SyncBatchNorm) or group is not None
    if not (synchronized and dist.is_available() and dist.is_initialized()):
        return moments
    mine = moments.pack()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group)
    merged = Moments.unpack(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Moments.unpack(part))
    return merged
