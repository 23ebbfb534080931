"""The study of L14 against later work: real rows, and rows made up for each verdict."""

import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import _noisy, landscape, speed
from batchnorm.studies._drift import drift, moments
from batchnorm.studies._matched import shared, times
from batchnorm.studies._network import build
from batchnorm.studies._smoother import FIELDS
from batchnorm.studies._terrain import WAYS, Ground, after_earlier, along, terrain
from batchnorm.studies._trial import Setup, Trial, descended
from studies.made_up import made

ARMS = ((False, False), (True, False), (True, True))


def looks(plain, normed, *, noisy=9.0, seeds=5, falls=(2.0, 0.5)):
    """Rows in which every field has one value in each arm, or one a seed."""
    for seed in range(seeds):
        for (batch_norm, noise), value in zip(ARMS, (plain, normed, noisy), strict=True):
            value = value[seed] if isinstance(value, list) else value
            trial = Trial(batch_norm=batch_norm, seed=seed, steps=10, procedure="landscape")
            for step, loss in ((0, falls[0]), (10, falls[1])):
                row = asdict(trial) | {"look": True, "noise": noise, "step": step}
                row |= {"drift": value if step else None}
                if not noise:
                    row |= {
                        "loss_here": loss,
                        "angles": [value, None],
                        **dict.fromkeys(FIELDS, value),
                    }
                yield row


def run(plain, normed, noisy, seeds=5):
    """Rows of a race: the step at which each arm comes to accuracy 0.8, None for never."""
    for seed in range(seeds):
        for (batch_norm, noise), first in zip(ARMS, (plain, normed, noisy), strict=True):
            options = {"look": False, "noise": True} if noise else {}
            for rate in (0.1, 1.0, 10.0):
                trial = Trial(
                    batch_norm=batch_norm,
                    learning_rate=rate,
                    seed=seed,
                    steps=100,
                    procedure="landscape" if noise else "train",
                    options=options,
                )
                start, end = made(trial, 0.8)
                for step in range(0, 101, 10):
                    there = rate == 1.0 and first is not None and step >= first
                    accuracy = 0.8 if there else 0.1 + (rate == 1.0) * step / 1e4
                    accuracies = dict.fromkeys(("validation_accuracy", "test_accuracy"), accuracy)
                    yield {**start, **end, **options, "step": step, **accuracies}


def measured(seen, raced=(90, 30, 30)):
    return {v.metric: v for v in landscape.measure([*seen, *run(*raced)])}


HEADLINE = "change of gradients, ReLU"
RACE = "steps, noisy to ordinary batch norm, ReLU"
DRIFT = "drift, noisy batch norm to none, ReLU"


@pytest.mark.parametrize(
    ("plain", "value", "word"),
    [
        (2.0, 2.0, "supported"),
        (1.05, 1.05, "not supported"),
        (0.5, 0.5, "contradicted"),
        ([0.5, 2.0, 2.0, 0.5, 2.0], 2.0, "inconclusive"),
    ],
)
def test_each_verdict_on_gradients_and_loss_can_come_out(plain, value, word):
    found = measured(looks(plain, 1.0))
    assert next(iter(found)) == HEADLINE
    for metric, _ in FIELDS.values():
        verdict = found[f"{metric}, ReLU"]
        assert (verdict.verdict, verdict.value) == (word, pytest.approx(value)), metric
    assert "Losses from 2 to 0.5 (medians)" in found[HEADLINE].note


@pytest.mark.parametrize(
    ("raced", "value", "word"),
    [
        ((90, 20, 20), 1.0, "supported"),
        ((90, 20, 40), 2.0, "not supported"),
        ((90, 20, 80), 4.0, "contradicted"),
        ((90, 20, None), None, "contradicted"),
        ((90, 50, None), None, "not supported"),
        ((90, 80, None), None, "inconclusive"),
    ],
)
def test_each_verdict_on_noise_can_come_out(raced, value, word):
    verdict = measured(looks(2.0, 1.0), raced)[RACE]
    assert verdict.verdict == word
    assert verdict.value == (value and pytest.approx(value))
    if raced[2] is None:
        assert verdict.high is None
        assert "noisy batch norm never" in verdict.note
    if raced == (90, 50, None):
        assert verdict.low == pytest.approx(2.0), "100 steps at the least"


def test_an_ordinary_batch_norm_that_never_gets_there_bounds_nothing_below():
    verdict = measured(looks(2.0, 1.0), (90, None, 20))[RACE]
    assert (verdict.low, verdict.verdict) == (None, "supported"), "0.2 at the most"


def test_a_base_that_learns_nothing_sets_no_mark():
    verdict = measured(looks(2.0, 1.0), (None, 20, 20))[RACE]
    assert (verdict.value, verdict.verdict) == (None, "inconclusive")
    assert "The base learned 1 points" in verdict.caution


