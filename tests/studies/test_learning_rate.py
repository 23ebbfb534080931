"""The study of L12 on rows made up for it: each verdict can come out, and open ends stay open."""

from dataclasses import asdict, replace

import pytest

from batchnorm.studies import learning_rate, speed
from batchnorm.studies._range import mean_accuracy, working
from batchnorm.studies._sweep import Run, decades
from batchnorm.studies._trial import Setup, Trial

GRID = decades(-3, 2, 0.5)
WIDE = (-2, 1)


def made(trial, accuracy, *, diverged=False, peak=1.0, start=0.1):
    base = {**asdict(trial), "key": trial.key("")}
    losses = {"loss": 1.0, "peak_loss": peak, "validation_loss": 1.0, "test_loss": 1.0}
    for step, value in ((0, start), (trial.steps, accuracy)):
        yield {**base, **losses, "step": step, "validation_accuracy": value, "test_accuracy": value}
    if diverged:
        nothing = dict.fromkeys([*losses, "validation_accuracy", "test_accuracy"])
        yield {**base, **nothing, "step": trial.steps, "diverged": True}


def arm(batch_norm, span, seed, top=0.9, diverges=99.0):
    """Accuracy ``top`` from 10^span[0] to 10^span[1], 0.5 beside it; diverging further up."""
    for power, rate in zip([-3 + i / 2 for i in range(len(GRID))], GRID, strict=True):
        trial = Trial(batch_norm=batch_norm, learning_rate=rate, seed=seed, steps=100, every=100)
        value = top if span[0] <= power <= span[1] else 0.5
        yield from made(trial, value, diverged=power >= diverges)


def rows(normed, plain=(-2, 0), diverges=(99.0, 99.0)):
    """``normed``: the working span with batch norm, one a seed or one for all."""
    return [
        row
        for seed in range(5)
        for batch_norm, span in (
            (False, plain),
            (True, normed[seed] if isinstance(normed, list) else normed),
        )
        for row in arm(batch_norm, span, seed, diverges=diverges[batch_norm])
    ]


def by_metric(rows):
    return {v.metric.split(",")[0]: v for v in learning_rate.measure(rows)}


