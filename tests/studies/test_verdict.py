"""Intervals that are right where it can be known, and words that follow the rule alone."""

import math

import numpy as np
import pytest

from batchnorm.studies._verdict import WHOLE_RANGE, bootstrap, decide, interval

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


def test_what_an_interval_is_is_said_exactly():
    assert interval(5) == (
        "the range over 5 paired seeds, which holds the true median with 93.75 % confidence"
    )
    assert "87.5 %" in interval(4)
    assert interval(1) == "no interval: there is one seed"
    assert interval(6) == "a bootstrap 95 % interval of the median over 6 paired seeds"


@pytest.mark.parametrize("seeds", range(2, 12))
def test_an_interval_is_called_a_range_where_it_is_one(seeds):
    values = [float(i * i) for i in range(seeds)]
    whole = bootstrap(values)[1:] == (values[0], values[-1])
    assert whole == (seeds <= WHOLE_RANGE) == ("range" in interval(seeds))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_range_holds_the_true_median_as_often_as_is_said(seeds):
    drawn = np.random.default_rng(0).exponential(size=(20_000, seeds))
    held = np.mean((drawn.min(1) <= math.log(2)) & (math.log(2) <= drawn.max(1)))
    said = float(interval(seeds).rpartition("with ")[2].partition(" %")[0]) / 100
    assert held == pytest.approx(said, abs=0.006)


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


def test_a_median_that_is_unbounded_on_a_side_is_no_value():
    assert bootstrap([-INF] * 5, [0.1] * 5) == (None, -INF, 0.1)
    assert bootstrap([1, 2, -INF, -INF, -INF], [1, 2, 0.5, 0.5, 0.5]) == (None, -INF, 2)
    assert bootstrap([2.0] * 4, [INF] * 4) == (None, 2, INF)
    assert bootstrap([-INF] * 4, [INF] * 4) == (None, -INF, INF)


def test_of_brackets_the_value_is_the_middle_and_the_interval_the_whole():
    assert bootstrap([0.25] * 5, [0.75] * 5) == (0.5, 0.25, 0.75)


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