@pytest.mark.parametrize(
    ("noisy", "word"),
    [(9.0, "supported"), (3.0, "not supported"), (1.0, "contradicted")],
)
def test_noise_that_unsettles_nothing_is_said_beside_its_race(noisy, word):
    found = measured(looks(2.0, 1.0, noisy=noisy))
    assert found[DRIFT].verdict == word
    weak = "it may be too little for its race to tell much" in found[RACE].caution
    assert weak == (word != "supported")


def test_lost_seeds_and_losses_without_an_overlap_are_left_out():
    kept = [r for r in looks(2.0, 1.0) if r["seed"] or r["batch_norm"]]
    lost = dict.fromkeys((*FIELDS, "loss_here", "angles", "drift"))
    kept += [
        row | ({} if row["step"] == 0 else {"diverged": True} | lost)
        for row in looks(2.0, 1.0, seeds=1)
        if not row["batch_norm"]
    ]
    verdict = measured(kept)[HEADLINE]
    assert verdict.verdict == "supported"
    assert "1 of 5 seeds gave no number" in verdict.caution
    still = measured(looks(2.0, 1.0, falls=(2.0, 1.9)))[HEADLINE]
    assert (still.verdict, still.value) == ("inconclusive", None)
    assert measured(looks(2.0, 0.0))[HEADLINE].verdict == "inconclusive", "no number above 0"


def test_runs_are_compared_at_the_same_loss_and_not_at_the_same_step():
    # One law for both, g = loss^2; the second only comes down sooner.
    slow = [{"loss_here": x, "g": x**2} for x in (2.0, 1.5, 1.0)]
    fast = [{"loss_here": x, "g": x**2} for x in (2.0, 1.0, 0.1)]
    assert times(slow, fast, "g") == pytest.approx(1)
    # A loss that comes back up is not a new place.
    assert times([*slow, {"loss_here": 1.9, "g": 100.0}], fast, "g") == pytest.approx(1)
    assert shared(slow, [{"loss_here": 0.9}]) is None
    assert shared(slow, [{"loss_here": None}]) is None


