"""The study of L15's noise: real rows, rows made up for each verdict, and layers with a fault."""

import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import _noise, noise
from batchnorm.studies._ghosts import gap_of, in_groups
from batchnorm.studies._network import build
from batchnorm.studies._trial import Setup, Trial


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(trial, draws=10):
    options = dict(trial.options)
    if "draws" in options:
        options |= {"draws": draws, "sizes": (32, 64, 512)}
    return replace(trial, data="digits8x8", steps=10, every=10, options=options)


def rows_of(trial):
    flat = {**asdict(trial), **dict(trial.options), "key": trial.key("")}
    return json.loads(json.dumps([{**flat, **row} for row in trial.run()], allow_nan=False))


def real(what=("draws", "group"), seeds=2):
    mine = [t for t in noise.trials(Setup()) if t.activation == "relu" and t.seed < seeds]
    mine = [t for t in mine if any(name in dict(t.options) for name in what)]
    return [row for trial in mine for row in rows_of(small(trial, draws=100))]


@pytest.fixture(scope="module")
def rows():
    return real()


def made(
    power=-0.5,
    factor=1.0,
    small_gap=0.10,
    large_gap=0.12,
    test=0.9,
    seeds=5,
    network="relu",
    train=0.1,
    guessing=0.1,
):
    one = {"activation": network, "draws": 200}
    for seed in range(seeds):
        gap = small_gap[seed] if isinstance(small_gap, list) else small_gap
        for size in (8, 32, 64, 512):
            for layer in (1, 2):
                law = 1.2 / math.sqrt(size) if layer == 1 else None
                value = None if power is None else factor * 1.2 * size**power
                row = {"size": size, "layer": layer, "noise": value, "law": law}
                yield one | {"seed": seed} | row
        for group, mine in ((16, gap - (large_gap - gap) / 2), (64, gap), (512, large_gap)):
            start = train if group == 64 else 0.1
            row = {"train_loss": start, "test_loss": start + mine, "train_accuracy": 0.95}
            row |= {"guessing": guessing, "test_examples": 1000}
            accuracy = 0.9 if group == 512 else test
            yield (
                {"activation": network, "seed": seed, "group": group}
                | row
                | {"test_accuracy": accuracy}
            )


def words(rows):
    return {v.metric.rpartition(",")[0]: v.verdict for v in noise.measure(list(rows))}


def test_trials_are_paired_and_groups_share_all_but_their_size():
    trials = noise.trials(Setup())
    assert len(trials) == len(set(trials)) == 2 * 5 + 3 * 5
    assert {t.procedure for t in trials} == {"noise"}
    arms = [t for t in trials if "group" in dict(t.options)]
    assert {t.batch_size for t in arms} == {512}
    assert len({replace(t, options={}) for t in arms}) == 5
    assert len(noise.trials(Setup(scale="full"))) == 2 * 8 + 7 * 8


def test_rows_repeat_and_give_the_random_state_back():
    for trial in (noise.trials(Setup())[5], noise.trials(Setup())[-1]):
        before = torch.get_rng_state()
        assert rows_of(small(trial)) == rows_of(small(trial))
        assert torch.equal(before, torch.get_rng_state())


def test_real_rows_follow_the_law(rows):
    found = words(rows)
    assert found["slope of the noise"] == "supported"
    assert found["size of the noise"] == "supported"
    first = [row for row in rows if "noise" in row and (row["layer"], row["size"]) == (1, 64)]
    assert 0.05 < first[0]["noise"] < 0.3, "1 / sqrt(64) and what is added to it"
    assert {row["layer"] for row in rows if "noise" in row} == {1, 2, 3}


def test_the_noise_is_that_of_the_formula_by_hand():
    """One layer of one unit, against z normalized by hand with the same mini-batches."""
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    (row,) = _noise.noise_of(model, x, probe=7, sizes=(64,), draws=50, seed=1)
    generator, outs = torch.Generator().manual_seed(1), []
    for _ in range(50):
        batch = x[torch.randint(400, (64,), generator=generator)]
        batch[0] = x[7]
        outs.append((batch[0] - batch.mean()) / (batch.var(correction=0) + 1e-5).sqrt())
    # In evaluation the unit is divided by the unbiased standard deviation.
    expected = torch.stack(outs).std().item() / math.sqrt(399 / 400)
    assert row["noise"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "metric", "word"),
    [
        ({"power": -0.5}, "slope of the noise", "supported"),
        ({"power": -0.2}, "slope of the noise", "contradicted"),
        ({"power": None}, "slope of the noise", "inconclusive"),
        ({"power": -0.2}, "noise at 64 over 512", "contradicted"),
        ({"factor": 1.05}, "size of the noise", "supported"),
        ({"factor": 1.3}, "size of the noise", "not supported"),
        ({"factor": 2.0}, "size of the noise", "contradicted"),
        ({"small_gap": 0.10}, "gap of the loss", "supported"),
        ({"small_gap": 0.118}, "gap of the loss", "not supported"),
        ({"small_gap": 0.13}, "gap of the loss", "contradicted"),
        ({"small_gap": [0.1, 0.13, 0.13, 0.1, 0.1]}, "gap of the loss", "inconclusive"),
        ({"small_gap": 0.13}, "order of the gaps", "contradicted"),
        ({"test": 0.91}, "gap of the accuracy", "supported"),
        ({"test": 0.89}, "gap of the accuracy", "contradicted"),
        ({"test": 0.91}, "change of the test accuracy", "supported"),
        ({"test": 0.94}, "change of the test accuracy", "contradicted"),
        ({"large_gap": -0.1}, "gap of the loss", "inconclusive"),
        ({}, "test loss", "supported"),
        ({"train": 0.119}, "test loss", "not supported"),
        ({"train": 0.13}, "test loss", "contradicted"),
    ],
)
def test_each_verdict_can_come_out(values, metric, word):
    assert words(made(**values))[metric] == word


