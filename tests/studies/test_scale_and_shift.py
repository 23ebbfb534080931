"""The study of L2: real rows, rows made up for each verdict, and a batch norm with a fault."""

import json
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import scale_and_shift as study
from batchnorm.studies._network import build
from batchnorm.studies._scales import freeze, told
from batchnorm.studies._trial import Setup, Trial

ACCURACIES = ("validation_accuracy", "test_accuracy")


def rows_of(trial):
    trial = replace(trial, data="digits8x8", steps=20, every=10)
    flat = {**asdict(trial), **dict(trial.options), "key": trial.key("")}
    return json.loads(json.dumps([{**flat, **r} for r in trial.run()], allow_nan=False))


def real(setup=None, seeds=1):
    mine = [t for t in study.trials(setup or Setup()) if t.activation != "sigmoid"]
    return [row for trial in mine if trial.seed < seeds for row in rows_of(trial)]


@pytest.fixture(scope="module")
def rows():
    return real()


def made(error=1e-7, gamma=0.2, beta=0.2, off=30.0, own=0.8, output=0.6, seeds=5):
    for seed in range(seeds):
        for arm, accuracy in ((study.ALL, 0.9), (study.OWN, own), (study.OUTPUT, output)):
            for step in (0, 100):
                yield {
                    **{"activation": "relu", "seed": seed, "trained": arm, "layer": "1.1"},
                    **{"step": step, "steps": 100, "learning_rate": 0.1},
                    **dict.fromkeys(ACCURACIES, accuracy if step else 0.1),
                    **{"error": error, "gamma": gamma, "beta": beta, "off": off},
                }


def words(rows):
    return {v.metric.rpartition(",")[0]: v.verdict for v in study.measure(list(rows))}


def test_the_arms_differ_in_what_is_trained_and_each_has_its_learning_rates():
    trials = study.trials(Setup())
    assert len(trials) == len(set(trials)) == 2 * (3 + 4 + 4) * 5
    assert len({replace(t, options={}, learning_rate=1.0) for t in trials}) == 2 * 5
    for trial in trials:
        assert trial.learning_rate in study.RATES["quick"][trial.option("trained")]


def at(rate, rows):
    return [row | {"learning_rate": rate} for row in rows]


def test_each_arm_is_told_at_its_best_rate_and_an_end_of_the_grid_is_said():
    better = at(10.0, (r for r in made(own=0.85) if r["trained"] == study.OWN))
    lost = at(100.0, (r for r in made(own=0.99) if r["trained"] == study.OWN and not r["step"]))
    worse = at(1.0, (r for r in made(output=0.2) if r["trained"] == study.OUTPUT))
    found = {v.metric: v for v in study.measure([*made(), *better, *lost, *worse])}
    share = found["share of what is learned, ReLU"]
    assert share.value == pytest.approx(100 * 0.75 / 0.8)
    assert "85.0 % gamma and beta alone at 10, 60.0 % output layer alone at 0.1" in share.note
    assert "Output layer alone: 0.1 is the best of the learning rates tried and" in share.caution
    assert "All parameters: 0.1 is the one learning rate tried." in share.caution
    assert "Gamma and beta alone:" not in share.caution, "10 lies between 0.1 and 100"


def test_each_arm_trains_its_own_parameters():
    data = load("digits8x8")
    counts = {}
    for arm in (study.ALL, study.OWN, study.OUTPUT):
        model = build(Trial(batch_norm=True, data="digits8x8", depth=1, width=9), data)
        freeze(model, arm)
        counts[arm] = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    assert counts[study.OWN] == [(9,), (9,)]
    assert counts[study.OUTPUT] == [(10, 9), (10,)]
    assert len(counts[study.ALL]) == 5


