"""The study of L7: real rows, and rows made up for each verdict."""

import json
import math
from dataclasses import replace

import pytest
import torch

from batchnorm.studies import bias
from batchnorm.studies._trial import Setup, descended
from studies.forced import rows_of


def small(trial):
    return replace(trial, data="digits8x8", steps=20, every=10)


def real(seeds=3):
    trials = [t for t in bias.trials(Setup()) if t.activation == "relu" and t.seed < seeds]
    return rows_of(list(map(small, trials)))


def made(seeds=5, *, without=0.5, accuracy=0.9, **last):
    usual = {"gradient": 1e-8, "wandered": 1e-8, "moved_training": 1e-6}
    usual |= {"lost_evaluation": 20.0, "lost_folded": 0.0, "accuracy_with": accuracy}
    usual |= {"guessing": 0.1, "test_examples": 1000}
    for optimizer in bias.OPTIMIZERS:
        for seed in range(seeds):
            row = {"activation": "relu", "optimizer": optimizer, "seed": seed}
            yield row | {"step": 0, "with": 2.3, "without": 2.3}
            yield row | {"step": 100, "with": 0.5, "without": without} | usual | last


def words(rows):
    return {v.metric.rpartition(",")[0]: v.verdict for v in bias.measure(list(rows))}


def test_trials_are_every_network_under_both_optimizers():
    trials = bias.trials(Setup())
    assert {t.optimizer for t in trials} == {"sgd", "adam"}
    assert all(t.batch_norm and t.procedure == "bias" for t in trials)
    assert len(trials) == len(set(trials)) == 20


def test_real_rows_repeat_and_the_bias_is_cancelled():
    rows = real()
    again = small(bias.trials(Setup())[10])
    assert rows_of([again]) == rows_of([again])
    json.dumps(rows, allow_nan=False)
    found = words(rows)
    assert found["gradient of b"] == found["same run without b"] == "supported"
    assert found["b stays, gradient descent"] == found["training with b shifted"] == "supported"
    assert found["evaluation with b shifted"] == "contradicted"
    assert found["evaluation, running mean shifted too"] == "supported"
    for chart in bias.charts(rows).values():
        chart.to_dict()


@pytest.mark.parametrize(
    ("values", "metric", "word"),
    [
        ({}, "gradient of b", "supported"),
        ({"gradient": 0.5}, "gradient of b", "contradicted"),
        ({"gradient": 1e-4}, "gradient of b", "not supported"),
        ({"gradient": None}, "gradient of b", "inconclusive"),
        ({"without": 0.1}, "same run without b", "contradicted"),
        ({"without": None}, "same run without b", "inconclusive"),
        ({"wandered": 0.1}, "b stays, Adam", "contradicted"),
        ({"wandered": 0.005}, "b stays, Adam", "not supported"),
        ({"moved_training": 1.0}, "training with b shifted", "contradicted"),
        ({"lost_evaluation": 0.0}, "evaluation with b shifted", "supported"),
        ({"lost_folded": 5.0}, "evaluation, running mean shifted too", "contradicted"),
        ({"accuracy": 0.15}, "evaluation, running mean shifted too", "inconclusive"),
        ({"accuracy": None}, "evaluation with b shifted", "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(values, metric, word):
    assert words(made(**values))[metric] == word


def test_a_lost_seed_is_said():
    rows = [r | ({"gradient": None} if r["seed"] == 4 else {}) for r in made()]
    headline = bias.measure(rows)[0]
    assert headline.verdict == "supported"
    assert headline.caution == "1 of 5 seeds gave no number, and are left out."


def without_biases():
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 20, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(20, 10),
    )


def test_a_network_that_has_no_such_biases_says_so():
    setup = Setup(model=f"{__name__}:without_biases", data="digits8x8")
    assert bias.trials(setup).endswith("has a bias that batch norm would cancel")
    assert len(bias.trials(Setup(model="cnn"))) == 10


def test_the_gradient_of_a_lost_network_is_no_number(monkeypatch):
    def lost(trial, model, data):
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        return descended(trial, model, data)

    monkeypatch.setattr(bias, "descended", lost)
    trial = small(bias.trials(Setup())[0])
    assert math.isnan(rows_of([trial])[-1]["gradient"])
