"""Studies on their own trials, cut down and run, with a sound batch norm and with one that is not.

Headlines, and some verdicts beside them, that come out the other way for a layer, a network or data
made for it: a study that cannot fail is no study.
"""

import math
from dataclasses import replace

import pytest

from batchnorm.studies import (
    bias,
    depth,
    identity,
    initialization,
    learning_rate,
    new_domain,
    optimizers,
    placement,
    shift,
    speed,
)
from batchnorm.studies import test_time as averages
from batchnorm.studies._trial import Setup
from studies import forced

HERE = forced.__name__
SUPPORTED, CONTRADICTED = "supported", "contradicted"


def cut(
    study, *, data="digits8x8", scale="quick", activation="relu", seeds=3, where=None, **fields
):
    """The study's trials of one network, of few seeds, with these fields."""
    trials = study.trials(Setup(data=data, scale=scale))
    mine = [t for t in trials if t.activation == activation and t.seed < seeds]
    return [replace(t, **fields) for t in mine if where is None or where(t)]


def both(study, trials, fault, normed=lambda trial: trial.batch_norm):
    """The words on the sound layer and on the faulty one; what has no batch norm is run once."""
    plain = forced.rows_of([trial for trial in trials if not normed(trial)])
    mine = [trial for trial in trials if normed(trial)]
    return tuple(
        forced.words(study, plain + forced.rows_of(mine, one)) for one in (forced.sound, fault)
    )


def headline(words):
    return next(iter(words.values()))


def test_speed():
    trials = cut(
        speed,
        activation="sigmoid",
        where=lambda t: t.learning_rate in (1.0, 3.16),
        steps=200,
        depth=1,
        width=50,
    )
    usual, other = both(speed, trials, forced.faint)
    assert headline(usual) == usual["steps, sigmoid, same rate"] == SUPPORTED
    assert headline(other) == other["steps, sigmoid, same rate"] == CONTRADICTED


def test_learning_rate():
    def on_grid(trial):
        power = math.log10(trial.learning_rate)
        return -1.8 < power < 0.8 and abs(4 * power - round(4 * power)) < 0.01

    trials = cut(learning_rate, scale="full", seeds=2, where=on_grid, steps=150, every=150, depth=1)
    usual, other = both(learning_rate, trials, forced.contrary)
    assert headline(usual) != CONTRADICTED
    assert headline(other) == CONTRADICTED


def test_learning_rate_of_a_network_that_few_rates_suit():
    def on_grid(trial):
        power = 4 * math.log10(trial.learning_rate)
        return -7.2 < power < 6.4 and abs(power - round(power)) < 0.04

    # Two layers of sigmoids learn little in 150 steps, but for rates about 2.
    fields = {"activation": "sigmoid", "steps": 150, "every": 150, "depth": 2, "width": 50}
    trials = cut(learning_rate, scale="full", seeds=2, where=on_grid, **fields)
    usual, other = both(learning_rate, trials, forced.cubic)
    assert headline(usual) == SUPPORTED
    assert headline(other) != SUPPORTED


def test_initialization():
    trials = cut(initialization, steps=200, every=200, depth=1, learning_rate=0.5)
    usual, other = both(initialization, trials, forced.cubic)
    assert headline(usual) != CONTRADICTED
    assert headline(other) == CONTRADICTED


def shallow(trial):
    options = dict(trial.options)
    if "layers" in options:
        return replace(trial, options=options | {"layers": 10})
    depths = (2, 4, 8, 16) if options["residual"] else (2, 4, 8)
    return replace(trial, steps=60, options=options | {"depths": depths, "rates": (0.1,)})


def test_depth():
    trials = list(map(shallow, cut(depth)))
    usual, other = both(depth, trials, forced.deaf)
    assert headline(usual) != CONTRADICTED
    assert headline(other) == CONTRADICTED
    assert usual["trainable depth, residual, He weights"] == SUPPORTED
    assert other["trainable depth, residual, He weights"] == CONTRADICTED
    growth = "growth of gradients, plain, He weights"
    assert (usual[growth], other[growth]) == (SUPPORTED, CONTRADICTED)