@pytest.mark.parametrize(
    ("normed", "value", "word"),
    [
        ((-2, 1), 1.0, "supported"),
        ((-2, 0.5), 0.5, "supported"),
        ((-2, 0), 0.0, "not supported"),
        ((-2, -0.5), -0.5, "contradicted"),
        ([(-2, 1), (-2, 0), (-2, 1), (-2, 0), (-2, 1)], 1.0, "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(normed, value, word):
    verdict = learning_rate.measure(rows(normed))[0]
    assert verdict.metric == "range of learning rates, relu"
    assert verdict.value == pytest.approx(value)
    assert verdict.verdict == word


def test_the_ends_are_told_apart():
    found = by_metric(rows((-2.5, 1), plain=(-2, 0)))
    assert found["largest rate"].value == pytest.approx(10)
    assert found["smallest rate"].value == pytest.approx(10**0.5)
    found = by_metric(rows((-1.5, 1), plain=(-2, 0)))
    assert found["smallest rate"].verdict == "contradicted"
    assert found["range of learning rates"].value == pytest.approx(0.5)


def test_a_range_that_leaves_the_grid_has_an_open_end():
    verdict = learning_rate.measure(rows((-2, 2)))[0]
    assert (verdict.value, verdict.low, verdict.high) == (pytest.approx(2), pytest.approx(2), None)
    assert verdict.verdict == "supported"
    assert "An end that is not given lies beyond the grid." in verdict.note
    verdict = learning_rate.measure(rows((-2, 1), plain=(-3, 0)))[0]
    assert verdict.low is None, "the plain network may work below the grid"
    assert verdict.verdict == "not supported", "3 decades at least against 3"
    both = learning_rate.measure(rows((-2, 2), plain=(-2, 2)))[0]
    assert (both.value, both.low, both.high) == (None, None, None)
    assert both.verdict == "inconclusive"


def test_divergence_is_where_the_loss_is_lost_or_explodes():
    found = by_metric(rows((-2, 0), diverges=(0.5, 1.5)))["divergence"]
    assert found.value == pytest.approx(10)
    assert found.verdict == "supported"
    never = by_metric(rows((-2, 0), diverges=(0.5, 99)))["divergence"]
    assert never.value == pytest.approx(10**1.5), "at least to the end of the grid"
    assert never.high is None
    exploding = [
        row | {"peak_loss": 1001.0 if row["learning_rate"] > 1 and not row["batch_norm"] else 1.0}
        for row in rows((-2, 0), diverges=(99, 1.5))
    ]
    assert by_metric(exploding)["divergence"].value == pytest.approx(10)


def test_a_blind_pick_averages_over_the_decades():
    found = by_metric(rows((-2, 1)))["blind pick"]
    # 40 points higher over one decade of five.
    assert found.value == pytest.approx(8, abs=0.1)
    assert (found.unit, found.verdict) == ("points", "supported")
    assert by_metric(rows((-2, 0)))["blind pick"].verdict == "not supported"


def test_what_a_lost_run_had_learned_is_lost_to_a_blind_pick():
    grid = sweep(run(0.9), run(0.9, finished=False), run(0.9))
    assert mean_accuracy(grid, 0) == pytest.approx((0.9 + 0.1) / 2)


def test_an_arm_that_learns_nowhere_has_no_range():
    # All rates of a dead network are within 2 points of its best one.
    dead = [row | ({"test_accuracy": 0.1} if not row["batch_norm"] else {}) for row in rows(WIDE)]
    (verdict,) = learning_rate.measure(dead)
    assert (verdict.verdict, verdict.value) == ("inconclusive", None)
    assert "without batch norm gains 0 points" in verdict.note
    learning_rate.charts(dead)["widths"].to_dict()


def scaled(spans):
    for seed in range(5):
        for batch_norm, (low, high) in zip((False, True), spans, strict=True):
            for factor in (0.01, 0.1, 10.0, 100.0):
                trial = Trial(
                    batch_norm=batch_norm, init_scale=factor, seed=seed, steps=100, every=100
                )
                yield from made(trial, 0.9 if low <= factor <= high else 0.5)


def test_initial_scales_share_the_trials_at_scale_one():
    both = rows((-2, 1)) + list(scaled([(1, 1), (0.1, 10)]))
    found = by_metric(both)
    assert found["range of initial scales"].value == pytest.approx(2)
    assert found["range of initial scales"].verdict == "supported"
    assert found["range of learning rates"].value == pytest.approx(1), "scales stay out of it"


def run(validation, test=None, finished=True):
    test = validation if test is None else test
    return Run((0, 9), (0.1, validation), (0.1, test), 9, finished, not finished)


def sweep(*runs):
    return {10.0**i: {0: r} for i, r in enumerate(runs)}


def test_the_longest_unbroken_stretch_counts():
    gap = sweep(run(0.9), run(0.5), run(0.89), run(0.885), run(0.3))
    found = working(gap, 0, 0.02)
    assert (found.low, found.high, found.width) == (2, 3, 1)
    assert not found.at_low
    assert not found.at_high


def test_of_equal_stretches_the_one_with_the_best_counts():
    found = working(sweep(run(0.89), run(0.5), run(0.9)), 0, 0.02)
    assert (found.low, found.high, found.at_high) == (2, 2, True)


def test_the_best_is_chosen_on_validation_and_judged_on_test():
    found = working(sweep(run(0.95, 0.80), run(0.90, 0.93), run(0.5)), 0, 0.02)
    assert (found.best, found.accuracy) == (0, 0.80)
    assert (found.low, found.high) == (0, 1)


def test_a_run_that_was_lost_does_not_work_however_good_it_had_been():
    found = working(sweep(run(0.9), run(0.95, finished=False), run(0.9)), 0, 0.02)
    assert found.best != 1
    assert found.width == 0


def test_equal_trials_are_shared_with_the_study_of_speed():
    for scale in ("quick", "full"):
        mine = {t.key("") for t in learning_rate.trials(Setup(scale=scale)) if t.init_scale == 1}
        theirs = {t.key("") for t in speed.trials(Setup(scale=scale))}
        assert mine <= theirs


def test_the_rate_at_which_scales_are_compared_is_on_the_grid():
    for scale in ("quick", "full"):
        trials = learning_rate.trials(Setup(scale=scale))
        at_one = [t for t in trials if t.init_scale == 1 and t.activation == "relu"]
        assert learning_rate.SCALED_AT in {t.learning_rate for t in at_one}


def test_rows_from_real_trials_fit():
    real = []
    for trial in learning_rate.trials(Setup(data="digits8x8")):
        if trial.seed < 2 and trial.learning_rate in (0.1, 1.0, 31.6):
            trial = replace(trial, steps=40, every=20)
            real += [{**asdict(trial), "key": trial.key(""), **row} for row in trial.run()]
    assert any(row.get("diverged") for row in real)
    found = by_metric(real)
    assert found["divergence"].verdict in ("supported", "inconclusive", "not supported")
    charts = learning_rate.charts(real)
    assert set(charts) == {"rates-relu", "initial-scales-relu", "widths"}
    for chart in charts.values():
        chart.to_dict()
