"""Distributions of two arms side by side, with a slider over the steps of training."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Unpack

from batchnorm.charts._frame import Frame, Look
from batchnorm.charts._rows import Row, checked
from batchnorm.charts.lines import BLUE, ORANGE

if TYPE_CHECKING:
    import altair as alt

LEFT, RIGHT = "without", "with batch norm"
HEIGHT = 380
TAIL = 0.001  # of the values on each end may lie off the axis: single ones would squeeze the rest
FINEST = 50  # bins over the axis: what is finer than that looks like a comb
PERCENTS = (15, 50, 85)


def halves(rows: Iterable[Row], **look: Unpack[Look]) -> "alt.LayerChart":
    """Histograms back to back: "without" to the left, "with batch norm" to the right.

    A slider goes through the steps, and where there are several layers a menu chooses one; both are
    the browser's own, and so take the keyboard. A dashed outline stays where training began.

    Args:
        rows: a histogram each: ``arm``, ``layer``, ``step``, ``counts`` and ``ends``, the lowest
            and the highest value that it holds.
        look: titles.

    Raises:
        ValueError: there are no rows, or one lacks a field.

    Example:
        >>> rows = [{"arm": arm, "layer": "1", "step": 0, "counts": [1, 3], "ends": [-1.0, 1.0]}
        ...         for arm in ("without", "with batch norm")]
        >>> halves(rows, title="Values").to_dict()["params"][0]["bind"]["input"]
        'range'
    """
    import altair as alt

    found = checked(rows, "arm", "layer", "step", "counts", "ends")
    frame = Frame("share of the values", "value", **look)
    steps = sorted({row["step"] for row in found})
    layers = list(dict.fromkeys(str(row["layer"]) for row in found))
    points = [_point(row) for row in found]
    params = [_slider(steps), *([_menu(layers)] if len(layers) > 1 else [])]
    low, high = _axis(points)
    least = (high - low) / FINEST
    points = [point | _bins(row, least) for point, row in zip(points, found, strict=True)]
    base = (
        alt.Chart(alt.InlineData(values=points))
        .transform_filter(f"datum.layer === {'layer' if len(layers) > 1 else repr(layers[0])}")
        .transform_calculate(full="extent(datum.share)[1] / 0.95")
        .transform_flatten(["value", "share"])
    )
    inks = alt.Scale(domain=[LEFT, RIGHT], range=[ORANGE, BLUE])
    name = frame.y_title or "value"
    across: dict[str, Any] = {
        "x": alt.X(
            "side:Q",
            title="\N{LEFTWARDS ARROW} without | with batch norm \N{RIGHTWARDS ARROW}",
            stack=None,
            scale=alt.Scale(domain=[-1, 1]),
            axis=alt.Axis(labels=False, ticks=False, grid=False, domain=False),
        ),
        "y": alt.Y(
            "value:Q",
            title=name,
            scale=alt.Scale(domain=[low, high], nice=False, clamp=False),
            axis=alt.Axis(grid=True, tickCount=7),
        ),
        "color": alt.Color("arm:N", title=None, scale=inks, legend=alt.Legend(symbolOpacity=1)),
    }
    side = f"(datum.arm === '{LEFT}' ? -1 : 1) * datum.share / datum.full"
    now = base.transform_filter("datum.step === step").transform_calculate(side=side)
    first = base.transform_filter(f"datum.step === {steps[0]}").transform_calculate(side=side)
    order = alt.Order("value:Q")
    tips = [
        alt.Tooltip("arm:N", title=" "),
        alt.Tooltip("value:Q", title=name, format=".3~g"),
        alt.Tooltip("share:Q", title="share of the values near it", format=".2~%"),
    ]
    area = now.mark_area(
        orient="horizontal", opacity=0.45, interpolate="monotone", clip=True, aria=False
    ).encode(**across, x2=alt.X2Datum(0), tooltip=tips)
    outline: dict[str, Any] = {"interpolate": "monotone", "clip": True, "aria": False}
    edge = now.mark_line(strokeWidth=2, **outline).encode(**across, order=order)
    began = first.mark_line(strokeDash=[4, 3], strokeWidth=1.2, opacity=0.8, **outline)
    began = began.encode(**across, order=order)
    facts = [
        f"layer {layer}, {arm}: {_told(found, layer, arm)}"
        for layer in layers
        for arm in (LEFT, RIGHT)
        if any(str(row["layer"]) == layer and row["arm"] == arm for row in found)
    ]
    note = f"move the slider through training; dashed: step {steps[0]}"
    return frame.chart([area, began, edge], HEIGHT, facts, note).add_params(*params)


def _slider(steps: list[int]) -> Any:
    """The browser's range input: arrow keys move it."""
    import altair as alt

    apart = min((b - a for a, b in pairwise(steps)), default=1)
    bind = alt.binding_range(min=steps[0], max=steps[-1], step=apart, name="step of training ")
    return alt.param(name="step", value=steps[-1], bind=bind)


