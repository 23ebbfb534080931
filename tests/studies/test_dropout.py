"""The study of L15: where dropout is put, what it does to variances, and rows for each verdict."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import _dropped, dropout
from batchnorm.studies._trial import Setup, Trial
from batchnorm.surgery import is_batch_norm
from studies.made_up import made

AFTER, LAST, BEFORE = dropout.ORDERS
ORDERS_AT_HALF = [
    {"order": None, "rate": 0.0},
    *({"order": o, "rate": 0.5} for o in (AFTER, "bare")),
]
BASE = Trial(data="digits8x8", procedure="dropout", batch_norm=True, steps=60, every=60)


def rows_of(trial):
    flat = {**asdict(trial), **dict(trial.options), "key": trial.key("")}
    return [{**flat, **row} for row in trial.run()]


def rows(
    test=0.9,
    *,
    arm=AFTER,
    rate=0.5,
    ratio=1.0,
    anew=0.9,
    predicted=1.0,
    lost=(),
    seeds=5,
    guessing=0.1,
):
    """All arms of 90 %, with one order at one rate as said; seeds of it that diverged."""
    out = []
    for trial in dropout.trials(Setup()):
        trial = replace(trial, activation="relu")
        order, ours = trial.option("order"), dict(trial.options) == {"order": arm, "rate": rate}
        if trial.seed >= seeds:
            continue
        value = (test[trial.seed] if isinstance(test, list) else test) if ours else 0.9
        seen = {"ratios": [1.0, ratio if ours else 1.0, None], "anew": anew if ours else 0.9}
        seen["predicted"] = predicted if order == BEFORE else None
        diverged = ours and trial.seed in lost
        mine = list(made(trial, value, diverged=diverged))
        if not diverged and trial.batch_norm:
            mine[-1] |= seen
        mine[-1] |= {"guessing": guessing, "test_examples": 1000}
        out += [{**row, **dict(trial.options)} for row in mine]
    return out


def words(rows):
    return {v.metric: v.verdict for v in dropout.measure(rows)}


def paths(model):
    """What stands in the network, batch norms and dropouts by one letter."""
    letters = {nn.Dropout: "d", nn.ReLU: "r", nn.Linear: "l"}
    kinds = [m for m in model.modules() if not list(m.children())]
    return "".join("n" if is_batch_norm(m) else letters.get(type(m), "") for m in kinds)


def test_every_order_and_rate_is_trained_on_the_same_seeds():
    for scale in ("quick", "full"):
        trials = dropout.trials(Setup(scale=scale))
        assert len(trials) == len({t.key("") for t in trials})
        arms = {(t.option("order"), t.option("rate"), t.batch_norm) for t in trials}
        assert len(arms) == 2 + 4 * len(dropout.RATES[scale])
        pairs = {(t.learning_rate, t.seed) for t in trials}
        assert len(trials) == len(arms) * len(pairs)


@pytest.mark.parametrize(
    ("order", "batch_norm", "expected"),
    [
        (None, False, "lrlrlrl"),
        (None, True, "lnrlnrlnrl"),
        ("bare", False, "ldrldrldrl"),
        (AFTER, True, "lndrlndrlndrl"),
        (BEFORE, True, "ldnrldnrldnrl"),
        (LAST, True, "lnrlnrlndrl"),
    ],
)
def test_where_dropout_is_put(order, batch_norm, expected):
    data = load("digits8x8")
    trial = replace(BASE, batch_norm=batch_norm)
    model = _dropped.with_dropout(trial, data, order, 0.3)
    assert paths(model) == expected
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {0.3}
    bare = _dropped.with_dropout(trial, data, None, 0.0).eval()
    x = data.test.x[:5]
    assert torch.equal(model.eval()(x), bare(x)), "the same weights; nothing dropped in evaluation"


def test_the_last_is_the_last_that_is_called(tmp_path, monkeypatch):
    (tmp_path / "turned_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Turned(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.second, self.first = nn.BatchNorm1d(9), nn.BatchNorm1d(64)\n"
        "        self.layer, self.out = nn.Linear(64, 9), nn.Linear(9, 10)\n\n"
        "    def forward(self, x):\n"
        "        x = self.first(x.flatten(1))\n"
        "        return self.out(self.second(self.layer(x)).relu())\n"
    )
    monkeypatch.chdir(tmp_path)
    trial = replace(BASE, network="turned_net:Turned")
    model = _dropped.with_dropout(trial, load("digits8x8"), LAST, 0.5)
    assert isinstance(model.second, nn.Sequential)
    assert not isinstance(model.first, nn.Sequential)


def test_the_variance_that_dropout_gives_is_the_predicted_one():
    torch.manual_seed(0)
    data = load("digits8x8")
    norm = BatchNorm1d(64, momentum=None)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), norm, nn.Linear(64, 10))
    for _ in range(50):
        model(data.train.x)
    found = _dropped.shifts(model, data, 0.5)
    x = data.train.x.flatten(1).double()
    x = x[:, x.var(0) > 0]
    ratio = 2 + x.mean(0).square() / x.var(0)
    assert found["ratios"] == [pytest.approx(ratio.quantile(0.5).item(), rel=0.05)]
    assert found["predicted"] == pytest.approx(1, rel=0.02)
    assert model.training
    assert _dropped.shifts(model, data, 0.0)["predicted"] > 1.5, "not what no dropout predicts"


def test_a_network_whose_units_do_not_vary_has_no_ratio():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), BatchNorm1d(4), nn.Linear(4, 10))
    nn.init.zeros_(model[1].weight)
    found = _dropped.shifts(model, load("digits8x8"), 0.5)
    assert found == {"ratios": [None], "predicted": None}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"test": 0.9}, "supported"),
        ({"test": 0.95}, "supported"),
        ({"test": 0.885}, "not supported"),
        ({"test": 0.8}, "contradicted"),
        ({"test": [0.8, 0.9, 0.8, 0.9, 0.8]}, "inconclusive"),
        ({"lost": (0, 1, 2, 3, 4)}, "contradicted"),
    ],
)
def test_each_verdict_on_accuracy_can_come_out(values, word):
    metric = "dropout after each batch norm, rate 0.5, ReLU"
    found = {v.metric: v for v in dropout.measure(rows(**values))}
    headline = next(iter(found.values()))
    assert headline.metric == f"accuracy lost, less that without batch norm, {metric}"
    for verdict in (headline, found[f"accuracy lost, {metric}"]):
        assert verdict.verdict == word
        assert "batch norm alone 90.0 % at 0.1" in verdict.note
        assert "dropout without batch norm 90.0 % at 0.1; neither 90.0 %" in verdict.note
        assert verdict.caution == "All arms at one learning rate, 0.1."
    other = "accuracy lost, dropout only after the last batch norm, rate 0.5, ReLU"
    assert words(rows(**values))[other] == "supported"


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (1.05, "supported"),
        (1 / 1.05, "supported"),
        (1.2, "not supported"),
        (2.0, "contradicted"),
        (0.5, "contradicted"),
    ],
)
def test_each_verdict_on_variances_can_come_out(ratio, word):
    found = words(rows(ratio=ratio, arm=BEFORE, rate=0.1))
    assert found["variance ratio, dropout before each batch norm, rate 0.1, ReLU"] == word
    assert found["variance ratio, batch norm alone, ReLU"] == "supported"


@pytest.mark.parametrize(
    ("predicted", "word"), [(0.95, "supported"), (2.0, "contradicted"), (None, "inconclusive")]
)
def test_the_predicted_ratio_is_judged(predicted, word):
    assert (
        words(rows(predicted=predicted))["variance ratio to that predicted, rate 0.5, ReLU"] == word
    )


def test_statistics_anew_and_lost_runs():
    metric = "accuracy lost, statistics anew, dropout before each batch norm, rate 0.5, ReLU"
    assert words(rows(0.5, arm=BEFORE))[metric] == "supported"
    assert words(rows(0.5, arm=BEFORE, anew=0.5))[metric] == "contradicted"
    one = {v.metric: v for v in dropout.measure(rows(arm=BEFORE, lost=(0,)))}[metric]
    assert (one.verdict, one.high) == ("inconclusive", pytest.approx(80))
    assert one.caution == "All arms at one learning rate, 0.1."
    assert words(rows(arm=BEFORE, lost=range(5)))[metric] == "contradicted"


@pytest.mark.parametrize(
    ("bare", "word", "told"),
    [(0.8, "supported", "costs 10.0 points without"), (0.9, "contradicted", "")],
)
def test_what_dropout_costs_anyway_is_taken_off_and_said(bare, word, told):
    changed = []
    for row in rows(0.8):
        if row["order"] == "bare" and row["step"]:
            row = row | {"validation_accuracy": bare, "test_accuracy": bare}
        changed.append(row)
    found = {v.metric: v for v in dropout.measure(changed)}
    metric = "dropout after each batch norm, rate 0.5, ReLU"
    assert found[f"accuracy lost, less that without batch norm, {metric}"].verdict == word
    assert told in found[f"accuracy lost, {metric}"].caution
    assert bool(told) == ("without batch norm too" in found[f"accuracy lost, {metric}"].caution)


def test_what_weakens_a_verdict_is_said():
    headline = dropout.measure(rows(guessing=0.85))[0]
    assert "right on less than 10 points more than by guessing" in headline.caution
    higher = [row | {"learning_rate": 1.0} for row in rows()]
    lower = [row | {"learning_rate": 0.01, "validation_accuracy": 0.5} for row in rows()]
    caution = dropout.measure([*higher, *lower])[0].caution
    for arm in (
        "Batch norm alone",
        "Neither",
        "Dropout without batch norm",
        dropout.ORDERS[AFTER].capitalize(),
    ):
        assert f"{arm}: 1 is the best of the learning rates tried and their highest" in caution


def test_a_network_with_dropout_of_its_own_is_not_for_this_study(tmp_path, monkeypatch):
    (tmp_path / "drop_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net(*more):\n"
        "    layers = [nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), *more]\n"
        "    return nn.Sequential(*layers, nn.Linear(9, 10))\n\n\n"
        "def own():\n    return net(nn.Dropout(0.2))\n"
    )
    monkeypatch.chdir(tmp_path)
    reason = dropout.trials(Setup(model="drop_net:own", data="digits8x8"))
    assert "drop_net:own has dropout of its own (4)" in reason
    trials = dropout.trials(Setup(model="drop_net:net", data="digits8x8"))
    bare = next(t for t in trials if t.option("order") == "bare")
    assert paths(_dropped.with_dropout(bare, load("digits8x8"), "bare", 0.5)) == "ldrl"


def test_real_rows_repeat_and_fit():
    trials = [
        t for t in dropout.trials(Setup(data="digits8x8")) if t.seed < 2 and t.option("rate") != 0.1
    ]
    real = [row for t in trials for row in rows_of(replace(t, steps=40, every=20))]
    first = replace(next(t for t in trials if t.option("order") == BEFORE), steps=40, every=20)
    assert first.run() == first.run(), "to the bit"
    json.dumps(real, allow_nan=False)
    assert len(dropout.measure(real)) == 12
    charts = dropout.charts(real)
    assert set(charts) == {"rates-relu", "variances-relu", "lost"}
    for chart in charts.values():
        chart.to_dict()


def test_a_batch_norm_that_a_shifted_variance_silences_turns_the_headline(monkeypatch):
    """In evaluation it gives nothing of units that vary much less than they did in training."""
    trials = [
        replace(t, steps=120, every=120, learning_rate=0.3, width=50)
        for t in dropout.trials(Setup(data="digits8x8"))
        if t.seed < 3 and dict(t.options) in ORDERS_AT_HALF
    ]

    def headline():
        return dropout.measure([row for trial in trials for row in rows_of(trial)])[0]

    sound, right = headline(), BatchNorm1d.forward
    assert sound.metric.startswith("accuracy lost, less that without batch norm, dropout after")
    assert sound.verdict == "supported"

    def faulty(self, x):
        out = right(self, x)
        return out if self.training else out * (self.running_var < 1.5 * x.var(0))

    monkeypatch.setattr(BatchNorm1d, "forward", faulty)
    found = headline()
    assert found.verdict == "contradicted", found


def test_the_small_cnn_is_one_more_network():
    trial = replace(BASE, network="cnn", steps=20, every=20, options={"order": BEFORE, "rate": 0.5})
    last = rows_of(trial)[-1]
    assert len(last["ratios"]) == 3
    assert last["ratios"][0] > 1.5
