"""The study of L13 on rows made up for it, and its networks and gradients for real."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.studies import depth
from batchnorm.studies._deep import Residual, deep, deeper_and_deeper, gradients
from batchnorm.studies._trial import Setup, Trial

GRID = (2, 4, 8, 16, 32, 64)
ALL = {kind: ([8], [32]) for kind in depth.KINDS}


def tried(kind, arm, seed, reached):
    """Rows of depths up to the first beyond ``reached``."""
    residual, factor = depth.KINDS[kind]
    base = asdict(Trial(init_scale=factor, batch_norm=arm, seed=seed, steps=100))
    for layers in GRID:
        fine = layers <= reached
        took = 30 if fine else None
        yield base | {"residual": residual, "layers": layers, "trained": fine, "took": took}
        if not fine:
            return


def sizes(arm, seed, growth, layers=10):
    base = asdict(Trial(batch_norm=arm, seed=seed)) | {"residual": False}
    for layer in range(1, layers + 1):
        yield base | {"layer": layer, "gradient": growth and growth ** (layers - layer)}


def rows(found=ALL, growth=1.21):
    """``found``: by kind the depths reached without and with batch norm, one a seed or one."""
    out = []
    for kind, arms in found.items():
        for arm, reached in enumerate(arms):
            for seed in range(3):
                out += tried(kind, bool(arm), seed, (reached * 3)[seed])
    growths = growth if isinstance(growth, list) else [growth] * 3
    for seed, mine in enumerate(growths):
        out += [*sizes(False, seed, 1.0), *sizes(True, seed, mine)]
    return out


def by_metric(rows):
    return {verdict.metric: verdict for verdict in depth.measure(rows)}


@pytest.mark.parametrize(
    ("plain", "normed", "word"),
    [
        ([8], [32], "supported"),
        ([8], [16], "inconclusive"),
        ([8], [8], "not supported"),
        ([16], [8], "contradicted"),
        ([8], [32, 8, 32], "inconclusive"),
        ([0], [16], "supported"),
        ([64], [64], "inconclusive"),
    ],
)
def test_each_verdict_can_come_out(plain, normed, word):
    verdict = depth.measure(rows(ALL | {depth.PLAIN: (plain, normed)}))[0]
    assert verdict.metric == "trainable depth, plain, He weights"
    assert verdict.verdict == word


def test_a_depth_is_known_to_a_step_of_the_grid():
    verdict = depth.measure(rows())[0]
    assert (verdict.low, verdict.value, verdict.high) == pytest.approx(
        (32 / 15, (4 * 63 / 15) ** 0.5, 63 / 8)
    )
    assert "without: 8, 8, 8; with batch norm: 32, 32, 32." in verdict.note
    assert "A network has 100 steps to train in" in verdict.caution
    assert "There are only 3 seeds: the interval holds the true median with 75 %" in verdict.caution


def test_depths_beyond_the_grid_and_none_at_all_are_open_ends():
    found = by_metric(rows(ALL | {depth.RESIDUAL: ([0], [64])}))
    verdict = found["trainable depth, residual, He weights"]
    assert (verdict.value, verdict.high) == (None, None)
    assert verdict.low == pytest.approx(64), "64 at the least against 1 at the most"
    assert "without: none, none, none; with batch norm: 64 or more" in verdict.note


@pytest.mark.parametrize(
    ("reached", "word"),
    [
        ([64], "supported"),
        ([32], "not supported"),
        ([16], "contradicted"),
        ([64, 64, 16], "inconclusive"),
    ],
)
def test_very_deep_plain_networks(reached, word):
    verdict = depth.measure(rows(ALL | {depth.PLAIN: ([8], reached)}))[1]
    assert verdict.metric == "very deep, plain, He weights"
    assert verdict.verdict == word


def test_residual_networks_are_compared_with_plain_ones():
    found = by_metric(rows(ALL | {depth.RESIDUAL: ([8], [64]), depth.PLAIN: ([8], [16])}))
    verdict = found["trainable depth, residual to plain"]
    assert (verdict.low, verdict.verdict) == (pytest.approx(64 / 31), "supported")
    assert "plain: 16, 16, 16; residual: 64 or more" in verdict.note


@pytest.mark.parametrize(
    ("growth", "word"),
    [(1.21, "supported"), (1.0, "contradicted"), (1.4, "contradicted"), ([1.1, 1.21, 1.3],) * 2],
)
def test_the_growth_of_gradients_is_held_against_the_theory(growth, word):
    verdict = depth.measure(rows(growth=growth))[-1]
    assert verdict.verdict == (word if isinstance(word, str) else "inconclusive")
    if growth == 1.4:
        assert verdict.value == pytest.approx(1.4)
    assert "Without batch norm: 1.000." in verdict.note
    assert pytest.approx(1.2112, abs=1e-4) == depth.GROWTH


def test_lost_gradients_leave_a_seed_out_or_no_value():
    one = depth.measure(rows(growth=[1.21, None, 1.21]))[-1]
    assert (one.verdict, one.interval.split(",")[0]) == (
        "supported",
        "the range over 2 paired seeds",
    )
    none = depth.measure(rows(growth=None))[-1]
    assert (none.verdict, none.value) == ("inconclusive", None)
    assert none.caution == "No gradient was above zero."


def test_trials_pair_the_arms():
    trials = depth.trials(Setup())
    plain, normed = ([t for t in trials if t.batch_norm is arm] for arm in (False, True))
    assert [replace(t, batch_norm=True) for t in plain] == normed
    assert len(normed) == 4 * 3 + 5
    assert {t.procedure for t in trials} == {"depth"}
    assert len(depth.trials(Setup(scale="full"))) == 2 * (4 * 8 + 8)


def test_a_network_of_ones_own_has_one_depth():
    reason = depth.trials(Setup(model="mine:net"))
    assert reason == "mine:net has the depth that it has; the study needs networks of any depth"


def small(**given):
    options = {"depths": (2, 3), "rates": (0.1,), "residual": False} | given.pop("options", {})
    base = Trial(procedure="depth", depth=0, width=16, data="digits8x8", steps=80)
    return replace(base, options=options, **given)


def test_both_kinds_have_the_same_weights_with_and_without_batch_norm():
    data, weights = load("digits8x8"), []
    for residual in (False, True):
        for arm in (False, True):
            torch.manual_seed(0)
            trial = small(batch_norm=arm, init_scale=0.5, options={"residual": residual})
            network = deep(trial, data, 3)
            weights.append([p for p in network.parameters() if p.dim() == 2])
            norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
            assert len(norms) == 3 * arm
            assert sum(isinstance(m, Residual) for m in network) == 2 * residual
    assert [len(mine) for mine in weights] == [4] * 4
    for mine in weights[1:]:
        assert all(map(torch.equal, mine, weights[0]))
    assert weights[0][1].std().item() == pytest.approx(0.5 * math.sqrt(2 / 16), rel=0.2)


def test_a_network_is_made_deeper_until_one_does_not_train():
    data = load("digits8x8")
    rows = deeper_and_deeper(small(batch_norm=True), data)
    assert [(row["layers"], row["trained"]) for row in rows] == [(2, True), (3, True)]
    assert all(20 <= row["took"] < 80 and row["loss"] < math.log(10) / 2 for row in rows)
    assert {row["rate"] for row in rows} == {0.1}
    assert rows == deeper_and_deeper(small(batch_norm=True), data)
    (never,) = deeper_and_deeper(small(options={"rates": (1e-6,)}), data)
    assert (never["trained"], never["took"], never["rate"]) == (False, None, None)
    (lost,) = deeper_and_deeper(small(options={"rates": (1e6,)}, init_scale=1e30), data)
    assert (lost["trained"], lost["loss"]) == (False, None)
    later = deeper_and_deeper(small(batch_norm=True, options={"rates": (1e-6, 0.1)}), data)
    assert [row["rate"] for row in later] == [0.1, 0.1], "the second rate is tried too"


def test_gradients_grow_with_batch_norm_and_not_without():
    data, slopes = load("digits8x8"), []
    for arm in (False, True):
        trial = replace(
            small(batch_norm=arm), width=256, batch_size=256, options={"layers": 12, "residual": 0}
        )
        found = gradients(trial, data)
        assert [row["layer"] for row in found] == list(range(1, 13))
        slopes.append((found[0]["gradient"] / found[-1]["gradient"]) ** (1 / 11))
    assert slopes[0] == pytest.approx(1, abs=0.06)
    assert slopes[1] == pytest.approx(depth.GROWTH, abs=0.06)


def test_a_gradient_that_is_lost_is_none():
    trial = replace(small(init_scale=1e-30), options={"layers": 3, "residual": False})
    assert gradients(trial, load("digits8x8"))[0]["gradient"] is None


def test_rows_from_real_trials_fit():
    real = []
    for trial in depth.trials(Setup(data="digits8x8")):
        if trial.seed < 2:
            given = dict(trial.options)
            given |= {"layers": 5} if "layers" in given else {"depths": (2, 3), "rates": (0.1,)}
            trial = replace(trial, width=16, options=given)
            real += [{**asdict(trial), **given, **row} for row in trial.run()]
    assert len(depth.measure(real)) == 7
    charts = depth.charts(real)
    assert set(charts) >= {"plain-he-weights", "residual-small-weights", "gradients", "ratios"}
    for chart in charts.values():
        chart.to_dict()