def _menu(layers: list[str]) -> Any:
    import altair as alt

    return alt.param(
        name="layer",
        value=layers[-1],
        bind=alt.binding_select(options=layers, name="hidden layer "),
    )


def _point(row: Row) -> dict[str, Any]:
    """A histogram as it is drawn and told."""
    (low, high), counts = row["ends"], row["counts"]
    width = (high - low) / len(counts) or 1e-9
    places = [low + (i + 0.5) * width for i in range(len(counts))]
    about = {"arm": str(row["arm"]), "layer": str(row["layer"]), "step": row["step"]}
    return about | _bins(row, 0.0) | _numbers(counts, places, width)


def _bins(row: Row, least: float) -> dict[str, Any]:
    """Middles of bins about as wide as ``least``, and their shares; zero beyond both ends."""
    (low, high), counts = row["ends"], row["counts"]
    width = (high - low) / len(counts) or 1e-9
    together = min(len(counts), max(1, round(least / width)))
    width *= together
    sums = [sum(counts[i : i + together]) for i in range(0, len(counts), together)]
    total = sum(counts) or 1
    return {
        "value": [float(f"{low + (i + 0.5) * width:.4g}") for i in range(-1, len(sums) + 1)],
        "share": [0, *(float(f"{count / total:.4g}") for count in sums), 0],
    }


def _numbers(counts: list[int], places: list[float], width: float) -> dict[str, float]:
    """What the table beside the picture says of a histogram.

    >>> _numbers([1, 2, 1], [-1.0, 0.0, 1.0], 1.0)["standard deviation"]
    0.7071
    """
    total = sum(counts) or 1
    mean = sum(n * place for n, place in zip(counts, places, strict=True)) / total
    square = sum(n * (place - mean) ** 2 for n, place in zip(counts, places, strict=True)) / total
    summed = [0, *accumulate(counts)]

    def percentile(percent: int) -> float:
        part = percent / 100 * summed[-1]
        i = max(bisect_left(summed, part) - 1, 0)
        return places[i] + (float(part - summed[i]) / (counts[i] or 1) - 0.5) * width

    told = {"mean": mean, "standard deviation": math.sqrt(square)}
    told |= {f"{percent} % lie below": percentile(percent) for percent in PERCENTS}
    return {name: float(f"{number:.4g}") for name, number in told.items()}


def _axis(points: list[dict[str, Any]]) -> tuple[float, float]:
    """One axis for all steps, layers and arms: from the lowest to the highest value that counts."""
    lows: list[float] = []
    highs: list[float] = []
    for point in points:
        total, below = sum(point["share"]) or 1, 0.0
        kept: list[float] = []
        for value, share in zip(point["value"], point["share"], strict=True):
            below += share
            if TAIL * total <= below <= (1 - TAIL) * total:
                kept.append(value)
        lows += kept[:1]
        highs += kept[-1:]
    return (min(lows), max(highs)) if lows else (-1.0, 1.0)


def _told(rows: list[Row], layer: str, arm: str) -> str:
    mine = sorted(
        (row for row in rows if str(row["layer"]) == layer and row["arm"] == arm),
        key=lambda row: row["step"],
    )
    ends = [f"{row['ends'][0]:.3g} to {row['ends'][1]:.3g}" for row in (mine[0], mine[-1])]
    return f"values from {ends[0]} at step {mine[0]['step']}, {ends[1]} at step {mine[-1]['step']}"
