"""From rows to the points of a chart: what can be drawn, and the median and range over runs."""

from collections.abc import Iterable, Mapping
from math import isfinite
from statistics import median
from typing import Any

from batchnorm.charts._frame import Frame

Row = Mapping[str, Any]


def points_of(
    rows: Iterable[Row], frame: Frame, color: str, band: tuple[str, str] | None
) -> list[Row]:
    """One point an arm and x, in order: median and range of the runs, y None where most failed."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in checked(rows, frame.x, color, *(band or ())):
        at = number(row[frame.x], frame.log_x)
        if at is not None:
            groups.setdefault((str(row[color]), at), []).append(row)
    runs: dict[str, int] = {}
    for (arm, _), here in groups.items():
        runs[arm] = max(runs.get(arm, 0), len(here))
    points: list[Row] = []
    for (arm, at), here in sorted(groups.items(), key=lambda item: item[0][1]):
        # A run that diverged has no rows, or a row without y, from there on.
        ys, lows, highs = (
            [v for row in here if (v := number(row.get(field), frame.log_y)) is not None]
            for field in (frame.y, *(band or (frame.y, frame.y)))
        )
        most = ys and 2 * len(ys) >= runs[arm]
        y = median(ys) if most else None
        low, high = (min(lows, default=None), max(highs, default=None)) if most else (None, None)
        seen = f"{len(ys)} of {runs[arm]}"
        points.append({"arm": arm, "x": at, "y": y, "low": low, "high": high, "runs": seen})
    return points


def checked(rows: Iterable[Row], *fields: str) -> list[Row]:
    """The rows, each of which has these fields.

    Raises:
        ValueError: there are no rows, or one lacks a field.
    """
    found = list(rows)
    if not found:
        raise ValueError("there are no rows to draw: expected at least one")
    for row in found:
        for field in fields:
            if field not in row:
                raise ValueError(f"a row has no field {field!r} to draw; it has {sorted(row)}")
    return found


def spread(points: list[Row]) -> str:
    """What line and band are, in words; nothing where there is one run."""
    runs = max(int(str(p["runs"]).rpartition(" ")[2]) for p in points)
    return f"median of {runs} runs, band from lowest to highest" if runs > 1 else ""


def number(value: Any, log: bool) -> float | None:
    """The value, or None for what cannot be drawn: None, NaN, inf, and on a log axis zero."""
    if not isinstance(value, (int, float)) or not isfinite(value) or (log and value <= 0):
        return None
    return float(value)
