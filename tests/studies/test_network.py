"""What the embedded and the user's networks are called."""

from dataclasses import replace
from pathlib import Path

from batchnorm.data import load
from batchnorm.studies._context import Context
from batchnorm.studies._manifest import about
from batchnorm.studies._network import summary
from batchnorm.studies._plan import chosen, planned
from batchnorm.studies._trial import Setup, Trial


def test_networks_of_one_shape_are_named_once():
    digits = load("digits8x8")
    trials = [Trial(activation=kind, seed=seed) for kind in ("sigmoid", "relu") for seed in (0, 1)]
    assert (
        summary(trials, digits) == "64-100-100-100-10, fully connected, with sigmoid and with ReLU"
    )
    deep = [replace(trials[-1], depth=1, width=5), trials[-1]]
    assert summary(deep, digits) == (
        "64-5-10, fully connected, with ReLU; 64-100-100-100-10, fully connected, with ReLU"
    )
    assert summary([Trial(network="mine:net", activation="own")] * 2, digits) == "mine:net"
    assert summary([], digits) == ""


def test_a_run_names_the_networks_that_it_trains_on_its_data():
    setup, context = Setup(), Context()
    heads = {
        name: about(planned(chosen(name), setup, context), setup, context, Path("out"), 1)
        for name in ("speed", "learning_rate")
    }
    # The premise of speed on tabular data is another network on other data.
    network = "784-100-100-100-10, fully connected, with"
    assert heads["speed"]["network"] == f"{network} sigmoid and with ReLU"
    assert heads["learning_rate"]["network"] == f"{network} ReLU", "at the quick scale"
