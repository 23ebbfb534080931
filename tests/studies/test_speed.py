"""The study of L11 on rows made up for it: each verdict can come out, and the rules are kept."""

import math
from dataclasses import asdict, replace

import pytest

from batchnorm.studies import speed
from batchnorm.studies._sweep import SEEDS
from batchnorm.studies._trial import Setup, Trial

BUDGET, EVERY = 200, 10
RATES = (0.1, 1.0)


def rows_of(trial, reach, top=0.9, test_shift=0):
    """Accuracy rises from 0.1 in a straight line to ``top`` at the step ``reach`` and stays."""

    def accuracy(step):
        return 0.1 + (top - 0.1) * min(1.0, step / reach)

    for step in range(0, trial.steps + 1, trial.every):
        yield {
            **asdict(trial),
            "key": trial.key(""),
            "step": step,
            "loss": 1.0,
            "peak_loss": 1.0,
            "validation_loss": 1.0,
            "validation_accuracy": accuracy(step),
            "test_loss": 1.0,
            "test_accuracy": accuracy(step - test_shift),
        }


def rows(normed, *, plain=(100, 0.9), seeds=5, activation="sigmoid"):
    """``normed``: (reach, top) of the arm with batch norm, one a seed or one for all."""
    out = []
    for seed in range(seeds):
        mine = normed[seed] if isinstance(normed, list) else normed
        for batch_norm, (reach, top) in ((False, plain), (True, mine)):
            for rate in RATES:
                trial = Trial(
                    activation=activation,
                    batch_norm=batch_norm,
                    learning_rate=rate,
                    seed=seed,
                    steps=BUDGET,
                    every=EVERY,
                )
                # At the other rate both arms are worse.
                out += rows_of(trial, reach * (1 if rate == 1.0 else 2), top)
    return out


def by_metric(rows):
    return {verdict.metric: verdict for verdict in speed.measure(rows)}


def test_four_times_fewer_steps():
    verdict = speed.measure(rows((25, 0.9)))[0]
    assert verdict.metric == "steps, sigmoid, best rates"
    # 25 is seen at 30.
    assert verdict.value == pytest.approx(100 / 30)
    assert verdict.verdict == "supported"
    assert "Learning rates 1 and 1; median steps 100 and 30, read every 10." in verdict.note


@pytest.mark.parametrize(
    ("normed", "word"),
    [
        ((50, 0.9), "supported"),
        ((100, 0.9), "not supported"),
        ((150, 0.9), "contradicted"),
        ([(50, 0.9), (150, 0.9), (50, 0.9), (150, 0.9), (50, 0.9)], "inconclusive"),
        ((50, 0.8), "contradicted"),
    ],
)
def test_each_verdict_can_come_out(normed, word):
    assert speed.measure(rows(normed))[0].verdict == word


def test_an_arm_that_never_gets_there_counts_as_never_and_at_best_as_the_budget():
    normed = [(50, 0.9), (50, 0.9), (50, 0.9), (50, 0.8), (50, 0.8)]
    verdict = speed.measure(rows(normed))[0]
    assert verdict.low is None
    assert verdict.value == verdict.high == 2
    assert verdict.verdict == "inconclusive"
    assert "With batch norm: never there in 2 of 5 seeds" in verdict.note


@pytest.mark.parametrize("never", [3, 5])
def test_an_arm_that_most_often_never_gets_there_has_no_value_but_a_bound(never):
    normed = [(50, 0.9)] * (5 - never) + [(50, 0.8)] * never
    verdicts = speed.measure(rows(normed))
    verdict = verdicts[0]
    assert (verdict.value, verdict.low) == (None, None)
    assert verdict.high == (1 if never < 5 else 0.5), "100 steps against 200 that did not do"
    assert verdict.verdict == ("not supported" if never < 5 else "contradicted")
    assert "median steps 100 and never" in verdict.note
    speed.charts(rows(normed))["ratios"].to_dict()


def test_a_base_that_learns_nothing_sets_no_pace():
    verdicts = speed.measure(rows((20, 0.9), plain=(50, 0.15)))
    assert {v.verdict for v in verdicts} == {"inconclusive"}
    assert verdicts[0].value is None
    assert "The base learned 5 points" in verdicts[0].caution


def test_a_base_still_improving_at_the_end_is_said():
    improving = by_metric(rows((50, 0.9), plain=(400, 0.9)))
    said = "Without batch norm: still improving when the 200 steps ended; with more steps the mark"
    assert all(said in verdict.caution for verdict in improving.values()), "seconds too"
    assert said not in speed.measure(rows((50, 0.9)))[0].caution


