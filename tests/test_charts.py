"""Charts: what is drawn, what is left out, and colors that everyone can read."""

import json
from math import inf, nan
from pathlib import Path

import pytest

from batchnorm.charts import curves, intervals, pictures, rows_of, sweep, table
from batchnorm.charts._frame import WIDEST
from batchnorm.charts.bars import LINE, ROW
from batchnorm.charts.lines import DASHES, KNOWN, OTHERS, SHAPES

ARMS = ("with batch norm", "without")


def rows(values_by_arm, x="step"):
    """{arm: [values of run 0, of run 1, ...]} -> rows with y."""
    return [
        {"arm": arm, x: i * 10 or 0.001, "y": value}
        for arm, runs in values_by_arm.items()
        for run in runs
        for i, value in enumerate(run)
    ]


def layers(chart):
    """The layers as dicts, each with its data put in place."""
    spec = chart.to_dict()
    for layer in spec["layer"]:
        data = layer.get("data") or spec["data"]
        layer["data"] = data["values"] if "values" in data else spec["datasets"][data["name"]]
    return spec["layer"]


def of_kind(chart, kind):
    return [layer for layer in layers(chart) if layer["mark"]["type"] == kind]


def test_a_curve_is_the_median_of_the_runs_and_the_band_their_range():
    chart = curves(rows({"without": [[0, 1], [0, 5], [0, 2]]}), "step", "y")
    last = of_kind(chart, "line")[0]["data"][-1]
    assert (last["y"], last["low"], last["high"], last["runs"]) == (2, 1, 5, "3 of 3")
    assert of_kind(chart, "area")[0]["encoding"]["y2"]["field"] == "high"


def test_a_band_that_rows_hold_already_is_drawn_as_it_is():
    data = [{"arm": "without", "step": 1, "y": 2.0, "a": 0.5, "b": 9.0}]
    point = of_kind(curves(data, "step", "y", band=("a", "b")), "line")[0]["data"][0]
    assert (point["y"], point["low"], point["high"]) == (2, 0.5, 9)


@pytest.mark.parametrize("hole", [None, nan, inf, -inf])
def test_a_curve_ends_with_a_cross_where_most_runs_diverge(hole):
    data = rows({"without": [[1, 2, hole], [1, 3, hole], [1, 4, 5]]})
    chart = curves(data, "step", "y")
    assert [point["y"] for point in of_kind(chart, "line")[0]["data"]] == [1, 3]
    cross = of_kind(chart, "point")[-1]["data"]
    assert [(point["x"], point["y"]) for point in cross] == [(10, 3)]
    assert "most runs diverge" in chart.to_dict()["description"]


def test_a_curve_goes_on_where_one_run_of_three_diverges_between_two_readings():
    data = rows({"without": [[1, 2, 3], [1, 2, 3], [1]]})
    data.append({"arm": "without", "step": 7, "y": None, "diverged": True})
    chart = curves(data, "step", "y")
    assert [point["x"] for point in of_kind(chart, "line")[0]["data"]] == [0.001, 10, 20]
    assert len(of_kind(chart, "point")) == 1, "no cross"


def test_a_sweep_breaks_its_line_and_puts_a_cross_where_most_runs_have_no_number():
    data = rows({"without": [[1, None, 3], [1, None, 3], [1, 2, 3]]}, x="learning_rate")
    chart = sweep(data, y="y")
    assert [point["y"] for point in of_kind(chart, "line")[0]["data"]] == [1, None, 3]
    cross = of_kind(chart, "point")[-1]
    assert [point["x"] for point in cross["data"]] == [10]
    assert cross["encoding"]["y"] == {"value": 272}, "at the foot, not at a value"
    assert "more than half of the runs diverged" in chart.to_dict()["title"]["subtitle"]


def test_a_sweep_has_a_log_axis_unless_told_otherwise():
    data = rows({"without": [[1, 2]]}, x="learning_rate")

    def kind(chart):
        return of_kind(chart, "line")[0]["encoding"]["x"]["scale"].get("type")

    assert kind(sweep(data, y="y")) == "log"
    assert kind(sweep(data, y="y", log_x=False)) is None


@pytest.mark.parametrize(
    ("settings", "ticks"),
    [
        ((0.01, 0.0316, 31.6), [0.01, 0.1, 1, 10]),
        ((0.1, 3.16), [0.1, 0.2, 0.5, 1, 2]),
        ((0.316, 20), [0.5, 1, 2, 5, 10, 20]),
        ((2, 8), [2, 5]),
        ((0.316, 0.4), None),
        ((1e-12, 1.0), [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1]),
    ],
)
def test_a_log_axis_is_marked_at_decades_or_within_them(settings, ticks):
    across = [{"arm": "a", "learning_rate": rate, "y": 1} for rate in settings]
    axis = of_kind(sweep(across, y="y"), "line")[0]["encoding"]["x"]["axis"]
    assert axis.get("values") == ticks
    upward = [{"arm": "a", "step": i, "y": rate} for i, rate in enumerate(settings)]
    axis = of_kind(curves(upward, "step", "y", log_y=True), "line")[0]["encoding"]["y"]["axis"]
    assert axis.get("values") == ticks


