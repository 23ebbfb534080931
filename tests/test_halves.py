"""Distributions back to back, with a slider: what the specification holds."""

import numpy as np
import pytest

from batchnorm.charts import halves, rows_of, table


def rows(layers=("1", "2"), steps=(0, 10, 20)):
    return [
        {"arm": arm, "layer": layer, "step": step, "counts": [1, 2, 1], "ends": [-1.0, 2.0 + step]}
        for arm in ("without", "with batch norm")
        for layer in layers
        for step in steps
    ]


def test_a_slider_and_a_menu_of_the_browsers_own():
    spec = halves(rows(), title="Values").to_dict()
    slider, menu = spec["params"]
    assert slider["bind"] == {
        "input": "range", "min": 0, "max": 20, "step": 10, "name": "step of training "
    }  # fmt: skip
    assert slider["value"] == 20
    assert (menu["value"], menu["bind"]["options"]) == ("2", ["1", "2"])
    assert len(halves(rows(layers=("1",))).to_dict()["params"]) == 1


def test_those_who_do_not_see_it_are_told():
    text = halves(rows(layers=("1",)), title="Values").to_dict()["description"]
    assert "layer 1, without: values from -1 to 2 at step 0, -1 to 22 at step 20" in text


def test_every_layer_of_marks_has_its_place_and_its_filter():
    spec = halves(rows()).to_dict()
    assert len(spec["layer"]) == 3
    filters = [[t.get("filter") for t in one["transform"]] for one in spec["layer"]]
    assert all("datum.layer === layer" in one for one in filters)
    assert sum("datum.step === step" in one for one in filters) == 2
    assert sum("datum.step === 0" in one for one in filters) == 1
    (data,) = spec["datasets"].values()
    assert data[0]["value"] == [-1.5, -0.5, 0.5, 1.5, 2.5]
    assert data[0]["share"] == [0, 0.25, 0.5, 0.25, 0]


def test_the_numbers_of_a_distribution_are_those_of_its_values():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 100_000)
    counts, edges = np.histogram(values, 200)
    row = {"arm": "without", "layer": "1", "step": 0, "counts": counts.tolist()}
    (data,) = halves([row | {"ends": [edges[0], edges[-1]]}]).to_dict()["datasets"].values()
    told = [data[0][name] for name in ("mean", "standard deviation")]
    assert told == pytest.approx([values.mean(), values.std()], abs=0.01)
    told = [data[0][f"{percent} % lie below"] for percent in (15, 50, 85)]
    assert told == pytest.approx(np.percentile(values, (15, 50, 85)), abs=0.02)


def test_bins_finer_than_the_axis_shows_are_drawn_together():
    comb = {"arm": "without", "layer": "1", "step": 0, "counts": [1, 0] * 20, "ends": [-1.0, 1.0]}
    wide = comb | {"step": 10, "counts": [1] * 40, "ends": [-9.0, 11.0]}
    alone, beside = (
        next(iter(halves(rows).to_dict()["datasets"].values()))[0]
        for rows in ([comb], [comb, wide])
    )
    assert alone["share"][1:-1] == [0.05, 0] * 20
    assert len(beside["share"]) == 7
    assert beside["share"][1:-1] == pytest.approx([0.2] * 5)
    assert beside["value"] == pytest.approx([-1.2, -0.8, -0.4, 0.0, 0.4, 0.8, 1.2])
    told = [name for name in alone if name not in ("value", "share")]
    assert [beside[name] for name in told] == [alone[name] for name in told], "numbers are not"


def test_a_distribution_narrower_than_the_axis_shows_is_one_spike():
    narrow = {"arm": "without", "layer": "1", "step": 0, "counts": [1, 2, 1], "ends": [7.0, 7.003]}
    wide = narrow | {"step": 10, "counts": [1] * 40, "ends": [-9.0, 11.0]}
    (data,) = halves([narrow, wide]).to_dict()["datasets"].values()
    assert data[0]["share"] == [0, 1, 0]
    assert data[0]["value"] == pytest.approx([6.998, 7.002, 7.005], abs=0.001)


def test_bins_are_lines_of_the_table_and_not_lists_in_it():
    lines = table(rows_of(halves(rows()).to_dict())).decode().splitlines()
    assert lines[0].startswith("arm,layer,step,value,share,mean,standard deviation,")
    assert len(lines) == 1 + 2 * 2 * 3 * 5
    assert lines[2].startswith("without,1,0,-0.5,0.25,0.5,")


def test_it_draws_in_vega():
    import vl_convert

    svg = vl_convert.vegalite_to_svg(halves(rows()).properties(width=300).to_dict())
    assert svg.count("<path") > 4


def test_rows_that_lack_a_field():
    with pytest.raises(ValueError, match="a row has no field 'counts' to draw"):
        halves([{"arm": "without", "layer": "1", "step": 0}])
