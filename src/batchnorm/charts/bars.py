"""Intervals: a dot and a bar a row."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

from batchnorm.charts._frame import Frame, Look, text, tip, wrapped
from batchnorm.charts._rows import Row, checked, number
from batchnorm.charts.lines import BLUE

if TYPE_CHECKING:
    import altair as alt

FIELDS = ("value", "low", "high")
ROW, LINE = 46, 16  # pixels of a row, and of each line of its name after the first

Point = dict[str, Any]


def intervals(
    rows: Iterable[Row], *, reference: float | None = None, **look: Unpack[Look]
) -> "alt.LayerChart":
    """A line a row: its ``label``, a dot at ``value`` and a bar from ``low`` to ``high``.

    ``reference``, the value that means "no effect", is a dashed line. An end that is None is open:
    the bar runs to the edge of the chart. A row with an end and no value, known to be at least or
    at most so much, is a bar alone; one without either says so in words.

    Raises:
        ValueError: there are no rows, or one lacks a field.

    Example:
        >>> rows = [{"label": "speed-up", "value": 2.0, "low": 1.5, "high": 2.5}]
        >>> print(intervals(rows, reference=1, title="Here").to_dict()["description"])
        Here: value. speed-up: 2, 1.5 to 2.5.
    """
    import altair as alt

    frame = Frame("value", "", **look)
    points: list[Point] = []
    facts: list[str] = []
    for row in checked(rows, "label", *FIELDS):
        value, low, high = (number(row[field], frame.log_x) for field in FIELDS)
        points.append({"label": str(row["label"]), "value": value, "low": low, "high": high})
        facts.append(f"{row['label']}: {_told(value, low, high)}")
    layers = [] if reference is None else [_rule(points, reference, frame)]
    layers += _bars(points, frame)
    layers += _names(points)
    if none := [point for point in points if all(point[field] is None for field in FIELDS)]:
        missing = _rows(points, none).mark_text(dy=3, fontStyle="italic", align="left", aria=False)
        layers.append(missing.encode(x=alt.value(0), text=alt.value("no value")))
    return frame.chart(layers, _height(points) * len({point["label"] for point in points}), facts)


def _lines(point: Point) -> list[str]:
    name = wrapped(point["label"])
    return [name] if isinstance(name, str) else name


def _height(points: list[Point]) -> int:
    """Of a row, in pixels: room for the longest of the names."""
    return ROW + LINE * (max(len(_lines(point)) for point in points) - 1)


def _rows(points: list[Point], some: list[Point] | None = None, up: float = 0.0) -> "alt.Chart":
    """Some of the points, all in their places one below the other; ``up`` by so many pixels."""
    import altair as alt

    # Every layer names all places: of layers that name their own, Vega would mix the orders.
    places = alt.Scale(type="band", padding=0, domain=[point["label"] for point in points])
    at = 1 - (ROW / 2 + up) / _height(points)
    y = alt.Y("label:N", sort=None, axis=None, scale=places, bandPosition=at)
    return alt.Chart(alt.InlineData(values=points if some is None else some)).encode(y=y)


def _names(points: list[Point]) -> "list[alt.Chart]":
    """What each row is, over it and across the whole chart."""
    import altair as alt

    layers: list[alt.Chart] = []
    for count in sorted({len(_lines(point)) for point in points}):
        some = [point for point in points if len(_lines(point)) == count]
        # The lines are no field of the points: a table tells a name in one.
        lines = json.dumps({point["label"]: _lines(point) for point in some})
        named = _rows(points, some).transform_calculate(lines=f"({lines})[datum.label]")
        over: dict[str, Any] = {"dy": -14 - LINE * (count - 1), "lineHeight": LINE}
        names = named.mark_text(align="left", aria=False, **over)
        layers.append(names.encode(x=alt.value(0), text="lines:N"))
    return layers


def _rule(points: list[Point], reference: float, frame: Frame) -> "alt.Chart":
    """The value of no effect, dashed; it leaves out the names of the rows."""
    import altair as alt

    across = _rows(points, up=ROW / 10).mark_rule(strokeDash=[4, 4], opacity=0.6, aria=False)
    x = alt.XDatum(reference, **frame.axis("x", padding=24))
    return across.encode(x=x, y2=alt.Y2("label:N", bandPosition=1))


def _bars(points: list[Point], frame: Frame) -> "list[alt.Chart]":
    """From the value to each end, and a dot; without a value from the end that is known on."""
    import altair as alt

    x = frame.axis("x", padding=24)
    tips = [alt.Tooltip("label:N", title=" "), *(tip(field, field) for field in FIELDS)]
    edges = {"low": alt.value(0), "high": alt.value("width")}
    some = [point for point in points if point["value"] is not None]
    bars: list[tuple[str, Any, list[Point]]] = []
    for end, edge in edges.items():
        other = "high" if end == "low" else "low"
        bars += [
            ("value", f"{end}:Q", [point for point in some if point[end] is not None]),
            ("value", edge, [point for point in some if point[end] is None]),
            (other, edge, [p for p in points if p["value"] is None and p[other] is not None]),
        ]
    layers = [
        _rows(points, data)
        .mark_rule(strokeWidth=3, opacity=0.6, color=BLUE, aria=False)
        .encode(x=alt.X(f"{start}:Q", **x), x2=to, tooltip=tips)
        for start, to, data in bars
        if data
    ]
    if some:
        dot = _rows(points, some).mark_point(filled=True, size=90, opacity=1, color=BLUE)
        layers.append(dot.encode(x=alt.X("value:Q", **x), tooltip=tips))
    return layers


def _told(value: float | None, low: float | None, high: float | None) -> str:
    """Value and ends in words.

    >>> _told(2.0, 1.0, None), _told(None, 1.0, None)
    ('2, 1 or more', '1 or more')
    """
    ends = {
        (True, True): "",
        (True, False): f"{text(high)} or less",
        (False, True): f"{text(low)} or more",
        (False, False): f"{text(low)} to {text(high)}",
    }[low is None, high is None]
    known = "" if value is None else text(value)
    return ", ".join(filter(None, [known, ends])) or text(None)
