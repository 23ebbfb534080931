"""A chart as files: a picture for a paper or a slide, its numbers for a spreadsheet."""

import csv
import io
from typing import Any, cast

Json = dict[str, Any]

WIDTH = 640  # of a chart that would fill its place on a page
SCALE = 2  # pixels of a PNG for each of the chart's
LOOK: Json = {
    "background": "white",
    "font": "sans-serif",
    "padding": 12,
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 15, "subtitleColor": "#57606c", "offset": 14},
    "axis": {"labelColor": "#57606c", "titleColor": "#57606c", "titleFontWeight": "normal"},
    "legend": {"orient": "top", "title": None},
}


def pictures(spec: Json) -> dict[str, bytes]:
    """The chart as "svg" and "png", on white, for wherever no script runs.

    Args:
        spec: Vega-Lite; what a slider chooses is shown as it is at first.

    >>> spec = {"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": {"x": {"field": "x"}}}
    >>> sorted(pictures(spec)), pictures(spec)["png"][1:4]
    (['png', 'svg'], b'PNG')
    """
    from vl_convert import svg_to_png, vegalite_to_svg

    drawn = {key: value for key, value in spec.items() if key != "usermeta"}
    drawn["config"] = {**cast(Json, spec.get("config", {})), **LOOK}
    if drawn.get("width") == "container":
        drawn["width"] = WIDTH
    svg = vegalite_to_svg(drawn)
    return {"svg": svg.encode(), "png": svg_to_png(svg, scale=SCALE)}


def rows_of(spec: Json) -> list[Json]:
    """The rows that the chart draws: of several sets of rows the longest, as its page shows."""
    layers = cast("list[Json]", [spec, *spec.get("layer", [])])
    sets = [
        *spec.get("datasets", {}).values(),
        *(one.get("data", {}).get("values", []) for one in layers),
    ]
    return max(sets, key=len, default=[])


def table(rows: list[Json]) -> bytes:
    r"""Rows as CSV in UTF-8, a column for each field in the order in which fields appear.

    A row that holds lists of one length, such as the bins of a histogram, is a line for each entry.

    >>> table([{"step": 0, "loss": None}, {"step": 10, "loss": 0.5, "note": "a, b"}])
    b'step,loss,note\r\n0,,\r\n10,0.5,"a, b"\r\n'
    """
    lines = [line for row in rows for line in _lines(row)]
    names = list(dict.fromkeys(name for row in lines for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def _lines(row: Json) -> list[Json]:
    lists = {name: cast("list[Any]", v) for name, v in row.items() if isinstance(v, list)}
    if not lists:
        return [row]
    return [
        row | dict(zip(lists, entries, strict=True))
        for entries in zip(*lists.values(), strict=True)
    ]
