"""A trial's key is all that decides it; its rows repeat; arms start from the same weights."""

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from batchnorm.data import load
from batchnorm.layers import BatchNorm1d
from batchnorm.studies import study
from batchnorm.studies._fits import check_fits
from batchnorm.studies._network import build, mlp
from batchnorm.studies._sweep import FULL_RATES, decades, networks
from batchnorm.studies._trial import Setup, Trial

SMALL = Trial(data="digits8x8", depth=2, width=16, steps=20, every=10)


def test_rows_repeat_to_the_bit_whatever_ran_before():
    rows = SMALL.run()
    replace(SMALL, seed=5, batch_norm=True).run()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert SMALL.run() == rows
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    json.dumps(rows, allow_nan=False)


def test_every_field_is_in_the_key():
    other = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v * 2,
        str: str.upper,
        tuple: lambda v: (*v, ("rate", 0.5)),
    }
    keys = {SMALL.key("context"), SMALL.key("other context")}
    for field in fields(Trial):
        changed = replace(
            SMALL,
            **{field.name: other[type(getattr(SMALL, field.name))](getattr(SMALL, field.name))},
        )
        keys.add(changed.key("context"))
    assert len(keys) == 2 + len(fields(Trial))


def test_the_key_survives_json_and_equal_numbers():
    trial = replace(SMALL, learning_rate=1)
    assert trial.key("") == replace(SMALL, learning_rate=1.0).key("")
    assert Trial(**json.loads(json.dumps(asdict(trial)))).key("") == trial.key("")


def test_options_are_one_key_however_they_are_given():
    trial = replace(SMALL, procedure="noise", options={"sizes": [8, 16], "by": "batch"})
    assert trial.option("sizes") == (8, 16)
    assert trial == replace(trial, options=(("by", "batch"), ("sizes", (8, 16))))
    again = Trial(**json.loads(json.dumps(asdict(trial))))
    assert again == trial
    assert again.key("") == trial.key("") != replace(SMALL, procedure="noise").key("")
    with pytest.raises(KeyError, match="rate"):
        trial.option("rate")


def test_a_procedure_gives_the_rows(monkeypatch):
    from batchnorm.studies import speed

    def rows(trial, data):
        assert torch.get_num_threads() == 1
        return [{"step": 0, "examples": len(data.train.y), "twice": 2 * trial.option("number")}]

    monkeypatch.setattr(speed, "rows", rows, raising=False)
    trial = replace(SMALL, procedure="speed", options={"number": 21})
    assert trial.run() == [{"step": 0, "examples": len(load("digits8x8").train), "twice": 42}]


def test_a_procedure_that_has_no_rows_is_named():
    with pytest.raises(ValueError, match=r"procedure 'learning_rate': that study has no rows\("):
        replace(SMALL, procedure="learning_rate").run()


def test_arms_are_paired_they_start_from_the_same_weights():
    data = load("digits8x8")
    plain, normed = (build(replace(SMALL, batch_norm=b), data) for b in (False, True))
    weights = [[p for p in m.parameters() if p.dim() == 2] for m in (plain, normed)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 2
    assert not any(isinstance(m, nn.BatchNorm1d) for m in plain.modules())
    other = build(replace(SMALL, seed=1), data)
    assert not torch.equal(weights[0][0], next(other.parameters()))


def test_initial_weights_have_the_stated_variance():
    data = load("digits")
    torch.manual_seed(0)
    for activation, gain in (("sigmoid", 1), ("relu", 2)):
        first = mlp(data, activation, 3, 100)[1]
        assert first.weight.var().item() * 784 == pytest.approx(gain, rel=0.02)
        assert not first.bias.any()


def test_initial_scale_multiplies_weights_alone():
    data = load("digits8x8")
    one, ten = (build(replace(SMALL, init_scale=c, batch_norm=True), data) for c in (1, 10))
    for a, b in zip(one.parameters(), ten.parameters(), strict=True):
        torch.testing.assert_close(b, a * 10 if a.dim() > 1 else a)


def test_batch_norm_on_inputs_has_nothing_to_learn():
    data = load("breast_cancer")
    model = build(Trial(data="breast_cancer", batch_norm_inputs=True), data)
    assert isinstance(model[0], nn.BatchNorm1d)
    assert not list(model[0].parameters())
    out = model[0](data.train.x)
    torch.testing.assert_close(out.mean(0), torch.zeros(30), atol=1e-4, rtol=0)


def test_normalized_inputs_are_another_trial_with_other_rows():
    trial = Trial(data="breast_cancer", depth=1, width=8, steps=5)
    assert trial.run() != replace(trial, normalize_inputs=True).run()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation": "tanh"}, "no activation 'tanh': expected one of sigmoid, relu"),
        (
            {"network": "rnn"},
            "model 'rnn' is not of the form module:function, nor one of the embedded",
        ),
        ({"data": "nothing"}, "no data set 'nothing'"),
    ],
)
def test_wrong_fields_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **change).run()


def test_rates_have_three_digits_so_that_equal_ones_are_equal():
    assert set(decades(-4, 1.5, 0.5)) < set(decades(-4, 1.5, 0.25))
    assert sorted({float(f"{rate:.3g}") for rate in FULL_RATES}) == FULL_RATES
    assert set(decades(-4, 1.5, 0.5)) < set(FULL_RATES)


