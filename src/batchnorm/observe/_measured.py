"""The statistics of what was kept, of many layers and steps at once: small ones cost the calls."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from batchnorm.moments import Moments
from batchnorm.observe._parts import Part

Array = np.ndarray[Any, Any]


class Shape(NamedTuple):
    """Of a layer's values: percentiles ``(number, C)``, and a histogram over all channels."""

    percentiles: Array
    counts: Array
    ends: Array


NO_SHAPE = Shape(*[np.empty(0)] * 3)


class Measured(NamedTuple):
    """Mean and biased variance of a layer's values, both ``(C,)``, and their shape if asked for."""

    mean: Array
    var: Array
    shape: Shape = NO_SHAPE


def measured(parts: Sequence[Part], shape: bool, at: Sequence[float], bins: int) -> list[Measured]:
    """Mean and variance of each part; with ``shape`` its percentiles and its histogram too."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, part in enumerate(parts):
        kind = (*part.sample.shape, part.sample.dtype, part.sample.device, part.moments is None)
        alike.setdefault(kind, []).append(i)
    out: dict[int, Measured] = {}
    for group in alike.values():
        mine = [parts[i] for i in group]
        known = [part.moments for part in mine if part.moments is not None]
        shapes = [NO_SHAPE] * len(mine)
        sample = torch.empty(0)
        if shape or not known:
            sample = _wide(torch.stack([part.sample for part in mine]))
        if shape:
            shapes = _shapes(sample, at, bins)
        means, variances = _merged(known) if known else _moments(sample)
        out |= zip(group, map(Measured, means, variances, shapes), strict=True)
    return [out[i] for i in range(len(parts))]


def _merged(known: list[Moments]) -> tuple[Array, Array]:
    """Means and variances, ``(parts, C)``, that are known already."""
    both = torch.stack([m.mean for m in known]), torch.stack([m.var for m in known])
    return both[0].cpu().numpy(), both[1].cpu().numpy()


def _moments(sample: Tensor) -> tuple[Array, Array]:
    """Means and variances, ``(parts, C)``, of ``(parts, positions, C)``."""
    # Less the first value, so that a mean far from zero costs no digits; means as a matrix product.
    first = sample[:, :1]
    values = sample - first
    each = values.new_full((len(values), 1, values.shape[1]), 1 / values.shape[1])
    mean = each @ values
    values -= mean
    var = each @ values.square_()
    whole = first.double() + mean
    return whole[:, 0].double().numpy(), var[:, 0].double().numpy()


def _wide(sample: Tensor) -> Tensor:
    sample = sample.cpu()
    return sample if sample.dtype in (torch.float32, torch.float64) else sample.float()


def _shapes(sample: Tensor, at: Sequence[float], bins: int) -> list[Shape]:
    values = sample.numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged layer is told as it is
        ordered = np.sort(values, axis=1)
        return [
            Shape(percentiles(mine, at), *histogram(part, mine[0].min(), mine[-1].max(), bins))
            for part, mine in zip(values, ordered, strict=True)
        ]


def percentiles(ordered: Array, at: Sequence[float]) -> Array:
    """Over the first axis of sorted values ``(positions, C)``, interpolated as NumPy does it.

    Returns:
        ``(percentiles, C)``.

    >>> percentiles(np.array([[1.0], [2.0], [4.0]]), (25, 50)).tolist()
    [[1.5], [2.0]]
    """
    place = np.asarray(at, dtype=float) / 100 * (len(ordered) - 1)
    low = place.astype(int)
    below, above = ordered[low], ordered[np.minimum(low + 1, len(ordered) - 1)]
    return below + (above - below) * (place - low)[:, None].astype(ordered.dtype)


def histogram(values: Array, low: Any, high: Any, bins: int) -> tuple[Array, Array]:
    """Counts in bins of equal width between the ends, finite values only, and these ends.

    >>> counts, ends = histogram(np.array([0.0, 1.0, 3.0, 4.0]), 0.0, 4.0, 2)
    >>> counts.tolist(), ends.tolist()
    ([2, 2], [0.0, 4.0])
    """
    if not np.isfinite(high - low):
        values = values[np.isfinite(values)].astype(float)  # ends may be too far apart otherwise
        low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    places = values - low
    places *= bins / (high - low) if high > low else 1.0
    counts = np.bincount(places.astype(np.intp).reshape(-1), minlength=bins + 1)
    counts[bins - 1] += counts[bins:].sum()  # the highest value lies on the last bin's end
    return counts[:bins], np.array([low, high], dtype=float)
