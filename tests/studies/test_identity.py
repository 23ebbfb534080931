"""The study of L3: real rows, and rows made up for each verdict."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from batchnorm.data import load
from batchnorm.studies import identity
from batchnorm.studies._trial import Setup
from batchnorm.studies._workers import attempt
from studies.forced import rows_of


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(trial):
    return replace(trial, data="digits8x8", steps=20, every=20, options={"draws": 4})


def real(seeds=3, network="relu"):
    mine = [t for t in identity.trials(Setup()) if t.activation == network and t.seed < seeds]
    return rows_of(list(map(small, mine)))


def made(evaluation=1e-7, answers=1e-7, own=1e-7, fixed=0.15, law=0.15, seeds=5):
    one = {"activation": "relu"}
    for seed in range(seeds):
        row = one | {"seed": seed}
        yield row | {
            "case": identity.EVALUATION,
            "batch": None,
            "error": evaluation,
            "answers": answers,
        }
        for size in identity.BATCHES:
            yield row | {"case": identity.FIXED, "batch": size, "error": fixed, "law": law}
            yield row | {"case": identity.OWN, "batch": size, "error": own}


def words(rows):
    return {v.metric.rpartition(",")[0]: v.verdict for v in identity.measure(list(rows))}


def test_trials_are_every_network_over_paired_seeds():
    trials = identity.trials(Setup())
    assert {t.activation for t in trials} >= {"sigmoid", "relu"}
    assert len(trials) == len(set(trials)) == 5 * len({t.activation for t in trials})
    assert not any(t.batch_norm for t in trials)
    assert {t.procedure for t in trials} == {"identity"}
    assert len(identity.trials(Setup(scale="full"))) > len(trials)


def test_real_rows_repeat_and_are_exact_where_they_should_be():
    trial = small(identity.trials(Setup())[0])
    rows = rows_of([trial])
    assert rows == rows_of([trial])
    json.dumps(rows, allow_nan=False)
    assert words(real()) == {
        "in evaluation": "supported",
        "answers": "supported",
        "training, its own moments": "supported",
        "training, fixed parameters": "contradicted",
        "law of the error": words(real())["law of the error"],
    }
    for chart in identity.charts(real()).values():
        chart.to_dict()


def test_the_global_random_state_is_given_back():
    before = torch.get_rng_state()
    rows_of([small(identity.trials(Setup())[0])])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("values", "metric", "word"),
    [
        ({"evaluation": 1e-7}, "in evaluation", "supported"),
        ({"evaluation": 1e-3}, "in evaluation", "not supported"),
        ({"evaluation": 0.1}, "in evaluation", "contradicted"),
        ({"evaluation": None}, "in evaluation", "inconclusive"),
        ({"own": 0.1}, "training, its own moments", "contradicted"),
        ({"fixed": 1e-6}, "training, fixed parameters", "supported"),
        ({"answers": 0.1}, "answers", "contradicted"),
        ({"law": 0.15}, "law of the error", "supported"),
        ({"law": 0.11}, "law of the error", "not supported"),
        ({"law": 0.05}, "law of the error", "contradicted"),
    ],
)
def test_each_verdict_can_come_out(values, metric, word):
    assert words(made(**values))[metric] == word


def test_seeds_that_disagree_are_inconclusive_and_a_lost_one_is_said():
    rows = [r | ({"error": 0.1} if r["seed"] < 3 and r["batch"] is None else {}) for r in made()]
    assert words(rows)["in evaluation"] == "inconclusive"
    rows = [r | ({"error": None} if r["seed"] == 1 else {}) for r in made()]
    headline = identity.measure(rows)[0]
    assert (headline.verdict, headline.metric) == ("supported", "in evaluation, ReLU")
    assert headline.caution == "1 of 5 seeds gave no number, and are left out."


def test_feature_maps_have_no_law(monkeypatch):
    rows = [r | ({"law": None} if "law" in r else {}) for r in made()]
    assert "law of the error" not in words(rows)
    for chart in identity.charts(rows).values():
        assert "predicted" not in str(chart.to_dict())


def small_cnn():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )


def test_a_users_network_of_convolutions():
    data = load("digits8x8")
    name = f"{__name__}:small_cnn"
    trials = identity.trials(Setup(model=name, data="digits8x8"))
    found = identity.rows(small(trials[0]), data)
    assert found[0]["error"] < 1e-5
    assert {row["law"] for row in found if row["case"] == identity.FIXED} == {None}


def test_a_network_without_a_place_for_batch_norm_says_why():
    assert "no place" in identity.trials(Setup(model=f"{__name__}:linear"))


def linear():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


def test_a_network_that_was_lost_gives_no_number(monkeypatch):
    def lost(trial, model, data):
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))

    monkeypatch.setattr(identity, "descended", lost)
    rows = []
    for trial in [t for t in identity.trials(Setup()) if t.activation == "relu"][:3]:
        outcome = attempt(small(trial))
        assert not outcome.failure
        rows += [{**asdict(trial), **row} for row in outcome.rows]
    assert {row["error"] for row in rows} == {None}
    assert set(words(rows).values()) == {"inconclusive"}
    for chart in identity.charts(rows).values():
        chart.to_dict()
