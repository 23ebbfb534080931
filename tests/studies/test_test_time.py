"""The study of L16: real rows, and rows made up for each verdict."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import test_time as study
from batchnorm.studies._averages import Averages
from batchnorm.studies._trial import Setup
from batchnorm.train import train
from studies.forced import rows_of


def small(trial):
    return replace(trial, data="digits8x8", steps=60, options={"looks": (20, 60)})


def real(seeds=3):
    trials = [t for t in study.trials(Setup()) if t.activation == "relu" and t.seed < seeds]
    return rows_of(list(map(small, trials)))


def made(
    lost=0.0, momentum=0.1, moved=1e-7, test_examples=0.9, seeds=5, guessing=0.1, examples=1000
):
    for seed in range(seeds):
        row = {"activation": "relu", "seed": seed, "step": 200}
        row |= {"guessing": guessing, "test_examples": examples}
        yield row | {"way": study.POPULATION, "accuracy": 0.9}
        for one in study.MOMENTA:
            accuracy = 0.9 - lost / 100 if one == momentum and lost is not None else 0.9
            accuracy = None if one == momentum and lost is None else accuracy
            yield row | {"way": study.AVERAGES, "momentum": one, "accuracy": accuracy}
        for size in study.SIZES:
            yield row | {"way": study.EXAMPLES, "size": size, "accuracy": test_examples}
        yield row | {"way": study.ALONE, "moved": moved}


def words(rows):
    return {v.metric.rpartition(",")[0]: v.verdict for v in study.measure(list(rows))}


def test_trials_have_batch_norm_and_looks_that_are_steps_with_rows():
    for scale in ("quick", "full"):
        for trial in study.trials(Setup(scale=scale)):
            assert trial.batch_norm
            assert trial.procedure == "test_time"
            assert all(look % trial.every == 0 for look in trial.option("looks"))
            assert trial.option("looks")[-1] == trial.steps


def test_real_rows_repeat_and_fit():
    trial = small(study.trials(Setup())[0])
    assert rows_of([trial]) == rows_of([trial])
    rows = real()
    json.dumps(rows, allow_nan=False)
    found = words(rows)
    assert found["one example"] == "supported"
    assert found["momentum 0.001"] == "contradicted", "60 steps leave it where it began"
    for chart in study.charts(rows).values():
        chart.to_dict()


def test_the_averages_beside_a_run_are_those_that_a_layer_keeps():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), BatchNorm1d(8, momentum=0.3), nn.ReLU())
    model.append(nn.Linear(8, 10))
    averages = Averages(model, (0.3, 0.01))
    train(model, load("digits8x8"), steps=30, every=10)
    ((mean, var),) = averages.kept[0.3]
    torch.testing.assert_close(mean, model[2].running_mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(var, model[2].running_var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "metric", "word"),
    [
        ({}, "momentum 0.1", "supported"),
        ({"lost": -3.0}, "momentum 0.1", "supported"),
        ({"lost": 1.0}, "momentum 0.1", "not supported"),
        ({"lost": 5.0}, "momentum 0.1", "contradicted"),
        ({"lost": None}, "momentum 0.1", "inconclusive"),
        ({"guessing": 0.85}, "momentum 0.1", "inconclusive"),
        ({"guessing": 0.85}, "32 test examples", "inconclusive"),
        ({"lost": 5.0, "momentum": 0.01}, "momentum 0.01", "contradicted"),
        ({"moved": 0.1}, "one example", "contradicted"),
        ({"test_examples": 0.5}, "32 test examples", "contradicted"),
    ],
)
def test_each_verdict_can_come_out(values, metric, word):
    assert words(made(**values))[metric] == word


def test_seeds_that_disagree_and_one_that_is_lost():
    rows = [r for seed in range(5) for r in made(lost=4.0 * (seed < 3)) if r["seed"] == seed]
    assert words(rows)["momentum 0.1"] == "inconclusive"
    rows = [r for r in made() if r["seed"] or r["way"] != study.POPULATION]
    headline = study.measure(rows)[0]
    assert headline.verdict == "supported"
    assert headline.caution == "1 of 5 seeds gave no number, and are left out."


def test_a_network_that_guesses_has_no_accuracy_to_lose():
    headline = study.measure(list(made(guessing=0.85)))[0]
    assert headline.caution == (
        "In 5 of 5 seeds the network is right on less than 10 points more than by guessing: it has "
        "nothing to lose. 5 of 5 seeds gave no number, and are left out."
    )
    trials = [t for t in study.trials(Setup()) if t.activation == "sigmoid" and t.seed < 3]
    still = [replace(small(trial), learning_rate=1e-9) for trial in trials]
    found = words(rows_of(still))
    assert found["momentum 0.1"] == "inconclusive"


def test_few_test_examples_are_said():
    headline = study.measure(list(made(examples=100)))[0]
    assert headline.caution == (
        "Judged on only 100 test examples, of which one is 1 points, more than the 0.5 that count."
    )
    assert not study.measure(list(made()))[0].caution


def test_the_small_cnn_is_one_more_network():
    trial = small(study.trials(Setup(model="cnn", data="digits8x8"))[0])
    assert {row["way"] for row in rows_of([trial])} == {
        study.POPULATION,
        study.AVERAGES,
        study.EXAMPLES,
        study.ALONE,
    }
