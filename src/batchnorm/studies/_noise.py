"""The noise of mini-batch statistics on one example."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.moments import per_channel
from batchnorm.studies._norms import norms_of
from batchnorm.surgery import recalibrate

CHUNK = 1000  # examples in one call
TINY = 1e-12  # a unit that never varies
Found = dict[str, Any]


def noise_of(
    model: nn.Module, x: Tensor, probe: int, sizes: Sequence[int], draws: int, seed: int
) -> list[Found]:
    """A row for each size and batch norm: how the example ``probe`` comes out of random batches.

    The others of its mini-batch are drawn from ``x`` with replacement. Nothing but batch norm is in
    training mode: what dropout draws is not its noise. A batch norm's noise is the root of the
    mean square over its units, in standard deviations of the unit over ``x``.
    """
    generator = torch.Generator().manual_seed(seed)
    recalibrate(model, x.split(CHUNK), layer_by_layer=True)
    model.eval()
    rows: list[Found] = []
    with torch.no_grad(), _watched(model) as (taken, given):
        scales, law = _population(model, x, probe, taken, given)
        for norm in norms_of(model):
            norm.train()
            norm.momentum = 0.0  # the statistics stay
        for size in sizes:
            seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in scales}
            for _ in range(draws):
                batch = x[torch.randint(len(x), (size,), generator=generator).to(x.device)]
                batch[0] = x[probe]
                model(batch)
                for norm, outs in seen.items():
                    outs.append(given[norm][0].double())
            for place, (norm, outs) in enumerate(seen.items(), 1):
                out = (torch.stack(outs).std(0)[None] / per_channel(scales[norm], given[norm]))[0]
                varies = scales[norm] > TINY
                rows.append(
                    {"size": size, "layer": place, "noise": _finite(_rms(out[varies])), "law": None}
                )
                if law is not None and place == 1:
                    rows[-1]["law"] = _finite(math.sqrt(law / size))
    return rows


def _population(
    model: nn.Module,
    x: Tensor,
    probe: int,
    taken: dict[nn.Module, Tensor],
    given: dict[nn.Module, Tensor],
) -> tuple[dict[nn.Module, Tensor], float | None]:
    """Each unit's standard deviation over all of ``x``; what the law says of the first batch norm.

    To first order a mini-batch's mean and variance move an example at ``x`` standard deviations by
    ``sqrt((1 + x s + x^2 (k - 1) / 4) / m)`` for units of skewness s and kurtosis k: the mean over
    units of what is under the root, times m. Positions of a feature map are no independent
    examples: None for it.
    """
    outs: dict[nn.Module, list[Tensor]] = {}
    first: list[Tensor] = []
    for part in x.split(CHUNK):
        taken.clear()
        given.clear()
        model(part.clone())
        for norm, out in given.items():
            outs.setdefault(norm, []).append(out.double())
        first.append(taken[next(iter(taken))].double())
    scales: dict[nn.Module, Tensor] = {}
    for norm, parts in outs.items():
        out = torch.cat(parts)
        dims = [d for d in range(out.dim()) if d != 1]
        scales[norm] = out.std(dims, correction=0)
    if first[0].dim() != 2:
        return scales, None
    z = torch.cat(first)
    z = z[:, z.std(0) > TINY]
    z = (z - z.mean(0)) / z.std(0, correction=0)
    at, skew, kurtosis = z[probe], z.pow(3).mean(0), z.pow(4).mean(0)
    return scales, (1 + at * skew + at.square() * (kurtosis - 1) / 4).mean().item()


@contextmanager
def _watched(
    model: nn.Module,
) -> Generator[tuple[dict[nn.Module, Tensor], dict[nn.Module, Tensor]]]:
    """What each batch norm took in and gave out at the last call, channels on axis 1."""
    taken: dict[nn.Module, Tensor] = {}
    given: dict[nn.Module, Tensor] = {}

    def see(norm: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        axis: Any = getattr(norm, "axis", 1)
        taken[norm], given[norm] = (t.detach().movedim(axis, 1) for t in (args[0], out))

    hooks = [norm.register_forward_hook(see) for norm in norms_of(model)]
    try:
        yield taken, given
    finally:
        for hook in hooks:
            hook.remove()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