def graded(best, rates=(0.1, 1.0, 10.0)):
    """Both arms learn soonest at their rate in ``best``: without batch norm, with it."""
    return [
        row
        for seed in range(5)
        for batch_norm, mine in enumerate(best)
        for rate in rates
        for row in rows_of(
            Trial(
                activation="sigmoid",
                batch_norm=bool(batch_norm),
                learning_rate=rate,
                seed=seed,
                steps=BUDGET,
                every=EVERY,
            ),
            (50 if batch_norm else 100) * (1 if rate == mine else 2),
        )
    ]


def test_a_rate_chosen_at_the_end_of_the_grid_is_said():
    assert {v.caution for v in speed.measure(graded((1.0, 1.0)))} == {""}
    ends = by_metric(graded((10.0, 0.1)))
    high = (
        "Without batch norm: 10 is the best of the learning rates tried and their highest; a "
        "higher one may be better."
    )
    low = (
        "With batch norm: 0.1 is the best of the learning rates tried and their lowest; a lower "
        "one may be better."
    )
    assert ends["steps, sigmoid, best rates"].caution == f"{high} {low}"
    assert ends["seconds, sigmoid, best rates"].caution == f"{high} {low}"
    assert ends["steps, sigmoid, same rate"].caution == high, "no rate was chosen for the other"


def test_few_examples_to_judge_on_are_said():
    made = graded((1.0, 1.0))
    for row in made:
        row |= {"validation_examples": 4, "test_examples": 4} if row["step"] == 0 else {}
    assert {v.caution for v in speed.measure(made)} == {
        "Judged on only 4 validation and 4 test examples, where one is 25 points of accuracy, more "
        "than the 2 that count as a difference."
    }


def test_a_verdict_says_what_its_interval_is():
    verdict = speed.measure(rows((50, 0.9)))[0]
    assert verdict.interval.startswith("the range over 5 paired seeds, which holds the true median")


def test_the_networks_are_called_by_their_names():
    relu = speed.measure(rows((50, 0.9), activation="relu"))
    assert relu[0].metric == "steps, ReLU, best rates"
    assert "the best accuracy of the ReLU network without it" in relu[0].claim
    own = speed.measure(rows((50, 0.9), activation="own"))
    assert own[0].metric == "steps, your network, best rates"
    assert "the best accuracy of your network without it" in own[0].claim
    title = speed.charts(rows((50, 0.9), activation="own"))["curves-own"].to_dict()["title"]
    assert title["text"].startswith("Test accuracy, your network, each arm")


def test_the_ratio_cannot_be_finer_than_the_looks():
    assert speed.measure(rows((1, 0.9)))[0].value == pytest.approx(100 / EVERY)
    there = [row | ({"test_accuracy": 0.9} if row["batch_norm"] else {}) for row in rows((50, 0.9))]
    assert speed.measure(there)[0].value == pytest.approx(100 / EVERY), "even from step 0"


def test_rates_are_chosen_on_validation_and_steps_counted_on_test():
    out = []
    for seed in range(5):
        for batch_norm, rate, reach, shift in (
            (False, 1.0, 100, 0),
            (True, 0.1, 20, 100),
            (True, 1.0, 60, -40),
        ):
            trial = Trial(
                activation="sigmoid",
                batch_norm=batch_norm,
                learning_rate=rate,
                seed=seed,
                steps=BUDGET,
                every=EVERY,
            )
            out += rows_of(trial, reach, test_shift=shift)
    verdicts = by_metric(out)
    # At 0.1 validation is there at 20, test at 120; the test set must not have chosen 1.0.
    assert verdicts["steps, sigmoid, best rates"].value == pytest.approx(100 / 120)
    assert verdicts["steps, sigmoid, same rate"].value == pytest.approx(100 / 20)


def test_seconds_are_steps_times_the_cost_of_a_step():
    timed = [
        {**asdict(trial), "key": "t", "seconds": seconds, "turns": [seconds] * 4}
        for trial in speed.timings(Setup())
        for seconds in [5.0 + trial.steps * (3e-3 if trial.batch_norm else 1e-3)]
    ]
    assert len(timed) == 8
    verdicts = by_metric(rows((50, 0.9)) + timed)
    steps, seconds = (verdicts[f"{what}, sigmoid, best rates"] for what in ("steps", "seconds"))
    assert steps.value == 2
    assert seconds.value == pytest.approx(2 / 3)
    assert (steps.verdict, seconds.verdict) == ("supported", "contradicted")
    assert "1.00 ms without and 3.00 ms with" in seconds.note


