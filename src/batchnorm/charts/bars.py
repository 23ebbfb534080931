"""Intervals: a dot and a bar a row."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

from batchnorm.charts._frame import Frame, Look, text, tip
from batchnorm.charts._rows import Row, checked, number
from batchnorm.charts.lines import BLUE

if TYPE_CHECKING:
    import altair as alt

FIELDS = ("value", "low", "high")


def intervals(
    rows: Iterable[Row], *, reference: float | None = None, **look: Unpack[Look]
) -> "alt.LayerChart":
    """A line a row: its ``label``, a dot at ``value`` and a bar from ``low`` to ``high``.

    ``reference``, the value that means "no effect", is a dashed line. An end that is None is open:
    the bar runs to the edge of the chart. A row without a value says so in words.

    Raises:
        ValueError: there are no rows, or one lacks a field.

    Example:
        >>> rows = [{"label": "speed-up", "value": 2.0, "low": 1.5, "high": 2.5}]
        >>> print(intervals(rows, reference=1, title="Here").to_dict()["description"])
        Here: value. speed-up: 2, 1.5 to 2.5.
    """
    import altair as alt

    frame = Frame("value", "", **look)
    points: list[dict[str, Any]] = []
    facts: list[str] = []
    for row in checked(rows, "label", *FIELDS):
        value, low, high = (number(row[field], frame.log_x) for field in FIELDS)
        points.append({"label": str(row["label"]), "value": value, "low": low, "high": high})
        facts.append(f"{row['label']}: {text(value)}" + ("" if value is None else _to(low, high)))
    x = frame.axis("x", padding=24)
    tips = [alt.Tooltip("label:N", title=" "), *(tip(field, field) for field in FIELDS)]
    y = alt.Y("label:N", sort=[point["label"] for point in points], axis=None)

    def layer(data: list[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=data)).encode(y=y)

    some = [point for point in points if point["value"] is not None]
    none = [point for point in points if point["value"] is None]
    layers: list[alt.Chart] = []
    if reference is not None:
        at = alt.Chart(alt.InlineData(values=[{"reference": reference}]))
        at = at.mark_rule(strokeDash=[4, 4], opacity=0.6)
        layers.append(at.encode(x=alt.X("reference:Q", **x)))
    for end, edge in (("low", alt.value(0)), ("high", alt.value("width"))):
        for data, to in (
            ([point for point in some if point[end] is not None], f"{end}:Q"),
            ([point for point in some if point[end] is None], edge),
        ):
            bar = layer(data).mark_rule(strokeWidth=3, opacity=0.6, color=BLUE, aria=False)
            layers += [bar.encode(x=alt.X("value:Q", **x), x2=to, tooltip=tips)] if data else []
    if some:
        dot = layer(some).mark_point(filled=True, size=90, opacity=1, color=BLUE)
        layers.append(dot.encode(x=alt.X("value:Q", **x), tooltip=tips))
    at_left: dict[str, Any] = {"align": "left", "aria": False}
    label = layer(points).mark_text(dy=-14, **at_left)
    layers.append(label.encode(x=alt.value(0), text="label:N"))
    if none:
        missing = layer(none).mark_text(dy=3, fontStyle="italic", **at_left)
        layers.append(missing.encode(x=alt.value(0), text=alt.value("no value")))
    return frame.chart(layers, 46 * len({point["label"] for point in points}), facts)


def _to(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f", {text(low)} or more" if high is None else f", {text(high)} or less"
    return f", {text(low)} to {text(high)}"