def test_real_rows_repeat_and_the_moments_are_exact(rows):
    assert rows == real()
    assert words(rows)["moments"] == "supported"
    first = [r for r in rows if r["step"] == 0]
    assert {(r["gamma"], r["beta"], r["off"]) for r in first} == {(0.0, 0.0, 0.0)}
    still = [r for r in rows if r["trained"] == study.OUTPUT]
    assert {(r["gamma"], r["beta"]) for r in still} == {(0.0, 0.0)}
    assert all(r["gamma"] > 0 for r in rows if r["trained"] != study.OUTPUT and r["step"])
    for chart in study.charts(rows).values():
        chart.to_dict()


@pytest.mark.parametrize(
    ("values", "metric", "word"),
    [
        ({}, "moments", "supported"),
        ({"error": 1e-3}, "moments", "not supported"),
        ({"error": 0.1}, "moments", "contradicted"),
        ({"error": None}, "moments", "inconclusive"),
        ({}, "scale", "supported"),
        ({"gamma": 0.05}, "scale", "not supported"),
        ({"gamma": 0.001}, "scale", "contradicted"),
        ({"beta": 0.001}, "shift", "contradicted"),
        ({}, "share of what is learned", "supported"),
        ({"own": 0.3}, "share of what is learned", "not supported"),
        ({"own": 0.11}, "share of what is learned", "contradicted"),
        ({}, "against the output layer", "supported"),
        ({"output": 0.85}, "against the output layer", "contradicted"),
        ({}, "units switched off", "supported"),
        ({"off": 0.0}, "units switched off", "contradicted"),
    ],
)
def test_each_verdict_can_come_out(values, metric, word):
    assert words(made(**values))[metric] == word


def without_its_end(rows, seed, arm):
    return [r for r in rows if (r["seed"], r["trained"], r["step"]) != (seed, arm, r["steps"])]


def test_a_run_that_diverged_counts_as_untrained_and_has_no_gamma():
    found = {v.metric: v for v in study.measure(without_its_end(made(), 0, study.OWN))}
    for metric, low in (("share of what is learned", 0.0), ("against the output layer", -50.0)):
        verdict = found[f"{metric}, ReLU"]
        assert verdict.low == pytest.approx(low), "it began with 10 %, the output layer has 60"
        assert verdict.verdict == "inconclusive"
        assert "left out" not in verdict.caution
    off = found["units switched off, ReLU"]
    assert off.verdict == "supported"
    assert "1 of 5 seeds gave no number, and are left out." in off.caution


def test_nothing_is_a_share_of_what_a_run_that_diverged_has_learned():
    found = {v.metric: v for v in study.measure(without_its_end(made(), 0, study.ALL))}
    caution = found["share of what is learned, ReLU"].caution
    assert "1 of 5 seeds gave no number, and are left out." in caution


def test_a_unit_without_spread_and_shift_has_no_relative_error():
    seen = {name: [0.0, 1.0] for name in ("gamma", "beta", "mean", "std", "batch_var")}
    found = told(seen, 1e-5)
    assert found.pop("error") == pytest.approx(0, abs=1e-5)
    assert found == {"gamma": 0.5, "beta": 0.5, "off": 50.0}
    assert set(told({}, 0.0).values()) == {None}


def test_a_batch_norm_that_leaves_out_beta_is_found_out(monkeypatch):
    right = BatchNorm1d.forward

    def faulty(self, input, **options):
        return right(self, input, **options) - self.bias.detach()

    monkeypatch.setattr(BatchNorm1d, "forward", faulty)
    headline = study.measure(real())[0]
    assert (headline.metric, headline.verdict) == ("moments, ReLU", "contradicted")


def own():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 10))
    )


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_users_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine_scale", sys.modules[__name__])
    found = real(Setup(model="mine_scale:own", data="digits8x8"))
    assert words(found)["moments"] == "supported"
    assert "finds no place" in study.trials(Setup(model="mine_scale:bare", data="digits8x8"))


def test_the_random_state_is_given_back():
    before = torch.get_rng_state()
    rows_of(study.trials(Setup())[0])
    assert torch.equal(before, torch.get_rng_state())
