"""The study of L12 over initial scales, on rows made up for it and on a few real ones."""

from dataclasses import asdict, replace

import pytest

from batchnorm.studies import initialization, speed
from batchnorm.studies._trial import Setup, Trial
from studies.made_up import made

SCALES = (0.01, 0.1, 0.316, 1.0, 3.16, 10.0, 100.0)
LOST = 1e9  # more than any scale


def rows(normed, plain=(1, 1), *, lost=(LOST, LOST), seeds=5):
    """The working span without and with batch norm, one a seed or one for all."""
    return [
        row
        for seed in range(seeds)
        for batch_norm, span in (
            (False, plain),
            (True, normed[seed] if isinstance(normed, list) else normed),
        )
        for scale in SCALES
        for row in made(
            Trial(batch_norm=batch_norm, init_scale=scale, seed=seed, steps=100, every=100),
            0.9 if span[0] <= scale <= span[1] else 0.5,
            diverged=scale >= lost[batch_norm],
        )
    ]


def by_metric(rows):
    return {v.metric.split(",")[0]: v for v in initialization.measure(rows)}


@pytest.mark.parametrize(
    ("normed", "plain", "word"),
    [
        ((0.1, 10), (1, 1), "supported"),
        ((0.316, 3.16), (1, 1), "inconclusive"),
        ((1, 1), (0.1, 10), "contradicted"),
        ((1, 1), (0.316, 3.16), "not supported"),
        ([(0.1, 10), (1, 1), (0.1, 10), (1, 1), (0.1, 10)], (1, 1), "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(normed, plain, word):
    verdict = initialization.measure(rows(normed, plain))[0]
    assert (verdict.metric, verdict.unit) == ("range of initial scales, ReLU", "decades")
    assert verdict.verdict == word


def test_the_width_is_known_to_the_steps_of_the_grid():
    verdict = initialization.measure(rows((0.1, 10)))[0]
    assert (verdict.low, verdict.value, verdict.high) == pytest.approx((1, 2.5, 4))


def test_that_small_scales_win_in_a_short_run_stands_beside_the_verdict():
    found = by_metric(rows((0.1, 10)))
    said = "in a run of only 100 steps small factors win for that reason"
    assert said in found["range of initial scales"].caution
    assert said in found["blind pick of the scale"].caution


def test_divergence_over_scales():
    found = by_metric(rows((0.1, 1), lost=(3.16, 100.0)))["divergence over scales"]
    assert found.value == pytest.approx(10**1.25)
    assert found.verdict == "supported"
    found = by_metric(rows((0.1, 1)))["divergence over scales"]
    assert (found.value, found.low, found.high) == (None, None, None), "neither arm ever diverged"
    assert found.verdict == "inconclusive"


def test_a_scale_taken_blindly():
    found = by_metric(rows((0.01, 100)))["blind pick of the scale"]
    assert "A factor on the initial weights taken blindly between 0.01 and 100" in found.claim
    assert found.verdict == "supported"
    assert by_metric(rows((1, 1)))["blind pick of the scale"].value == pytest.approx(0)


def test_an_arm_that_learns_nowhere_has_no_range():
    dead = [r | ({} if r["batch_norm"] else {"test_accuracy": 0.1}) for r in rows((0.1, 10))]
    (verdict,) = initialization.measure(dead)
    assert (verdict.verdict, verdict.value) == ("inconclusive", None)
    initialization.charts(dead)["widths"].to_dict()


def test_at_the_scale_as_drawn_trials_are_those_of_the_study_of_speed():
    for scale in ("quick", "full"):
        at_one = {t.key("") for t in initialization.trials(Setup(scale=scale)) if t.init_scale == 1}
        assert at_one
        assert at_one <= {t.key("") for t in speed.trials(Setup(scale=scale))}


def test_both_arms_share_scales_and_seeds():
    trials = initialization.trials(Setup())
    arms = [
        [replace(t, batch_norm=False) for t in trials if t.batch_norm is arm]
        for arm in (False, True)
    ]
    assert arms[0] == arms[1]
    assert len(arms[0]) == 5 * 6
    assert len(initialization.trials(Setup(scale="full"))) == 2 * 2 * 8 * 9


def test_each_network_is_scaled_at_a_rate_at_which_it_learns_in_both_arms():
    rates = {(t.activation, t.learning_rate) for t in initialization.trials(Setup(scale="full"))}
    assert rates == {("sigmoid", 1.0), ("relu", 0.1)}
    steady = [row | {"learning_rate": 1.0} for row in rows((0.1, 10))]
    assert initialization.measure(steady)[0].note.startswith("At the learning rate 1 in both arms.")


def test_a_network_of_ones_own_is_scaled_too(tmp_path, monkeypatch):
    (tmp_path / "scaled_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))\n\n\n"
        "def linear():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    trials = initialization.trials(Setup(model="scaled_net:net", data="digits8x8"))
    assert {t.activation for t in trials} == {"own"}
    assert {t.init_scale for t in trials} == {1.0, *initialization.SCALES["quick"]}
    reason = initialization.trials(Setup(model="scaled_net:linear", data="digits8x8"))
    assert "batch norm finds no place in scaled_net:linear" in reason


def test_rows_from_real_trials_fit():
    real = []
    for trial in initialization.trials(Setup(data="digits8x8")):
        if trial.seed < 2:
            trial = replace(trial, steps=40, every=20 if trial.init_scale == 1 else 40)
            real += [{**asdict(trial), "key": trial.key(""), **row} for row in trial.run()]
    assert len(initialization.measure(real)) in (1, 3)
    charts = initialization.charts(real)
    assert set(charts) == {"scales-relu", "widths"}
    for chart in charts.values():
        chart.to_dict()