class Bowl(nn.Module):
    """Two layers, and a batch norm with buffers between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)  # torch's own has float64 ready
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


def test_the_gradient_after_earlier_layers_step_is_that_of_a_real_step():
    torch.manual_seed(0)
    model, x, y = Bowl().double(), torch.randn(9, 3).double(), torch.arange(9) % 2
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    random, ground = torch.get_rng_state(), Ground(model, x, y, 0)
    parameters = ground.parameters()
    loss, gradient = ground.at(parameters, parameters)
    weights = ["first.weight", "last.weight"]
    found = after_earlier(ground, parameters, gradient, weights, 0.3)
    way = along(ground, parameters, gradient, weights, 0.3)
    assert torch.equal(random, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(kept[name], value), name

    nn.functional.cross_entropy(model(x), y).backward()
    was = model.last.weight.grad.clone()
    with torch.no_grad():
        for part in (model.first, model.norm):
            for p in part.parameters():
                p -= 0.3 * p.grad
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    now = model.last.weight.grad
    assert found["norms"] == [pytest.approx((now - was).norm().item())]
    assert found["changes"] == [pytest.approx(((now - was).norm() / was.norm()).item())]
    cosine = nn.functional.cosine_similarity(now.flatten(), was.flatten(), 0).item()
    assert math.cos(math.radians(found["angles"][0])) == pytest.approx(cosine)
    assert way["range"] > 0
    assert loss == pytest.approx(terrain([ground], 0.3)["loss_here"], abs=1)


def test_roughness_is_that_of_a_parabola_whatever_the_scale(monkeypatch):
    """Of loss ``a |w|^2 / 2`` the gradient changes by ``a`` for every unit of way."""

    class Parabola(nn.Module):
        def __init__(self, a, scale):
            super().__init__()
            self.w, self.a = nn.Parameter(scale * torch.ones(2, 2).double()), a

        def forward(self, x):
            return self.a * self.w.square().sum() / 2

    monkeypatch.setattr("batchnorm.studies._terrain.cross_entropy", lambda loss, y: loss)
    for a, scale in ((3.0, 1.0), (3.0, 7.0), (0.1, 1.0)):
        ground = Ground(Parabola(a, scale), torch.zeros(1), torch.zeros(1), 0)
        parameters = ground.parameters()
        _, gradient = ground.at(parameters, parameters)
        found = along(ground, parameters, gradient, ["w"], 0.01)
        assert found["roughness"] == pytest.approx(a)
        assert found["relative_roughness"] == pytest.approx(1), "of any parabola"
        assert found["unpredicted"] == pytest.approx(a * 0.01 * max(WAYS) * a * scale * 2)


def test_noise_moves_every_unit_at_each_call_and_in_training_alone():
    torch.manual_seed(0)
    norm = BatchNorm1d(200)
    model, x = _noisy.disturb(nn.Sequential(norm)), torch.randn(500, 200)
    with torch.no_grad():
        first, second = model(x), model(x)
    for z in (first, second):
        assert z.mean(0).abs().max() == pytest.approx(_noisy.MEAN, rel=0.1)
        assert z.mean(0).mean().abs() < 0.2, "in no direction above all"
        spread = z.std(0)
        assert 1 - _noisy.SPREAD - 0.05 < spread.min() < spread.max() < 1 + _noisy.SPREAD + 0.05
        assert spread.max() - spread.min() > _noisy.SPREAD
    assert (first.mean(0) - second.mean(0)).abs().mean() > _noisy.MEAN / 2
    torch.testing.assert_close(model.eval()(x), norm(x), rtol=0, atol=0)


def test_drift_is_in_former_standard_deviations():
    data = load("digits8x8")
    model = build(Trial(data="digits8x8", batch_norm=True), data)
    x, y = data.train.x[:50], data.train.y[:50]
    at = ["1", "3", "5"]
    before = moments(Ground(model, x, y, 0), at)
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        model[3][1].bias += 2.0 * model[3][1].weight
    now = moments(Ground(model, x, y, 0), at)
    assert drift(before, before) == 0
    assert drift(before, now) > 2 / 3, "the second of three by 2, the third by what follows"
    constant = {"1": (torch.ones(3), torch.zeros(3))}
    assert drift(constant, constant) is None


def test_trials_are_paired_and_the_usual_arms_of_the_race_are_those_of_speed():
    for scale, seeds, networks in (("quick", 5, 1), ("full", 8, 2)):
        trials = landscape.trials(Setup(scale=scale))
        seen = [t for t in trials if dict(t.options).get("look")]
        assert len(seen) == 3 * seeds * networks
        raced = [t for t in trials if t not in seen]
        shared = [t for t in raced if t.procedure == "train"]
        assert {t.key("") for t in shared} <= {t.key("") for t in speed.trials(Setup(scale=scale))}
        noisy = [t for t in raced if t.procedure == "landscape"]
        usual = [t for t in shared if t.batch_norm]
        assert [replace(t, procedure="train", options=()) for t in noisy] == usual
        assert [replace(t, batch_norm=True) for t in shared if not t.batch_norm] == usual
        assert len(trials) == len({t.key("") for t in trials})


def real(setup, **fields):
    out = []
    for trial in landscape.trials(setup):
        if trial.seed == 0:
            trial = replace(trial, steps=20, every=10, **fields)
            flat = {**asdict(trial), **dict(trial.options), "key": trial.key("")}
            out += [{**flat, **row} for row in trial.run()]
    return json.loads(json.dumps(out, allow_nan=False))


def test_real_rows_repeat_and_give_verdicts_and_charts():
    rows = real(Setup(data="digits8x8"))
    assert rows == real(Setup(data="digits8x8")), "to the bit"
    seen = [r for r in rows if r.get("look")]
    assert [r["step"] for r in seen] == [0, 10, 20] * 3
    for row in seen:
        assert (row["drift"] is None) == (row["step"] == 0)
        assert ("roughness" in row) == (not row["noise"])
    assert all(len(row["angles"]) == 3 for row in seen if not row["noise"]), "of four layers"
    assert len(landscape.measure(rows)) == len(FIELDS) + 3
    charts = landscape.charts(rows)
    kinds = ("ratios", "roughness", "angles", "race")
    assert set(charts) == {f"{kind}-relu" for kind in kinds}
    for chart in charts.values():
        chart.to_dict()


def test_a_batch_norm_that_magnifies_couples_the_layers(monkeypatch):
    """Ten times its output, and each layer's step moves the gradients of the others the more."""
    trials = []
    for trial in landscape.trials(Setup(data="digits8x8")):
        look = dict(trial.options).get("look")
        if trial.seed < 2 and look and not trial.option("noise"):
            trials.append(replace(trial, steps=60, every=20))
        elif trial.seed < 2 and not look and trial.learning_rate == 0.316:
            trials.append(replace(trial, steps=4, every=4))

    def headline():
        flat = [(asdict(trial) | dict(trial.options), trial.run()) for trial in trials]
        return landscape.measure([about | row for about, rows in flat for row in rows])[0]

    sound, right = headline(), BatchNorm1d.forward
    assert (sound.metric, sound.verdict) == (HEADLINE, "supported")
    monkeypatch.setattr(BatchNorm1d, "forward", lambda self, x: 10 * right(self, x))
    assert headline().verdict == "contradicted"


def test_looking_does_not_change_the_training():
    trial = next(t for t in landscape.trials(Setup(data="digits8x8")) if t.batch_norm)
    trial = replace(trial, steps=20, every=10)
    data = load(trial.data)
    usual = descended(trial, build(trial, data), data)
    for row, plain in zip(trial.run(), usual, strict=True):
        assert {name: row[name] for name in plain} == plain


def own():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 10)
    )


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_users_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine_landscape", sys.modules[__name__])
    rows = real(Setup(model="mine_landscape:own", data="digits8x8"))
    first = next(r for r in rows if r.get("look"))
    assert len(first["angles"]) == 1
    assert all(v.metric.endswith("your network") for v in landscape.measure(rows))
    assert landscape.charts(rows)["ratios-own"].to_dict()
    reason = landscape.trials(Setup(model="mine_landscape:bare", data="digits8x8"))
    assert "batch norm finds no place in mine_landscape:bare" in reason