OWN = """
from torch import nn
from batchnorm.layers import BatchNorm1d

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

def normed():
    layers = nn.Linear(64, 12), BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)
    return nn.Sequential(nn.Flatten(), *layers)

def trained():
    model = nn.Sequential(nn.Flatten(), BatchNorm1d(64), nn.Linear(64, 10))
    model[1].running_mean += 1
    return model

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def lone():
    return nn.Linear(30, 2)

def number():
    return 3

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(12), nn.ReLU(), nn.LazyLinear(10))

def double():
    return plain().double()

class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        y = self.net(x)
        return (y, y) if self.training else y

class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        x -= 0.5
        return self.net(x)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        y = self.net(x)
        if self.training:
            y.retain = no_such_thing
        return y.detach() if self.training else y
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(OWN)
    yield "own_network:"
    sys.modules.pop("own_network", None)


def test_the_users_network_goes_through(own):
    setup = Setup(model=own + "plain", data="digits8x8")
    (base,) = networks(setup)
    assert (base.network, base.activation, base.data) == (setup.model, "own", "digits8x8")
    normed = build(replace(base, batch_norm=True), load("digits8x8"))
    assert any(isinstance(m, BatchNorm1d) for m in normed.modules())
    assert len(replace(base, batch_norm=True, steps=3).run()) == 2


@pytest.mark.parametrize("name", ["lazy", "double", "Loud"])
def test_networks_with_open_sizes_other_dtypes_and_inputs_written_over_go_through(own, name):
    data = load("digits8x8")
    before, trial = data.test.x.clone(), replace(SMALL, network=own + name, activation="own")
    check_fits(own + name, "digits8x8", data, batch_norm=True)
    plain, normed = (build(replace(trial, batch_norm=b), data) for b in (False, True))
    assert any(isinstance(m, BatchNorm1d) for m in normed.modules())
    weights = [[p for p in m.parameters() if p.dim() == 2] for m in (plain, normed)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    fingerprint = load("digits8x8").fingerprint
    rows = replace(trial, batch_norm=True).run(fingerprint)
    assert replace(trial, batch_norm=True).run(fingerprint) == rows
    assert torch.equal(data.test.x, before)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "Auxiliary",
            "Auxiliary gives tuple for .* in training mode; expected logits of .*one tens",
        ),
        ("Broken", "in training mode: NameError: name 'no_such_thing' is not defined"),
    ],
)
def test_networks_that_cannot_be_trained_are_told_before_hundreds_of_trials_are(own, name, says):
    with pytest.raises(ValueError, match=f"model 'own_network:{name}' cannot be trained.*{says}"):
        study(model=own + name, data="digits8x8")
    assert not Path("runs").exists()


def test_a_network_that_has_batch_norm_is_one_arm_and_the_other_without_it(own):
    (base,) = networks(Setup(model=own + "normed", data="digits8x8"))
    data = load("digits8x8")
    without, with_it = (build(replace(base, batch_norm=arm), data) for arm in (False, True))
    assert [type(m).__name__ for m in with_it] == [
        *("Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear")
    ]
    assert [type(m).__name__ for m in without] == [
        *("Flatten", "Linear", "Identity", "ReLU", "Linear")
    ]
    for before, after in zip(with_it, without, strict=True):
        if isinstance(before, nn.Linear):
            assert torch.equal(before.weight, after.weight), "the arms start from equal weights"
            assert torch.equal(before.bias, after.bias)
    rows = [replace(base, batch_norm=arm, steps=3).run() for arm in (False, True)]
    assert rows[0] != rows[1]


def test_why_the_users_network_is_no_case(own, tmp_path):
    reason = networks(Setup(model=own + "linear", data="digits8x8"))
    assert reason.startswith("batch norm finds no place in own_network:linear (1: no activation")
    with pytest.raises(
        ValueError, match=r"batch norm finds no place in own_network:linear \(1: no"
    ):
        Trial(network=own + "linear", data="digits8x8", batch_norm=True, activation="own").run()
    assert networks(Setup(model=own + "lone", data="breast_cancer")).startswith(
        "batch norm finds no place in own_network:lone (the Linear itself: no activation follows"
    )
    run = study("speed", model=own + "trained", data="digits8x8", out="run")
    assert run.not_applicable == {
        "speed": "own_network:trained: batch norm cannot be taken out of it (1 stays: it has been "
        "trained, and its scale and shift have nowhere to go: what feeds it is 0 (Flatten), no "
        "Linear or convolution); the study needs the network without it"
    }
    assert run.report.exists()


def test_the_small_cnn_learns_and_its_arms_start_alike():
    (base,) = networks(Setup(model="cnn"))
    digits = load("digits")
    plain, normed = (build(replace(base, batch_norm=arm), digits) for arm in (False, True))
    weights = [[p for p in m.parameters() if p.dim() > 1] for m in (plain, normed)]
    assert [tuple(w.shape) for w in weights[0]] == [
        *((8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (10, 512))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert abs(weights[0][2].std().item() - (2 / (9 * 16)) ** 0.5) < 0.01, "He initialization"
    trial = replace(base, learning_rate=0.1, steps=60, every=60, batch_norm=True)
    rows = trial.run()
    assert rows[-1]["test_accuracy"] > 0.7
    assert trial.run() == rows
    table = load("breast_cancer")
    with pytest.raises(
        ValueError, match=r"'cnn' takes images of shape .*'breast_cancer' has shape"
    ):
        build(replace(base, data="breast_cancer"), table)
    with pytest.raises(ValueError, match=r"'cmm' is not of the form module:function, nor one of"):
        build(replace(base, network="cmm"), digits)


def test_what_is_no_network_is_refused(own):
    with pytest.raises(ValueError, match=r"'own_network:number' returned int; expected a torch.nn"):
        networks(Setup(model=own + "number"))
