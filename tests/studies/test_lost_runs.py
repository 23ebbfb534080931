"""A run that diverged counts as untrained: one rule, wherever accuracies at the end are compared."""

from dataclasses import replace
from importlib import import_module

import pytest

from batchnorm.studies._asked import STUDIES
from batchnorm.studies._best import accuracies_at_best
from batchnorm.studies._range import mean_accuracy, working
from batchnorm.studies._scales import at_best
from batchnorm.studies._sweep import LOST, runs
from batchnorm.studies._trial import Trial
from studies.made_up import made

START = 0.3
COMPARED = (
    *("optimizers", "placement", "dropout", "small_batch", "learning_rate", "initialization"),
    "scale_and_shift",
)


def swept(ends):
    """One arm's rows: an accuracy at the end a rate and seed, None for a run that diverged."""
    return [
        row
        for rate, seeds in ends.items()
        for seed, end in enumerate(seeds)
        for row in made(
            Trial(learning_rate=rate, seed=seed), end or 0.9, diverged=end is None, start=START
        )
    ]


def sweep(ends):
    return runs(swept(ends), lambda row: "arm")["arm"]


def test_a_run_that_diverged_has_what_it_began_with():
    lost, kept = sweep({0.1: [None, 0.8]})[0.1].values()
    for part in ("validation", "test"):
        assert (lost.end(part), kept.end(part)) == (START, 0.8)
    assert lost.diverged


def test_it_counts_so_at_the_best_rate_over_a_grid_and_in_choosing():
    # 0.1 is best: (0.3 + 0.9) / 2 = 0.6. With 0 for the lost run 1.0 would be, by 0.5 to 0.45.
    ends = {0.1: [None, 0.9], 1.0: [0.5, 0.5]}
    assert accuracies_at_best(sweep(ends)) == (0.1, {0: START, 1: 0.9})
    over_the_grid = mean_accuracy(sweep(ends), 0)
    assert (over_the_grid.least, over_the_grid.most) == (START, 0.5)
    assert working(sweep({0.1: [None], 1.0: [0.2]}), 0, near=0.02).accuracy == START
    rows = [row | {"trained": "all"} for row in swept(ends)]
    assert {row["learning_rate"] for row in at_best(rows)[0]} == {0.1}


def test_a_run_without_numbers_from_the_start_has_none():
    nothing = {"validation_accuracy": None, "test_accuracy": None}
    rows = [row | nothing for row in made(Trial(), 0.9, diverged=True)]
    assert runs(rows, lambda row: "arm")["arm"][0.1][0].end("test") == 0


def test_numbers_lost_on_the_way_are_no_accuracy_of_0():
    rows = list(made(replace(Trial(), steps=20), 0.9, start=START))
    between = rows[1] | {"step": 10, "validation_accuracy": None, "test_accuracy": None}
    assert runs([rows[0], between, rows[1]], lambda row: "arm")["arm"][0.1][0].test == (
        0.3,
        0.3,
        0.9,
    )


@pytest.mark.parametrize("name", STUDIES)
def test_studies_that_compare_ends_say_so(name):
    assert (LOST in import_module(f"batchnorm.studies.{name}").METHOD) is (name in COMPARED)
