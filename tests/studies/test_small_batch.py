"""The study of small mini-batches: the norms put in, real rows, and rows for each verdict."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchRenorm1d
from batchnorm.studies import small_batch as study
from batchnorm.studies._network import build
from batchnorm.studies._small import GHOST, GROUP, NORM, RENORM, grouped, other, with_norm
from batchnorm.studies._trial import Setup, Trial
from studies.made_up import made

AT2 = "lost more than group norm at 2, ReLU"
SMALL = {"data": "digits8x8", "steps": 20, "every": 20}


def rows_of(trial):
    flat = {**asdict(trial), **dict(trial.options), "key": trial.key("")}
    return [{**flat, **row} for row in trial.run()]


def rows(changed=None, *, lost=(), diverged=(), guessing=0.1):
    """All arms of 90 %, with other accuracies (as trained, anew) by arm and size, a list by seed."""
    out = []
    for trial in study.trials(Setup()):
        name = (trial.option("arm"), trial.option("together"))
        if (*name, trial.seed) in lost:
            continue
        value = (changed or {}).get(name, 0.9)
        value = value[trial.seed] if isinstance(value, list) else value
        value, anew = value if isinstance(value, tuple) else (value, value)
        gone = (*name, trial.seed) in diverged
        mine = list(made(trial, value, diverged=gone))
        if gone:
            mine.pop(1)
        mine[-1] |= {"anew_accuracy": None if gone or name[0] == GROUP else anew}
        mine[-1] |= {"guessing": guessing, "test_examples": 1000}
        out += [{**row, **dict(trial.options)} for row in mine]
    return out


def found(rows):
    return {v.metric: v for v in study.measure(rows)}


def words(rows):
    return {metric.removesuffix(", ReLU"): v.verdict for metric, v in found(rows).items()}


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_every_arm_sees_equally_many_examples_on_the_same_seeds(scale):
    trials = study.trials(Setup(scale=scale))
    assert len(trials) == len({t.key("") for t in trials})
    arms = {t.options for t in trials}
    assert len(trials) == len(arms) * study.SEEDS[scale]
    for trial in trials:
        assert trial.steps * trial.batch_size == pytest.approx(study.EXAMPLES[scale], abs=63)
        assert trial.learning_rate / trial.batch_size == pytest.approx(0.1 / 64)
        assert (trial.batch_size == 64) >= (trial.option("arm") == GHOST)
    needed = {(arm, size) for arm in (NORM, GROUP) for size in (2, 4, 64)}
    assert needed | {(RENORM, 2), (GHOST, 2)} <= {
        (dict(o)["arm"], dict(o)["together"]) for o in arms
    }


def test_each_arm_has_its_norm_and_the_same_weights():
    data, trial = load("digits8x8"), Trial(data="digits8x8", batch_norm=True)
    kinds = {NORM: BatchNorm1d, GHOST: BatchNorm1d, RENORM: BatchRenorm1d, GROUP: nn.GroupNorm}
    plain = build(trial, data)
    for arm, kind in kinds.items():
        model = with_norm(build(trial, data), arm, 2, 10)
        norms = [m for m in model.modules() if isinstance(m, kind)]
        assert len(norms) == 3, arm
        assert [getattr(norm, "ghost_size", None) == 2 for norm in norms] == [arm == GHOST] * 3
        weights = [p for p in model.parameters() if p.dim() == 2]
        for ours, theirs in zip(
            weights, (p for p in plain.parameters() if p.dim() == 2), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_limits_of_renormalization_are_raised_in_training_alone():
    norm = with_norm(nn.Sequential(nn.BatchNorm1d(3)), RENORM, 2, 10)
    limits = []
    for _ in range(4):
        norm.eval()(torch.randn(4, 3))
        norm.train()(torch.randn(4, 3))
        limits.append((norm[0].r_max, norm[0].d_max))
    assert limits == [(1.0, 0.0), (2.0, 2.5), (3.0, 5.0), (3.0, 5.0)]


@pytest.mark.parametrize(
    ("channels", "groups"), [(100, 10), (32, 2), (16, 1), (8, 1), (13, 1), (17, 1), (34, 17)]
)
def test_groups_hold_several_channels(channels, groups):
    assert grouped(BatchNorm2d(channels)).num_groups == groups


@pytest.mark.parametrize(
    ("at2", "word"),
    [
        (0.5, "supported"),
        (0.89, "not supported"),
        (0.95, "contradicted"),
        ([0.5, 0.9, 0.95, 0.9, 0.9], "inconclusive"),
    ],
)
def test_each_verdict_of_the_headline_can_come_out(at2, word):
    headline = study.measure(rows({(NORM, 2): at2}))[0]
    assert (headline.metric, headline.verdict) == (AT2, word)
    assert "worth only about 38 examples" in headline.caution
    assert "batch norm " in headline.note
    assert "90.0 % at 64; ghost batches" in headline.note


def test_what_group_norm_loses_counts_against_batch_norm():
    both = {(NORM, 2): 0.5, (GROUP, 2): 0.5}
    assert words(rows(both))[AT2.removesuffix(", ReLU")] == "not supported"
    assert words(rows({(GROUP, 2): 0.5}))[AT2.removesuffix(", ReLU")] == "contradicted"


@pytest.mark.parametrize(
    ("changed", "metric"),
    [
        ({(NORM, 4): 0.8}, "lost more than group norm at 4"),
        ({(NORM, 2): (0.9, 0.8)}, "lost more, statistics anew, at 2"),
        ({(NORM, 2): 0.8, (RENORM, 2): 0.8}, "group norm, better at 2"),
        ({(RENORM, 2): 0.95}, "batch renormalization, better at 2"),
        ({(GHOST, 2): 0.8}, "lost by ghost batches of 2"),
    ],
)
def test_each_other_measure_reads_its_own_rows(changed, metric):
    assert words(rows())[metric] == "not supported"
    assert words(rows(changed))[metric] == "supported"


def test_statistics_anew_are_told_apart_from_training():
    mended = words(rows({(NORM, 2): (0.5, 0.9)}))
    assert mended["lost more than group norm at 2"] == "supported"
    assert mended["lost more, statistics anew, at 2"] == "not supported"


def test_a_lost_seed_is_left_out_and_a_diverged_run_counts_as_untrained():
    one = found(rows({(NORM, 2): 0.5}, lost=[(NORM, 2, 0)]))[AT2]
    assert one.verdict == "supported"
    assert one.caution.endswith("1 of 5 seeds gave no number, and are left out.")
    most = found(rows(lost=[(GROUP, 64, seed) for seed in range(3)]))[AT2]
    assert (most.verdict, most.value) == ("inconclusive", None)
    gone = found(rows(diverged=[(NORM, 2, seed) for seed in range(5)], guessing=0.3))
    for metric in (AT2, "lost more, statistics anew, at 2, ReLU"):
        assert (gone[metric].verdict, gone[metric].value) == ("supported", pytest.approx(80))


def test_a_network_that_learned_nothing_is_cautioned():
    assert "it has nothing to lose" in study.measure(rows(guessing=0.85))[0].caution


def test_real_rows_repeat_and_fit():
    trials = [replace(t, **SMALL) for t in study.trials(Setup(data="digits8x8")) if t.seed < 2]
    real = [row for trial in trials for row in rows_of(trial)]
    first = next(t for t in trials if t.option("arm") == RENORM)
    assert first.run() == first.run(), "to the bit"
    json.dumps(real, allow_nan=False)
    last = [row for row in real if row["step"]]
    assert {row["arm"] for row in last if row["anew_accuracy"] is None} == {GROUP}
    assert len(study.measure(real)) == 6
    charts = study.charts(real)
    assert set(charts) == {"sizes-relu", "anew-relu", "lost"}
    for chart in charts.values():
        chart.to_dict()


def test_a_batch_norm_that_ignores_its_mini_batch_turns_the_headline(monkeypatch):
    """Each of the two with the other's fault: what is lost at 2 is group norm's then."""
    wanted = {(arm, size) for arm in (NORM, GROUP) for size in (2, 64)}
    trials = [
        replace(t, steps=1280 // t.batch_size, every=1280 // t.batch_size, width=30)
        for t in study.trials(Setup(data="digits8x8"))
        if t.seed < 2 and (t.option("arm"), t.option("together")) in wanted
    ]

    def headline():
        return study.measure([row for trial in trials for row in rows_of(trial)])[0]

    sound = headline()
    assert (sound.metric, sound.verdict) == (AT2, "supported")
    other = {NORM: GROUP, GROUP: NORM}
    monkeypatch.setattr(study, "with_norm", lambda model, arm, *a: with_norm(model, other[arm], *a))
    assert headline().verdict == "contradicted"


def test_the_small_cnn_is_one_more_network():
    trials = study.trials(Setup(model="cnn", data="digits8x8"))
    for arm in (GHOST, RENORM, GROUP):
        trial = next(t for t in trials if t.option("arm") == arm)
        assert rows_of(replace(trial, steps=3, every=3))[-1]["test_accuracy"] > 0


def test_what_it_is_not_for(tmp_path, monkeypatch):
    (tmp_path / "small_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net(norm):\n"
        "    layers = [nn.Flatten(), nn.Linear(64, 9), norm, nn.ReLU(), nn.Linear(9, 10)]\n"
        "    return nn.Sequential(*layers)\n\n\n"
        "def fits():\n    return net(nn.BatchNorm1d(9))\n\n\n"
        "def bare():\n    return net(nn.BatchNorm1d(9, track_running_stats=False))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(study.trials(Setup(model="small_net:fits", data="digits8x8")), list)
    reason = study.trials(Setup(model="small_net:bare", data="digits8x8"))
    assert reason.startswith("small_net:bare: 2 has no running statistics, by which to")
    assert other(nn.Sequential(BatchNorm2d(3, axis=-1))).startswith("0 has its channels on axis -1")
    assert (
        other(nn.Sequential(nn.SyncBatchNorm(3))) == "0 is SyncBatchNorm, not BatchNorm1d, 2d or 3d"
    )
    few = load("digits8x8")
    few = replace(few, train=type(few.train)(few.train.x[:40], few.train.y[:40]))
    monkeypatch.setattr(study, "load", lambda name: few)
    assert study.trials(Setup()).startswith("data 'digits' has 40 examples to train on; 64 are")
