"""Intervals: a dot and a bar a row."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Unpack

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
    points: list[Row] = []
    facts: list[str] = []
    for row in checked(rows, "label", *FIELDS):
        value, low, high = (number(row[field], frame.log_x) for field in FIELDS)
        points.append({"label": str(row["label"]), "value": value, "low": low, "high": high})
        facts.append(f"{row['label']}: {text(value)}" + ("" if value is None else _to(low, high)))
    x = frame.axis("x", padding=24)
    tips = [alt.Tooltip("label:N", title=" "), *(tip(field, field) for field in FIELDS)]
    line = alt.Chart(alt.Data(values=points)).encode(y=alt.Y("label:N", sort=None, axis=None))
    none = line.transform_filter("!isValid(datum.value)")
    some = line.transform_filter("isValid(datum.value)")
    bar = some.mark_rule(strokeWidth=3, opacity=0.6, strokeCap="round", color=BLUE, aria=False)
    bar = bar.encode(tooltip=tips)
    low, value = (alt.X(f"{field}:Q", **x) for field in ("low", "value"))
    layers = [
        bar.transform_filter("isValid(datum.low)").encode(x=low, x2="value:Q"),
        bar.transform_filter("!isValid(datum.low)").encode(x=value, x2=alt.value(0)),
        bar.transform_filter("isValid(datum.high)").encode(x=value, x2="high:Q"),
        bar.transform_filter("!isValid(datum.high)").encode(x=value, x2=alt.value("width")),
        some.mark_point(filled=True, size=90, opacity=1, color=BLUE).encode(x=value, tooltip=tips),
        line.mark_text(dy=-14, align="left", aria=False).encode(x=alt.value(0), text="label:N"),
        none.mark_text(dy=3, align="left", fontStyle="italic", aria=False).encode(
            x=alt.value(0), text=alt.value("no value")
        ),
    ]
    if reference is not None:
        at = alt.Chart(alt.Data(values=[{"reference": reference}]))
        at = at.mark_rule(strokeDash=[4, 4], opacity=0.6)
        layers.insert(0, at.encode(x=alt.X("reference:Q", **x)))
    return frame.chart(layers, alt.Step(46), facts)


def _to(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f", {text(low)} or more" if high is None else f", {text(high)} or less"
    return f", {text(low)} to {text(high)}"
