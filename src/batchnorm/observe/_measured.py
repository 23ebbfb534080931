"""The statistics of what was kept, of many layers and steps at once: small ones cost the calls."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
        sample = _wide(torch.stack([part.sample for part in mine], 1))
        shapes = _shapes(sample, at, bins) if shape else [NO_SHAPE] * len(mine)
        found = map(Measured, *_moments(mine, sample), shapes)
        out |= zip(group, found, strict=True)
    return [out[i] for i in range(len(parts))]


def _moments(parts: list[Part], sample: Tensor) -> tuple[Array, Array]:
    """Means and variances, ``(parts, C)``; the sample is ``(positions, parts, C)``."""
    known = [part.moments for part in parts if part.moments is not None]
    if known:
        mean, var = torch.stack([m.mean for m in known]), torch.stack([m.var for m in known])
        return mean.cpu().numpy(), var.cpu().numpy()
    # Less the first value, so that a mean far from zero costs no digits; means as a matrix product.
    values = sample.flatten(1)
    first = values[:1]
    values = values - first
    each = values.new_full((1, len(values)), 1 / len(values))
    mean = each @ values
    values -= mean
    var = each @ values.square_()
    whole = first.double() + mean
    mean, var = (x.double().view(sample.shape[1:]) for x in (whole, var))
    return mean.numpy(), var.numpy()


def _wide(sample: Tensor) -> Tensor:
    sample = sample.cpu()
    return sample if sample.dtype in (torch.float32, torch.float64) else sample.float()


def _shapes(sample: Tensor, at: Sequence[float], bins: int) -> list[Shape]:
    values = sample.numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged layer is told as it is
        return list(map(Shape, percentiles(values, at), *histograms(values, bins)))


def percentiles(values: Array, at: Sequence[float]) -> Array:
    """Over the first axis of ``(positions, parts, C)``, interpolated as NumPy does it.

    Returns:
        ``(parts, percentiles, C)``.

    >>> percentiles(np.array([[[1.0]], [[2.0]], [[4.0]]]), (25, 50)).tolist()
    [[[1.5], [2.0]]]
    """
    ordered = np.sort(values, axis=0)
    place = np.asarray(at, dtype=float) / 100 * (len(ordered) - 1)
    low = place.astype(int)
    below, above = ordered[low], ordered[np.minimum(low + 1, len(ordered) - 1)]
    between = below + (above - below) * (place - low)[:, None, None].astype(values.dtype)
    return between.transpose(1, 0, 2)


def histograms(values: Array, bins: int) -> tuple[Array, Array]:
    """Counts of each part's values in bins of equal width between its ends, finite values only.

    Returns:
        Counts ``(parts, bins)`` and ends ``(parts, 2)``.

    >>> counts, ends = histograms(np.array([[[0.0, 1.0]], [[3.0, 4.0]]]), 2)
    >>> counts.tolist(), ends.tolist()
    ([[2, 2]], [[0.0, 4.0]])
    """
    parts = values.shape[1]
    low, high = values.min((0, 2)), values.max((0, 2))
    here = None if np.isfinite(high - low).all() else np.isfinite(values)
    if here is not None:
        low = np.where(here, values, np.inf).min((0, 2))
        high = np.where(here, values, -np.inf).max((0, 2))
        low, high = (np.where(np.isfinite(end), end, 0) for end in (low, high))
    width = np.where(high > low, high - low, 1)
    places = values - low[:, None]
    places *= (bins / width)[:, None]
    np.minimum(places, bins - 1, out=places)
    if here is not None:
        places[~here] = parts * bins  # a bin of its own, which is dropped
    whole = places.astype(np.intp)
    whole += (np.arange(parts) * bins)[:, None]
    counts = np.bincount(whole.reshape(-1), minlength=parts * bins)[: parts * bins]
    return counts.reshape(parts, bins), np.stack([low, high], 1).astype(float)
