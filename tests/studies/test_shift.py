"""The study of L14: real rows, rows made up for each verdict, and the picture to scrub through."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.studies import shift
from batchnorm.studies._looks import look, places
from batchnorm.studies._network import build
from batchnorm.studies._trial import Setup, Trial


def real(seeds=1, **fields):
    out = []
    for trial in shift.trials(Setup()):
        if trial.activation == "relu" and trial.seed < seeds:
            trial = replace(trial, data="digits8x8", steps=40, every=10, **fields)
            flat = {**asdict(trial), **dict(trial.options), "key": trial.key("")}
            out += [{**flat, **row} for row in trial.run()]
    return json.loads(json.dumps(out, allow_nan=False))


def test_trials_are_paired():
    trials = shift.trials(Setup())
    assert len(trials) == 2 * 2 * 5
    arms = {
        on: {replace(t, batch_norm=False) for t in trials if t.batch_norm == on} for on in (0, 1)
    }
    assert arms[0] == arms[1]


@pytest.fixture(scope="module")
def rows():
    return real()


def test_what_is_looked_at_is_what_comes_to_the_activations(rows):
    trial = Trial(batch_norm=True, activation="relu", data="digits8x8")
    data = load("digits8x8")
    at = places(trial, data)
    assert at == ["1", "3", "5"]
    for batch_norm in (False, True):
        model = build(replace(trial, batch_norm=batch_norm), data)
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        random = torch.get_rng_state()
        x = data.train.x[:50]
        seen = look(model, at, x, training=True)
        assert torch.equal(random, torch.get_rng_state())
        for name, value in model.state_dict().items():
            assert torch.equal(kept[name], value), name
        z = model.train()[:4](x)
        assert seen["3"]["mean"] == pytest.approx(z.mean(0).tolist(), abs=1e-5)
        model.load_state_dict(kept)
        still = look(model, at, x, training=False)
        z = model.eval()[:4](x)
        assert still["3"]["mean"] == pytest.approx(z.mean(0).tolist(), abs=1e-5)


def test_the_rows_of_one_trial_tell_of_each_look_layer_and_mode(rows):
    mine = [r for r in rows if r["batch_norm"]]
    assert {(r["step"], r["layer"], r["mode"]) for r in mine} == {
        (step, layer, mode)
        for step in (0, 10, 20, 30, 40)
        for layer in "135"
        for mode in ("training", "evaluation")
    }
    # In training the mean of each unit is beta: it moves as far as descent moves that.
    drift = sum(r["mean"] for r in mine if r["mode"] == "training" and r["step"])
    assert 0 < drift < 1


def test_rows_repeat_to_the_bit():
    assert real(seeds=1) == real(seeds=1)


def made(without, with_it, seeds=5, accuracy=0.9, last=100):
    for seed in range(seeds):
        for batch_norm, drift in ((False, without), (True, with_it)):
            drift = drift[seed] if isinstance(drift, list) else drift
            for mode in shift.MODES:
                for step in (0, last):
                    yield {
                        **{"activation": "relu", "seed": seed, "batch_norm": batch_norm},
                        **{"mode": mode, "step": step, "steps": 100, "layer": "1"},
                        **{
                            "test_accuracy": accuracy,
                            "drawn": seed == 0,
                            "p15": -1.0,
                            "p50": 0.0,
                            "p85": 1.0,
                        },
                        **dict.fromkeys(("mean", "spread"), drift if step else None),
                    }


@pytest.mark.parametrize(
    ("without", "with_it", "word"),
    [
        (4.0, 1.0, "supported"),
        (1.5, 1.0, "not supported"),
        (1.0, 2.0, "contradicted"),
        ([1.0, 4.0, 4.0, 1.0, 4.0], 1.0, "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(without, with_it, word):
    verdict = shift.measure(list(made(without, with_it)))[0]
    assert verdict.verdict == word
    assert verdict.metric == "drift of the mean, training, ReLU"
    assert (verdict.unit, verdict.caution) == ("×", "")


def test_seeds_that_did_not_come_to_their_end_are_left_out():
    one = [r for r in made(4.0, 1.0) if (r["seed"], r["batch_norm"], r["step"]) != (0, False, 100)]
    verdict = shift.measure(one)[0]
    assert verdict.verdict == "supported"
    assert "1 of 5 seeds gave no number" in verdict.caution
    lost = shift.measure(list(made(4.0, 1.0, last=50)))[0]
    assert (lost.verdict, lost.value) == ("inconclusive", None)
    still = shift.measure(list(made(4.0, 0.0)))[0]
    assert still.verdict == "inconclusive", "nothing that moves, nothing to divide by"


def test_a_network_that_learns_nothing_is_said():
    caution = shift.measure(list(made(4.0, 1.0, accuracy=0.1)))[0].caution
    assert "Without batch norm it has only 10 % accuracy at the end" in caution


def test_the_distributions_that_are_drawn_are_the_first_seeds_whichever_it_is(rows):
    assert all(row.get("drawn") for row in rows)
    later = [trial for trial in shift.trials(Setup()) if trial.seed]
    assert not any(trial.options for trial in later)
    assert shift.charts([row | {"seed": row["seed"] + 100} for row in rows])


def test_the_charts_of_real_rows_are_valid(rows):
    found = shift.charts(rows)
    assert set(found) == {"distributions-relu", "percentiles-relu"}
    for chart in found.values():
        chart.to_dict()
    spec = found["distributions-relu"].to_dict()
    assert [p["bind"]["input"] for p in spec["params"]] == ["range", "select"]
    assert spec["params"][1]["bind"]["options"] == ["1", "2", "3"], "hidden layers, not places"
    assert shift.measure(rows)
    assert shift.charts(list(made(4.0, 1.0)))["percentiles-relu"].to_dict()


def own():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 10)
    )


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_users_network(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mine_shift", sys.modules[__name__])
    trials = shift.trials(Setup(model="mine_shift:own", data="digits8x8"))
    for trial in (trials[0], trials[-1]):
        found = replace(trial, steps=20).run()
        assert {r["step"] for r in found} == {0, 20}
        assert all(r["mean"] is not None for r in found if r["step"])
    assert "batch norm finds no place" in shift.trials(
        Setup(model="mine_shift:bare", data="digits8x8")
    )