def timed(plain, normed):
    """Seconds of a step, one a turn, without batch norm and with it."""
    for trial in speed.timings(Setup()):
        each = [5.0 + trial.steps * pace for pace in (normed if trial.batch_norm else plain)]
        yield {**asdict(trial), "key": "t", "seconds": min(each), "turns": each}


def test_seconds_are_no_surer_than_their_timings():
    verdicts = by_metric([*rows((25, 0.9)), *timed([0.009, 0.001, 0.002], [0.002, 0.002, 0.002])])
    steps, seconds = (verdicts[f"{what}, sigmoid, best rates"] for what in ("steps", "seconds"))
    # The quickest say a half; the second turn says one.
    assert seconds.value == pytest.approx(steps.value / 2)
    assert (seconds.low, seconds.high) == pytest.approx((steps.low / 2, steps.high))
    assert "in the quickest of 3 timings; after the first their ratio is 0.5 to 1." in seconds.note
    lost = by_metric([*rows((25, 0.9)), *timed([0.001, -0.001, 0.001], [0.002] * 3)])
    assert lost["seconds, sigmoid, best rates"].value is None
    hidden = [*timed([1e-3, 1e-3], [2e-3, 2e-3])]
    for row in hidden:
        row["turns"][1] = 5.0
    hidden = by_metric(rows((25, 0.9)) + hidden)["seconds, sigmoid, best rates"]
    assert (hidden.low, hidden.high, hidden.verdict) == (None, None, "inconclusive")
    assert "of which noise hid some" in hidden.note


def test_without_timings_seconds_are_inconclusive():
    verdict = by_metric(rows((50, 0.9)))["seconds, sigmoid, best rates"]
    assert (verdict.verdict, verdict.value) == ("inconclusive", None)
    assert verdict.note == "No seconds were measured."


def tabular(reaches):
    return [
        row
        for (name, arm), reach in zip(speed.ARMS.items(), reaches, strict=True)
        for seed in range(5)
        for row in rows_of(
            Trial(data=speed.TABULAR, depth=2, steps=BUDGET, every=EVERY, seed=seed, **arm), reach
        )
    ]


def test_the_tabular_premise_compares_each_arm_with_raw_inputs():
    verdicts = by_metric(rows((50, 0.9)) + tabular([100, 20, 50, 200]))
    found = {m.split(", ")[-1]: (v.value, v.verdict) for m, v in verdicts.items() if "tab" in m}
    assert found == {
        "normalized inputs": (pytest.approx(5), "supported"),
        "batch norm in hidden layers": (pytest.approx(2), "supported"),
        "batch norm on inputs too": (pytest.approx(0.5), "contradicted"),
    }


def test_trials_are_paired_and_distinct():
    trials = speed.trials(Setup())
    assert len({t.key("") for t in trials}) == len(trials)
    plain = {replace(t, batch_norm=True) for t in trials if t.data == "digits" and not t.batch_norm}
    assert plain == {t for t in trials if t.data == "digits" and t.batch_norm}
    assert {t.seed for t in trials} == set(range(SEEDS["quick"]))
    assert len(speed.trials(Setup(scale="full"))) > 3 * len(trials)


def test_data_of_the_users_choice_brings_no_premise_with_it():
    for data in ("digits8x8", speed.TABULAR):
        trials = speed.trials(Setup(data=data))
        assert {t.data for t in trials} == {data}
        made = [row for t in trials if t.seed < 2 for row in rows_of(t, 100)]
        assert {v.metric.split(", ")[1] for v in speed.measure(made)} == {"sigmoid", "ReLU"}


def test_rows_from_real_trials_fit():
    real = []
    for trial in speed.trials(Setup(data="digits8x8")):
        if trial.seed < 2 and trial.learning_rate in (1.0, 10.0):
            trial = replace(trial, steps=20, every=10)
            real += [{**asdict(trial), "key": trial.key(""), **row} for row in trial.run()]
    assert any(row.get("diverged") for row in real)
    verdicts = speed.measure(real)
    assert all(v.value is None or math.isfinite(v.value) for v in verdicts)
    charts = speed.charts(real)
    assert set(charts) == {"ratios", "curves-sigmoid", "curves-relu"}
    for chart in charts.values():
        chart.to_dict()


def test_charts_draw_every_arm():
    charts = speed.charts(rows((50, 0.9)) + tabular([100, 20, 50, 200]))
    assert set(charts) == {"ratios", "curves-sigmoid", "curves-tabular"}
    about = charts["curves-tabular"].to_dict()["description"]
    assert all(arm in about for arm in speed.ARMS)
    assert "with batch norm" in charts["curves-sigmoid"].to_dict()["description"]
