"""Intervals that are right where it can be known, and words that follow the rule alone."""

import math

import numpy as np
import pytest

from batchnorm.studies._verdict import bootstrap, decide

INF = math.inf


def test_an_interval_is_the_same_on_every_call_and_leaves_random_states_alone():
    values = np.random.default_rng(1).normal(size=20).tolist()
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    assert bootstrap(values) == bootstrap(values)
    assert np.array_equal(np.random.get_state()[1], before)


def test_the_median_of_five_spans_them_all():
    assert bootstrap([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 1.0, 5.0)
    assert bootstrap([2.0, 1.0]) == (1.5, 1.0, 2.0)
    assert bootstrap([7.0]) == (7.0, 7.0, 7.0)


def test_intervals_cover_the_true_median_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = bootstrap(random.normal(size=15).tolist())
        covered += low <= 0 <= high
    assert 0.90 <= covered / 200 <= 1


def test_more_seeds_narrow_the_interval():
    random = np.random.default_rng(0)
    few, many = random.normal(size=10), random.normal(size=200)
    width = [high - low for _, low, high in map(bootstrap, (few.tolist(), many.tolist()))]
    assert width[1] < width[0] / 2


def test_censored_differences_open_the_interval_on_their_side():
    assert bootstrap([1, 2, 3, -INF, -INF], [1, 2, 3, 0.5, 0.5]) == (1, -INF, 3)
    assert bootstrap([1, 2, 3, 4, 5], [1, 2, 3, INF, INF]) == (3, 1, INF)
    assert bootstrap([-INF] * 5, [0.1] * 5) == (0.1, -INF, 0.1)
    assert bootstrap([-INF] * 4, [INF] * 4) == (INF, -INF, INF)


@pytest.mark.parametrize("given", [([], None), ([1.0], [1.0, 2.0])])
def test_wrong_numbers_of_differences_are_named(given):
    with pytest.raises(ValueError, match=r"\d lows and \d highs; expected one of each"):
        bootstrap(*given)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.1, 2.0, "supported"),
        (1.2, INF, "supported"),
        (1.09, 2.0, "inconclusive"),
        (0.5, 1.1, "inconclusive"),
        (0.0, INF, "inconclusive"),
        (1.0, 1.09, "not supported"),
        (0.9, 1.05, "not supported"),
        (0.5, 1.0, "not supported"),
        (0.5, 0.99, "contradicted"),
        (0.0, 0.2, "contradicted"),
    ],
)
def test_each_word_and_its_edges(low, high, word):
    assert decide(low, high, none=1, claimed=1.1) == word
    assert decide(-high, -low, none=-1, claimed=-1.1) == word, "a claim that something is smaller"


@pytest.mark.parametrize("ends", [(2.0, 1.0, 0, 1), (0, 1, 1, 1), (math.nan, 1, 0, 1)])
def test_marks_that_cannot_decide(ends):
    low, high, none, claimed = ends
    with pytest.raises(ValueError, match="expected low <= high and two different marks"):
        decide(low, high, none=none, claimed=claimed)
