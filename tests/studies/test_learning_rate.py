"""The study of L12 on rows made up for it: each verdict can come out, and open ends stay open."""

import math
from dataclasses import asdict, replace

import pytest

from batchnorm.studies import learning_rate, speed
from batchnorm.studies._range import Bracket, mean_accuracy, power, working
from batchnorm.studies._sweep import Run, decades, too_few
from batchnorm.studies._trial import Setup, Trial
from studies.made_up import made

GRID = decades(-3, 2, 0.5)
WIDE = (-2, 1)


def arm(batch_norm, span, seed, top=0.9, diverges=99.0):
    """Accuracy ``top`` from 10^span[0] to 10^span[1], 0.5 beside it; diverging further up."""
    for exponent, rate in zip([-3 + i / 2 for i in range(len(GRID))], GRID, strict=True):
        trial = Trial(batch_norm=batch_norm, learning_rate=rate, seed=seed, steps=100, every=100)
        value = top if span[0] <= exponent <= span[1] else 0.5
        yield from made(trial, value, diverged=exponent >= diverges)


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
        ((-2, 1.5), 1.5, "supported"),
        ((-2, 1), 1.0, "inconclusive"),
        ((-1.5, -1), -1.5, "contradicted"),
        ((-2, -1), -1, "not supported"),
        ([(-2, 1.5), (-2, 0), (-2, 1.5), (-2, 0), (-2, 1.5)], 1.5, "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(normed, value, word):
    verdict = learning_rate.measure(rows(normed))[0]
    assert verdict.metric == "range of learning rates, ReLU"
    assert verdict.value == pytest.approx(value)
    assert (verdict.low, verdict.high) != (verdict.value, verdict.value)
    assert verdict.verdict == word


def test_where_a_range_ends_between_two_rates_is_not_known():
    # On this grid, of half decades, each arm's end is known to half a decade.
    found = by_metric(rows((-2, 0.5), plain=(-2, 0)))["largest rate"]
    assert [math.log10(v) for v in (found.low, found.value, found.high)] == pytest.approx(
        [0, 0.5, 1]
    )
    assert found.verdict == "inconclusive", "one step of the grid is not half a decade at least"
    assert by_metric(rows((-2, 1), plain=(-2, 0)))["largest rate"].verdict == "supported"
    wider = by_metric(rows((-2, 0.5), plain=(-2, 0)))["range of learning rates"]
    assert (wider.low, wider.value, wider.high) == pytest.approx((-0.5, 0.5, 1.5))
    assert "Without batch norm: 0.01 to 1 work, 0.00316 and 3.16 no longer; best" in wider.note


def test_a_verdict_says_what_its_interval_is():
    verdict = learning_rate.measure(rows(WIDE))[0]
    assert verdict.interval.startswith("the range over 5 paired seeds, which holds the true median")


def test_the_ends_are_told_apart():
    found = by_metric(rows((-2.5, 1), plain=(-2, 0)))
    assert found["largest rate"].value == pytest.approx(10)
    assert found["smallest rate"].value == pytest.approx(10**0.5)
    found = by_metric(rows((-1, 1), plain=(-2, 0)))
    assert found["smallest rate"].verdict == "contradicted"
    assert found["range of learning rates"].value == pytest.approx(0)


def test_a_range_that_leaves_the_grid_has_an_open_end():
    verdict = learning_rate.measure(rows((-2, 2)))[0]
    assert (verdict.value, verdict.low, verdict.high) == (None, pytest.approx(1), None)
    assert verdict.verdict == "supported"
    assert "An end that is not given lies beyond the grid." in verdict.note
    verdict = learning_rate.measure(rows((-2, 0), plain=(-3, 0)))[0]
    assert verdict.low is None, "the plain network may work below the grid"
    assert verdict.verdict == "not supported", "3 decades at least against 3 at most"
    both = learning_rate.measure(rows((-2, 2), plain=(-2, 2)))[0]
    assert (both.value, both.low, both.high) == (None, None, None)
    assert both.verdict == "inconclusive"


def test_divergence_is_where_the_loss_is_lost_or_explodes():
    found = by_metric(rows((-2, 0), diverges=(0.5, 1.5)))["divergence"]
    assert found.value == pytest.approx(10)
    assert (found.low, found.high) == pytest.approx((10**0.5, 10**1.5)), "within steps of the grid"
    assert found.verdict == "supported"
    never = by_metric(rows((-2, 0), diverges=(0.5, 99)))["divergence"]
    assert never.low == pytest.approx(10**1.5), "at least to the end of the grid"
    assert (never.value, never.high) == (None, None)
    exploding = [
        row | {"peak_loss": 1001.0 if row["learning_rate"] > 1 and not row["batch_norm"] else 1.0}
        for row in rows((-2, 0), diverges=(99, 1.5))
    ]
    assert by_metric(exploding)["divergence"].value == pytest.approx(10)


def test_a_blind_pick_averages_over_the_decades():
    found = by_metric(rows((-2, 2)))["blind pick"]
    # 40 points higher over a decade and a half of five, and half of that from 1 to 3.16.
    assert found.value == pytest.approx(14)
    assert (found.unit, found.verdict) == ("points", "supported")
    # Where between two rates the accuracy falls is not known: at two ends of one arm, at one of the other.
    assert (found.low, found.high) == pytest.approx((8, 20))
    assert by_metric(rows((-2, -1)))["blind pick"].verdict == "not supported"


def test_a_blind_pick_names_the_limits_that_it_depends_on():
    found = by_metric(rows((-2, 2)))["blind pick"]
    assert "blindly between 0.001 and 100" in found.claim
    assert "between 0.001 and 100, the ends of this study's grid: other limits" in found.note


def test_what_a_lost_run_had_learned_is_lost_to_a_blind_pick():
    grid = sweep(run(0.9), run(0.9, finished=False), run(0.9))
    assert mean_accuracy(grid, 0) == Bracket(pytest.approx(0.1), pytest.approx(0.9))


def dead(rows, seeds):
    """The network without batch norm learns nothing with so many of the seeds."""
    lost = {"test_accuracy": 0.1, "validation_accuracy": 0.1}
    return [r | (lost if not r["batch_norm"] and r["seed"] < seeds else {}) for r in rows]


def test_an_arm_that_learns_nowhere_has_no_range():
    # All rates of a dead network are within 2 points of its best one.
    everywhere = dead(rows((-2, 1.5)), 3)
    (verdict,) = learning_rate.measure(everywhere)
    assert (verdict.verdict, verdict.value) == ("inconclusive", None)
    assert verdict.caution == (
        "In 3 of 5 seeds the network without batch norm gains less than 10 points of accuracy at "
        "its best setting."
    )
    learning_rate.charts(everywhere)["widths"].to_dict()
    counted = [r | ({"test_examples": 4} if r["step"] == 0 else {}) for r in everywhere]
    assert "only 4 test examples" in learning_rate.measure(counted)[0].caution


def test_a_seed_in_which_an_arm_learns_nowhere_is_left_out_and_said():
    found = by_metric(dead(rows((-2, 1.5)), 2))
    verdict = found["range of learning rates"]
    assert (verdict.low, verdict.value, verdict.high) == pytest.approx((0.5, 1.5, 2.5))
    assert verdict.verdict == "supported", "the dead ones worked at no rate, not at all of them"
    assert "In 2 of 5 seeds the network without batch norm gains less" in verdict.caution
    assert verdict.caution.endswith("Such seeds are left out.")
    assert "75 % confidence" in verdict.interval, "three seeds are left"
    assert found["largest rate"].caution == found["smallest rate"].caution == verdict.caution


def test_few_examples_to_judge_on_are_said():
    def judged_on(examples):
        counts = {"validation_examples": examples, "test_examples": 1000}
        return [r | (counts if r["step"] == 0 else {}) for r in rows((-2, 1.5))]

    few = by_metric(judged_on(40))
    assert few["range of learning rates"].caution == (
        "Judged on only 40 validation examples, where the standard error of an accuracy of 90 % is "
        "4.7 points, more than the 2 that count as a difference."
    )
    assert few["blind pick"].caution == few["range of learning rates"].caution
    assert {v.caution for v in learning_rate.measure(judged_on(1000))} == {""}


def test_one_example_of_few_counts_for_more_than_a_standard_error():
    four = replace(run(1.0), examples=(4, 4))
    assert "4 validation and 4 test examples, where one is 25 points" in too_few(four, 1.0)
    assert too_few(replace(four, examples=(225, 225)), 0.9) == ""
    assert "224 test" in too_few(replace(four, examples=(225, 224)), 0.9)
    assert too_few(run(1.0), 1.0) == "", "rows that do not say how many"


def test_a_best_rate_at_the_end_of_the_grid_is_said():
    rising = [
        r | {"validation_accuracy": 0.95}
        if r["learning_rate"] == 100 and r["batch_norm"] and r["step"]
        else r
        for r in rows((-2, 2))
    ]
    verdict = learning_rate.measure(rising)[0]
    assert verdict.caution == (
        "In 5 of 5 seeds the best setting with batch norm is the last one tried: beyond it there "
        "may be a better one."
    )
    assert learning_rate.measure(rows((-2, 2)))[0].caution == ""


def run(validation, test=None, finished=True):
    test = validation if test is None else test
    return Run((0, 9), (0.1, validation), (0.1, test), 9, finished, not finished)


def sweep(*runs, at=range(99)):
    return {10.0**i: {0: r} for i, r in zip(at, runs, strict=False)}


def test_the_longest_unbroken_stretch_counts():
    gap = sweep(run(0.9), run(0.5), run(0.89), run(0.885), run(0.3))
    found = working(gap, 0, 0.02)
    assert (found.low, found.high) == (2, 3)
    assert (found.below, found.above) == (1, 4)
    assert (found.width.least, found.width.most) == (1, 3)


def test_the_longest_stretch_is_that_of_most_decades_and_not_of_most_points():
    fine = [run(0.9), run(0.9), run(0.5), run(0.9), run(0.9), run(0.9)]
    found = working(sweep(*fine, at=(-3, -1, 0, 0.25, 0.5, 0.75)), 0, 0.02)
    assert (found.low, found.high, found.below, found.above) == (-3, -1, -math.inf, 0)


def test_settings_with_three_digits_lie_where_the_grid_means_them():
    for low, step in ((-4, 0.5), (-0.375, 0.125), (-2.25, 0.25)):
        meant = [low + i * step for i in range(12)]
        assert [power(rate) for rate in decades(low, meant[-1], step)] == meant
    assert power(2.0) == math.log10(2)


def test_of_equal_stretches_the_one_with_the_best_counts():
    found = working(sweep(run(0.89), run(0.5), run(0.9)), 0, 0.02)
    assert (found.low, found.high, found.above) == (2, 2, math.inf)


def test_the_best_is_chosen_on_validation_and_judged_on_test():
    found = working(sweep(run(0.95, 0.80), run(0.90, 0.93), run(0.5)), 0, 0.02)
    assert (found.best, found.accuracy) == (0, 0.80)
    assert (found.low, found.high) == (0, 1)


def test_a_run_that_was_lost_does_not_work_however_good_it_had_been():
    found = working(sweep(run(0.9), run(0.95, finished=False), run(0.9)), 0, 0.02)
    assert found.best != 1
    assert found.width.least == 0


def test_equal_trials_are_shared_with_the_study_of_speed():
    for scale in ("quick", "full"):
        mine = {t.key("") for t in learning_rate.trials(Setup(scale=scale))}
        theirs = {t.key("") for t in speed.trials(Setup(scale=scale))}
        assert mine <= theirs


def test_rows_from_real_trials_fit():
    real = []
    for trial in learning_rate.trials(Setup(data="digits8x8")):
        if trial.seed < 2 and trial.learning_rate in (0.1, 1.0, 10.0):
            trial = replace(trial, steps=40, every=20)
            real += [{**asdict(trial), "key": trial.key(""), **row} for row in trial.run()]
    assert any(row.get("diverged") for row in real)
    found = by_metric(real)
    assert found["divergence"].verdict in ("supported", "inconclusive", "not supported")
    charts = learning_rate.charts(real)
    assert set(charts) == {"rates-relu", "widths"}
    for chart in charts.values():
        chart.to_dict()
