"""The study of L4 on rows made up for it, and what batch norm sees for real."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import placement, speed
from batchnorm.studies._trial import Setup, Trial
from studies.made_up import made

RATES = (0.1, 1.0, 10.0)


def rows(before, after=0.8, *, skewness=(0.5, 1.0), seeds=5):
    """Accuracies at the best rate, one a seed or one; skewness of what is seen, before and after."""
    out = []
    for seed in range(seeds):
        tops = [before[seed] if isinstance(before, list) else before, after]
        for rate in RATES:
            base = Trial(batch_norm=True, learning_rate=rate, seed=seed, steps=100, every=100)
            for place, top, skew in zip(("before", "after"), tops, skewness, strict=True):
                trial = replace(base, procedure="placement", options={"place": place})
                mine = list(made(trial, top if rate == 1.0 else 0.5))
                seen = {"skewness": skew, "kurtosis": 1.0}
                out += [row | {"place": place} for row in mine[:-1]]
                out.append(mine[-1] | {"place": place} | seen)
    return out


def by_metric(rows):
    return {v.metric: v for v in placement.measure(rows)}


@pytest.mark.parametrize(
    ("before", "value", "word"),
    [
        (0.85, 5, "supported"),
        (0.805, 0.5, "not supported"),
        (0.75, -5, "contradicted"),
        ([0.85, 0.75, 0.85, 0.75, 0.85], 5, "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(before, value, word):
    verdict = placement.measure(rows(before))[0]
    assert verdict.metric == "accuracy, before less after, ReLU"
    assert verdict.value == pytest.approx(value)
    assert verdict.verdict == word
    assert "after the activation 80.0 % at 1" in verdict.note


@pytest.mark.parametrize(
    ("skewness", "word"),
    [
        ((0.5, 1.0), "supported"),
        ((1.0, 1.2), "not supported"),
        ((1.0, 0.5), "contradicted"),
        ((None, None), "inconclusive"),
        ((None, 1.0), "inconclusive"),
    ],
)
def test_what_batch_norm_sees_is_compared_at_one_rate(skewness, word):
    verdict = by_metric(rows(0.8, skewness=skewness))[
        "skewness of the input, after to before, ReLU"
    ]
    assert verdict.verdict == word
    if word != "inconclusive":
        assert verdict.value == pytest.approx(skewness[1] / skewness[0])
        assert f"rate 1: before {skewness[0]:.2f}, after {skewness[1]:.2f}." in verdict.note


def test_a_place_that_diverges_has_lost():
    lost = []
    for row in rows(0.8):
        if row["place"] == "before" and row["step"]:
            row = row | dict.fromkeys([k for k in row if "loss" in k or "accuracy" in k])
            row |= {"diverged": True}
        lost.append(row)
    assert placement.measure(lost)[0].verdict == "contradicted"


def test_what_other_studies_ran_counts_and_what_was_run_to_look_into_does_not():
    ours = rows(0.6)
    theirs = []
    for row in rows(0.85):
        if row["place"] == "before":
            ours_alone = ("place", *placement.SHAPES)
            row = {k: v for k, v in row.items() if k not in ours_alone} | {"procedure": "train"}
            theirs.append(row)
    verdicts = placement.measure([*ours, *theirs])
    assert verdicts[0].value == pytest.approx(5), "0.85 and not 0.6"
    assert verdicts[2].value == pytest.approx(2), "and what is seen is in ours"


def test_trials_share_the_usual_place_with_the_study_of_speed():
    for scale in ("quick", "full"):
        trials = placement.trials(Setup(scale=scale))
        shared = [t for t in trials if t.procedure == "train"]
        assert {t.key("") for t in shared} <= {t.key("") for t in speed.trials(Setup(scale=scale))}
        after = [t for t in trials if dict(t.options).get("place") == "after"]
        assert [replace(t, procedure="train", options=()) for t in after] == shared
        looked = [t for t in trials if dict(t.options).get("place") == "before"]
        rates = {(t.activation, t.learning_rate) for t in looked}
        assert len(rates) == len({t.activation for t in trials}), "one rate each"
        assert rates <= {(t.activation, t.learning_rate) for t in after}


def test_both_places_are_ours_in_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "placed_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))\n\n\n"
        "def flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    trials = placement.trials(Setup(model="placed_net:net", data="digits8x8"))
    before, after = ([t for t in trials if t.option("place") == p] for p in ("before", "after"))
    assert [replace(t, options={"place": "after"}) for t in before] == after
    reason = placement.trials(Setup(model="placed_net:flat", data="digits8x8"))
    assert "batch norm finds no place in placed_net:flat" in reason


def test_the_shape_of_what_batch_norm_sees():
    data = load("digits8x8")
    norm = BatchNorm1d(64)
    model = nn.Sequential(nn.Flatten(), norm, nn.Linear(64, 10))
    found = placement._moments(model, data)
    x = data.train.x[:512].flatten(1).double()
    x = x[:, x.var(0) > 0]
    unit = (x - x.mean(0)) / x.std(0, correction=0)
    assert found["skewness"] == pytest.approx(unit.pow(3).mean(0).abs().quantile(0.5).item())
    assert found["kurtosis"] == pytest.approx((unit.pow(4).mean(0) - 3).abs().quantile(0.5).item())
    dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), BatchNorm1d(4))
    torch.nn.init.zeros_(dead[1].weight)
    assert placement._moments(dead, data) == {"skewness": None, "kurtosis": None}


def test_rows_from_real_trials_fit():
    real = []
    for trial in placement.trials(Setup(data="digits8x8")):
        if trial.seed < 2 and trial.learning_rate in (0.316, 1.0, 3.16):
            trial = replace(trial, steps=20, every=10)
            rows = trial.run()
            if trial.seed == 0 and trial.learning_rate == 1:
                assert rows == trial.run(), "to the bit"
            given = dict(trial.options)
            real += [{**asdict(trial), **given, "key": trial.key(""), **row} for row in rows]
    assert [v.unit for v in placement.measure(real)] == ["points", "×", "×", "×"]
    charts = placement.charts(real)
    assert set(charts) == {"rates-relu", "differences"}
    for chart in charts.values():
        chart.to_dict()
