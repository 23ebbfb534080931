"""Two runs compared where their losses are the same, not their steps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVELS = 20  # losses at which the runs are compared, evenly on a log scale
SPAN = 1.5  # times: runs whose losses share less than that are not compared

Rows = Sequence[dict[str, Any]]
Shared = tuple[float, float]


def shared(one: Rows, other: Rows, loss: str = "loss_here") -> Shared | None:
    """From the lowest to the highest loss that both runs have gone through; None for too few.

    >>> falling = [{"loss_here": 2.0}, {"loss_here": 0.5}]
    >>> shared(falling, [{"loss_here": 1.0}, {"loss_here": 0.1}])
    (0.5, 1.0)
    """
    a, b = ([float(row[loss]) for row in rows if row.get(loss)] for rows in (one, other))
    if not a or not b:
        return None
    low, high = max(min(a), min(b)), min(max(a), max(b))
    return (low, high) if high >= SPAN * low else None


def times(one: Rows, other: Rows, field: str, loss: str = "loss_here") -> float | None:
    """How many times larger a field is in one run than in the other, at the same loss.

    The geometric mean over levels of the loss that both went through; a run counts when its loss
    comes to a new low, and between these it is interpolated on log scales.

    Returns:
        None where the runs share too few losses, or either has no number above 0.

    >>> slow = [{"loss_here": x, "g": 6 * x} for x in (2.0, 1.0, 0.5)]
    >>> fast = [{"loss_here": x, "g": 2 * x} for x in (1.9, 0.5, 0.2)]
    >>> round(times(slow, fast, "g"), 9)
    3.0
    """
    ends = shared(one, other, loss)
    if ends is None:
        return None
    levels = np.linspace(math.log(ends[0]), math.log(ends[1]), LEVELS)
    logs = [_at(rows, field, loss, levels) for rows in (one, other)]
    if logs[0] is None or logs[1] is None:
        return None
    return float(np.exp(np.mean(logs[0] - logs[1])))


def _at(rows: Rows, field: str, loss: str, levels: np.ndarray) -> np.ndarray | None:
    """Log of the field at each log loss."""
    points: list[tuple[float, float]] = []
    lowest = math.inf
    for row in rows:
        here, value = row.get(loss), row.get(field)
        if here is None or value is None:
            continue
        if 0 < here < lowest and value > 0:
            lowest = here
            points.append((math.log(here), math.log(value)))
    if not points:
        return None
    at, values = zip(*reversed(points), strict=True)
    return np.interp(levels, at, values)