def test_an_axis_of_whole_numbers_has_no_tick_between_them():
    def axis(values):
        data = [{"arm": "a", "layer": layer, "angle": 0.5} for layer in values]
        chart = sweep(data, "layer", "angle", log_x=False)
        return of_kind(chart, "line")[0]["encoding"]["x"]["axis"]

    assert axis([2, 3, 4])["tickMinStep"] == 1
    assert "tickMinStep" not in axis([0.1, 0.5, 1])


def test_a_cross_says_what_became_of_the_runs():
    data = [{"arm": "a", "learning_rate": 0.1, "y": None}]
    said = sweep(data, y="y", lost="did not train").to_dict()["title"]["subtitle"]
    assert said == "× more than half of the runs did not train"


def test_a_log_axis_has_no_place_for_zero():
    data = [{"arm": "a", "step": step, "y": 1} for step in (0, 1)]
    assert len(of_kind(curves(data, "step", "y", log_x=True), "line")[0]["data"]) == 1
    assert len(of_kind(curves(data, "step", "y"), "line")[0]["data"]) == 2


def test_intervals_draw_open_ends_to_the_edge_and_say_where_there_is_no_value():
    data = [
        {"label": "closed", "value": 2, "low": 1, "high": 3},
        {"label": "open", "value": 2, "low": 1, "high": None},
        {"label": "none", "value": nan, "low": None, "high": None},
    ]
    chart = intervals(data, reference=1)
    ends = [(bar["encoding"].get("x2"), len(bar["data"])) for bar in of_kind(chart, "rule")[1:]]
    assert all(bar["encoding"]["x"]["field"] == "value" for bar in of_kind(chart, "rule")[1:])
    assert ends == [({"field": "low"}, 2), ({"field": "high"}, 1), ({"value": "width"}, 1)]
    assert [point["label"] for point in of_kind(chart, "text")[-1]["data"]] == ["none"]
    about = chart.to_dict()["description"]
    assert about == "value. closed: 2, 1 to 3. open: 2, 1 or more. none: no value."


def test_a_bound_without_a_value_is_a_bar_without_a_dot():
    data = [
        {"label": "closed", "value": 2, "low": 1, "high": 3},
        {"label": "at most", "value": None, "low": None, "high": 0.5},
        {"label": "at least", "value": None, "low": 4, "high": None},
    ]
    chart = intervals(data, reference=1)
    assert chart.to_dict()["description"].endswith("at most: 0.5 or less. at least: 4 or more.")
    (dot,) = of_kind(chart, "point")
    assert [point["label"] for point in dot["data"]] == ["closed"]
    bars = {
        bar["encoding"]["x"]["field"]: (bar["encoding"]["x2"], bar["data"][0]["label"])
        for bar in of_kind(chart, "rule")[1:]
    }
    assert bars["high"] == ({"value": 0}, "at most")
    assert bars["low"] == ({"value": "width"}, "at least")
    assert len(of_kind(chart, "text")) == 1, "nothing says that there is no value"


def test_rows_of_intervals_stay_in_their_order_and_the_rule_off_their_names():
    ends = ((1, None), (None, 3), (None, None), (1, 3))
    data = [
        {"label": n, "value": 2, "low": a, "high": b}
        for n, (a, b) in zip("dbca", ends, strict=True)
    ]
    drawn = layers(intervals(data, reference=1))
    assert {str(layer["encoding"]["y"]["scale"]["domain"]) for layer in drawn} == {str([*"dbca"])}
    rule = drawn[0]["encoding"]
    assert (rule["y"]["bandPosition"], rule["y2"]["bandPosition"]) == (0.4, 1)
    middle, dy = 0.5, of_kind(intervals(data), "text")[0]["mark"]["dy"]
    assert middle * ROW + dy + 7 <= 0.4 * ROW, "the name ends above where the rule begins"


def test_an_accuracy_is_drawn_from_zero_on():
    data = [{"arm": "a", "step": 1, "test_accuracy": 0.9, "loss": 0.9}]
    for y, zero in (("test_accuracy", True), ("loss", False)):
        line = of_kind(curves(data, "step", y), "line")[0]
        assert line["encoding"]["y"]["scale"]["zero"] is zero