def test_a_gap_that_is_narrow_for_want_of_learning_is_said():
    def cautions(**values):
        found = noise.measure(list(made(**values)))
        return {v.metric.rpartition(",")[0]: v.caution for v in found}

    assert cautions()["gap of the loss"] == ""
    caution = cautions(train=0.12)["gap of the loss"]
    assert "the training loss ends higher, at 0.12 instead of 0.1" in caution
    assert "learned less" in cautions(train=0.12)["order of the gaps"]
    assert "nothing to lose" in cautions(guessing=0.85)["gap of the accuracy"]


def test_a_lost_seed_is_left_out_and_said_so():
    lost = [r | (dict.fromkeys(["noise"]) if r["seed"] == 1 else {}) for r in made()]
    lost = [{k: v for k, v in r.items() if k != "noise" or "size" in r} for r in lost]
    headline = noise.measure(lost)[0]
    assert (headline.verdict, headline.metric) == ("supported", "slope of the noise, ReLU")
    assert headline.caution == "1 of 5 seeds gave no number, and are left out."
    none = dict.fromkeys(("train_loss", "test_loss", "train_accuracy", "test_accuracy"))
    gone = [r | (none if r.get("group") == 64 and r["seed"] == 0 else {}) for r in made()]
    verdict = next(v for v in noise.measure(gone) if v.metric.startswith("gap of the loss"))
    assert (verdict.verdict, "1 of 5 seeds" in verdict.caution) == ("supported", True)
    noise.charts(gone)["gap-loss"].to_dict()


def test_a_run_that_diverges_gives_rows_without_numbers():
    for trial in (noise.trials(Setup())[5], noise.trials(Setup())[-1]):
        rows = rows_of(replace(small(trial), learning_rate=1e30, init_scale=1e30))
        assert all(row.get("noise", row.get("test_loss")) is None for row in rows)


def test_a_batch_norm_whose_noise_ignores_the_batch_is_found_out(monkeypatch):
    """One that normalizes eight neighbours at a time, however many examples there are."""
    right = BatchNorm1d.forward

    def faulty(self, input, **options):
        self.ghost_size = 8
        return right(self, input, **options)

    monkeypatch.setattr(BatchNorm1d, "forward", faulty)
    found = words(real(["draws"]))
    assert found["slope of the noise"] == "contradicted"
    assert found["noise at 64 over 512"] == "contradicted"


def test_groups_normalize_as_separate_calls_and_share_parameters():
    for norm in (BatchNorm1d(3), nn.BatchNorm1d(3)):
        model = nn.Sequential(norm)
        grouped = in_groups(model, 4)
        assert grouped[0].weight is norm.weight
        x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            grouped(x)[4:8], nn.functional.batch_norm(x[4:8], None, None, training=True)
        )


def test_the_gap_is_judged_with_statistics_of_the_training_set():
    data = load("digits8x8")
    model = build(Trial(batch_norm=True, data="digits8x8"), data)
    found = gap_of(model, data)
    assert found["train_loss"] > 0
    z = model[1][0](data.train.x.flatten(1))
    torch.testing.assert_close(model[1][1].running_mean, z.mean(0), rtol=1e-4, atol=1e-5)


def test_the_charts_of_real_rows_are_valid(rows):
    found = noise.charts(rows)
    assert set(found) == {"noise-relu", "gap-loss", "gap-accuracy"}
    for chart in found.values():
        chart.to_dict()
    assert "predicted for the first" in str(found["noise-relu"].to_dict())


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    )


class Mine(nn.BatchNorm1d):
    pass


def another():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), Mine(9), nn.ReLU(), nn.Linear(9, 10))


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_users_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine_noise", sys.modules[__name__])
    trials = noise.trials(Setup(model="mine_noise:cnn", data="digits8x8"))
    rows = [row for t in (trials[0], trials[-1]) for row in rows_of(small(t))]
    assert {row["law"] for row in rows if "noise" in row} == {None}
    assert "size of the noise" not in words(rows)
    assert rows[-1]["test_loss"] > 0
    other = noise.trials(Setup(model="mine_noise:another", data="digits8x8"))
    assert not any("group" in dict(t.options) for t in other), "its groups are its own affair"
    assert set(words(rows_of(small(other[0])))) == {
        "slope of the noise",
        "noise at 64 over 512",
        "size of the noise",
    }
    assert "batch norm finds no place" in noise.trials(
        Setup(model="mine_noise:bare", data="digits8x8")
    )
