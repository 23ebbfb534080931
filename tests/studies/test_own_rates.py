"""A network of the user's at rates that nobody has chosen for it: said where the method is."""

import pytest
from torch import nn

from batchnorm.studies._context import Context
from batchnorm.studies._manifest import words
from batchnorm.studies._plan import chosen, planned
from batchnorm.studies._trial import Setup

UNCHOSEN = ("initialization", "shift", "noise", "test_time", "new_domain", "identity")


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))


def method(name, model):
    (part,) = planned(chosen(name), Setup(model=model, data="digits8x8"), Context())
    assert part.status == "done", part.failed
    return words(part, model)["method"].removeprefix(part.study.METHOD)


@pytest.mark.parametrize("name", UNCHOSEN)
def test_one_rate_is_said_to_be_nobodys_choice(name):
    said = " This network is trained at learning rate 0.1, fixed beforehand and not chosen for it:"
    assert method(name, f"{__name__}:net").startswith(said)


@pytest.mark.parametrize("name", ["speed", "learning_rate", "placement", "optimizers"])
def test_a_study_that_looks_for_rates_says_nothing(name):
    assert method(name, f"{__name__}:net") == ""


def test_rates_that_go_with_the_mini_batch_are_told_from_to():
    assert "at learning rates 0.003125 to 0.1, fixed" in method("small_batch", f"{__name__}:net")


@pytest.mark.parametrize("model", [None, "cnn"])
def test_of_the_studies_own_networks_nothing_is_said(model):
    (part,) = planned(chosen("shift"), Setup(model=model), Context())
    assert words(part, model)["method"] == part.study.METHOD
