"""The study of L9 on rows made up for it and on a few real ones."""

from dataclasses import asdict, replace

import pytest

from batchnorm.studies import optimizers, speed
from batchnorm.studies._trial import Setup, Trial
from studies.made_up import made

RATES = (0.01, 0.1, 1.0)


def rows(gains, *, seeds=5, lost=None):
    """``gains``: by optimizer what batch norm adds to 0.8 at its best rate, one a seed or one."""
    out = []
    for name in optimizers.OPTIMIZERS:
        for seed in range(seeds):
            gain = gains.get(name, 0.05)
            gain = gain[seed] if isinstance(gain, list) else gain
            for arm in (False, True):
                for rate in RATES:
                    # Without batch norm the middle rate is best, with it the highest but one too.
                    top = (0.8 + gain * arm) if rate == 0.1 else 0.6
                    trial = Trial(optimizer=name, batch_norm=arm, learning_rate=rate, seed=seed)
                    diverged = lost == (name, arm)
                    out += made(replace(trial, steps=100, every=100), top, diverged=diverged)
    return out


@pytest.mark.parametrize(
    ("gains", "value", "word"),
    [
        ({}, 5, "supported"),
        ({"adam": -0.01}, -1, "supported"),
        ({"adam": -0.03}, -3, "not supported"),
        ({"rmsprop": -0.1}, -10, "contradicted"),
        ({"momentum": [0.0, -0.06, 0.0, -0.06, 0.0]}, 0, "inconclusive"),
    ],
)
def test_the_worst_optimizer_decides(gains, value, word):
    verdict = optimizers.measure(rows(gains))[0]
    assert verdict.metric == "gain with the worst optimizer, ReLU"
    assert verdict.value == pytest.approx(value)
    assert verdict.verdict == word


def test_seeds_that_only_plain_gradient_descent_has_do_not_count():
    fewer = [r for r in rows({}) if r["optimizer"] == "sgd" or r["seed"] < 3]
    verdict = optimizers.measure(fewer)[0]
    assert (verdict.value, verdict.verdict) == (pytest.approx(5), "supported")
    assert "the range over 3 paired seeds" in verdict.interval


def test_each_optimizer_has_a_race():
    found = {v.metric: v for v in optimizers.measure(rows({}))}
    words = ["plain gradient descent", "momentum", "RMSprop", "Adam"]
    assert list(found)[1:] == [f"steps, ReLU, {name}" for name in words]
    assert all("With Adam, each arm at its best" in found["steps, ReLU, Adam"].claim for _ in [0])


def test_an_optimizer_with_which_batch_norm_diverges_fails():
    verdict = optimizers.measure(rows({}, lost=("adam", True)))[0]
    assert (verdict.value, verdict.verdict) == (pytest.approx(-70), "contradicted")
    assert "Adam -70.0 (rates" in verdict.note
    assert "the last of its grid with Adam" in verdict.caution


def test_where_all_is_lost_without_batch_norm_there_is_no_pace():
    lost = {v.metric: v for v in optimizers.measure(rows({}, lost=("sgd", False)))}
    assert lost["gain with the worst optimizer, ReLU"].verdict == "supported"


def test_plain_gradient_descent_is_shared_with_the_study_of_speed():
    for scale in ("quick", "full"):
        trials = optimizers.trials(Setup(scale=scale))
        mine = {t.key("") for t in trials if t.optimizer == "sgd"}
        assert mine
        assert mine <= {t.key("") for t in speed.trials(Setup(scale=scale))}
        plain, normed = ([t for t in trials if t.batch_norm is arm] for arm in (False, True))
        assert [replace(t, batch_norm=True) for t in plain] == normed


def test_a_network_of_ones_own_is_trained_by_all():
    trials = optimizers.trials(Setup(model="cnn"))
    assert {t.network for t in trials} == {"cnn"}
    assert {t.optimizer for t in trials} == set(optimizers.OPTIMIZERS)


def test_a_network_without_a_place_says_why(tmp_path, monkeypatch):
    (tmp_path / "flat_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    reason = optimizers.trials(Setup(model="flat_net:net", data="digits8x8"))
    assert "batch norm finds no place in flat_net:net" in reason


def test_rows_from_real_trials_fit():
    real = []
    for trial in optimizers.trials(Setup(data="digits8x8")):
        if trial.seed < 2 and trial.learning_rate in (0.01, 0.1, 0.00316):
            trial = replace(trial, steps=20, every=10)
            real += [{**asdict(trial), "key": trial.key(""), **row} for row in trial.run()]
    assert len(optimizers.measure(real)) == 5
    charts = optimizers.charts(real)
    assert set(charts) == {"ratios", *(f"rates-{name}" for name in optimizers.OPTIMIZERS)}
    for chart in charts.values():
        chart.to_dict()