def test_shift():
    usual, other = both(shift, cut(shift, steps=80, every=20), forced.restless)
    assert headline(usual) == SUPPORTED
    assert headline(other) == CONTRADICTED


def test_new_domain_shields():
    trials = cut(new_domain, data=f"{HERE}:pale", steps=150, every=150)
    usual, other = both(new_domain, trials, forced.by_itself)
    assert headline(usual) == CONTRADICTED
    assert headline(other) == SUPPORTED


def test_new_domain_recovers():
    trials = cut(new_domain, steps=60, every=60)
    usual, other = both(new_domain, trials, forced.turned_round)
    for metric in ("recovered, 512 images", "recovered, dimmed", "recovered, brightened"):
        assert (usual[metric], other[metric]) == (SUPPORTED, CONTRADICTED)


@pytest.mark.parametrize(
    ("fault", "word"),
    [(forced.no_negatives, CONTRADICTED), (forced.no_positives, SUPPORTED)],
)
def test_placement(fault, word):
    trials = cut(placement, where=lambda t: t.learning_rate in (0.316, 1.0), steps=40, every=20)
    words = forced.words(placement, forced.rows_of(trials, fault))
    assert headline(words) == word


def test_optimizers():
    rates = {
        "sgd": (0.1, 0.316),
        "momentum": (0.01, 0.1),
        "rmsprop": (0.00316, 0.0316),
        "adam": (0.001, 0.01),
    }
    trials = cut(
        optimizers, where=lambda t: t.learning_rate in rates[t.optimizer], steps=60, every=20
    )
    usual, other = both(optimizers, trials, forced.faint)
    assert headline(usual) == SUPPORTED
    assert headline(other) == CONTRADICTED


def test_identity():
    trials = cut(identity, steps=20, every=20, options={"draws": 4})

    def words(fault):
        return forced.words(identity, forced.rows_of(trials, fault))

    usual, other = words(forced.sound), words(forced.by_the_averages)
    fixed, own, law = "training, fixed parameters", "training, its own moments", "law of the error"
    assert headline(usual) == usual[own] == SUPPORTED
    assert usual[fixed] == CONTRADICTED
    assert other[fixed] == SUPPORTED
    assert other[own] == CONTRADICTED
    assert usual[law] != CONTRADICTED
    assert words(forced.by_a_quarter)[law] == CONTRADICTED
    assert headline(words(forced.restless)) == SUPPORTED, "a fault in training alone"
    faint = words(forced.faint)
    assert headline(faint) == faint["answers"] == faint[own] == CONTRADICTED


def test_bias():
    trials = cut(bias, steps=20, every=10)
    metric = "evaluation with b shifted"
    usual, other = both(bias, trials, forced.by_itself)
    assert (usual[metric], other[metric]) == (CONTRADICTED, SUPPORTED)
    assert headline(usual) == SUPPORTED
    kept = forced.words(bias, forced.rows_of(trials, forced.uncentred))
    shifted, stays = "training with b shifted", "b stays, gradient descent"
    assert usual[shifted] == usual[stays] == SUPPORTED
    assert headline(kept) == kept[shifted] == kept[stays] == CONTRADICTED


def test_test_time():
    def words(network, fault=forced.sound):
        trials = averages.trials(Setup(model=f"{HERE}:{network}", data="digits8x8"))
        mine = [replace(t, steps=60, options={"looks": (60,)}) for t in trials if t.seed < 3]
        return forced.words(averages, forced.rows_of(mine, fault))

    alone = "one example, your network"
    usual, other = words("resting"), words("creeping")
    assert headline(usual) != CONTRADICTED
    assert headline(other) == CONTRADICTED
    assert usual[alone] == other[alone] == SUPPORTED
    assert words("resting", forced.by_itself)[alone] == CONTRADICTED