def test_an_arm_has_the_same_color_whatever_it_is_drawn_with():
    def color(arms):
        scale = of_kind(curves(rows({a: [[1, 2]] for a in arms}), "step", "y"), "line")[0]
        scale = scale["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    both, one = color(("without", "with batch norm", "other")), color(("without",))
    assert both["without"] == one["without"] == KNOWN["without"]
    assert list(both) == ["with batch norm", "without", "other"], "always in this order"
    assert len(set(both.values())) == 3


def test_arms_differ_by_dash_or_shape_too():
    data = rows({arm: [[1, 2]] for arm in "abcde"}, x="learning_rate")
    dashes = of_kind(curves(data, "learning_rate", "y"), "line")[0]["encoding"]["strokeDash"]
    shapes = of_kind(sweep(data, y="y"), "point")[0]["encoding"]["shape"]
    assert dashes["scale"]["range"] == [list(dash) for dash in DASHES]
    assert shapes["scale"]["range"] == list(SHAPES)


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#14171c"])
@pytest.mark.parametrize("color", sorted({*KNOWN.values(), *OTHERS}))
def test_colors_stand_out_on_light_and_on_dark(color, page):
    assert contrast(color, page) >= 3
    assert contrast("#ffff00", "#ffffff") < 3, "yellow on white would not pass"


@pytest.mark.parametrize(
    "chart",
    [
        curves(rows({arm: [[1, 2]] for arm in ARMS}), "step", "y", title="A title"),
        sweep(rows({arm: [[1, 2]] for arm in ARMS}, "learning_rate"), y="y", title="A title"),
        intervals([{"label": "a", "value": 2, "low": 1, "high": 3}], title="A title"),
    ],
    ids=["curves", "sweep", "intervals"],
)
def test_every_chart_fills_its_place_is_described_and_has_tooltips(chart):
    spec = chart.to_dict()
    assert spec["width"] == "container"
    assert spec["title"] == "A title"
    assert spec["description"].startswith("A title")
    assert any("tooltip" in layer.get("encoding", {}) for layer in spec["layer"])
    json.dumps(spec, allow_nan=False)


@pytest.mark.parametrize("draw", [lambda r: curves(r, "x", "y"), sweep, intervals])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(ValueError, match=r"^there are no rows to draw: expected at least one$"):
        draw([])


def test_a_row_without_a_field_is_named():
    with pytest.raises(ValueError, match=r"^a row has no field 'arm' to draw; it has \['x', 'y'\]"):
        curves([{"x": 1, "y": 2}], "x", "y")


def test_a_keyword_that_no_chart_has_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'log_z'"):
        curves([{"arm": "a", "x": 1, "y": 2}], "x", "y", log_z=True)


def test_pictures_and_tables_show_what_the_chart_shows():
    spec = json.loads((Path(__file__).parent / "run_folder/charts/made_up-curves.json").read_text())
    drawn = pictures(spec)
    assert drawn["png"].startswith(b"\x89PNG")
    svg = drawn["svg"].decode()
    assert "Made-up learning curves" in svg
    assert "var(--" not in svg, "no color of the page's"
    rows = rows_of(spec)
    assert rows == max(spec["datasets"].values(), key=len)
    lines = table(rows).decode().splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[0].split(",") == list(rows[0])


def test_a_chart_with_a_slider_has_a_picture_of_where_it_starts():
    spec = json.loads((Path(__file__).parent / "run_folder/charts/made_up-slider.json").read_text())
    assert pictures(spec)["svg"].decode().count('aria-roledescription="bar"') == 9


def test_an_unfit_chart_has_no_picture():
    with pytest.raises(ValueError, match="Vega-Lite"):
        pictures({"mark": 7})


def test_long_names_of_intervals_are_lines_over_their_bars():
    names = ["accuracy lost, less that without batch norm, dropout after each batch norm, rate 0.5"]
    names.append("short")
    chart = intervals([{"label": name, "value": 2, "low": 1, "high": 3} for name in names])
    spec = chart.to_dict()
    assert spec["height"] == 2 * (ROW + LINE)
    short, long = (layer["mark"] for layer in of_kind(chart, "text"))
    # The bar is as far from the foot of its row as in one of a single line.
    bar = spec["layer"][0]["encoding"]["y"]["bandPosition"] * (ROW + LINE)
    assert bar == pytest.approx(ROW / 2 + LINE)
    assert (bar + short["dy"], bar + long["dy"]) == (pytest.approx(9 + LINE), pytest.approx(9))
    assert rows_of(spec)[0]["label"] == names[0], "one line in the table"


@pytest.mark.parametrize("axis", ["x", "y"])
def test_long_titles_of_axes_are_lines_of_even_length(axis):
    title = (
        "the gradient's relative change along its own direction for the weights' relative change"
    )
    look = {f"{axis}_title": title}
    chart = curves([{"step": 0, "loss": 1.0, "arm": "without"}], "step", "loss", **look)
    told = layers(chart)[0]["encoding"][axis]["title"]
    assert " ".join(told) == title
    assert len(told) == 2
    assert max(map(len, told)) <= WIDEST
    assert abs(len(told[0]) - len(told[1])) < 12
    assert title in chart.to_dict()["description"], "whole for those who cannot see it"
