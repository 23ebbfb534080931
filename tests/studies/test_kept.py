"""What of a trial's rows is kept, and that no measure misses the rest."""

import json
from dataclasses import replace

import numpy as np
import pytest

from batchnorm.data import load
from batchnorm.studies._folder import opened
from batchnorm.studies._kept import ENOUGH, LOSSES, rounded, thinned
from batchnorm.studies._network import build
from batchnorm.studies._sweep import ends, runs
from batchnorm.studies._trial import Trial, descended

SHORT = Trial(data="digits8x8", width=20, depth=1, steps=60, every=5)


@pytest.fixture(scope="module")
def trained():
    """Rows as training gives them, of a run that learns and of one that leaves the numbers."""
    data = load(SHORT.data)
    trials = [SHORT, replace(SHORT, learning_rate=1e20, seed=1)]
    return [(trial, descended(trial, build(trial, data), data)) for trial in trials]


def read(trial, rows):
    """All that studies read of a run of training: as arms and rates, and its end."""
    named = [{"steps": trial.steps, "learning_rate": 1.0, "seed": 0, **row} for row in rows]
    return runs(named, lambda row: "one")["one"][1.0][0], ends(named)[-1]


def test_what_is_read_of_a_run_is_kept(trained):
    for trial, rows in trained:
        whole, last = read(trial, rounded(rows, ENOUGH))
        kept, end = read(trial, thinned(rows))
        assert kept == whole
        assert {**end, "peak_loss": 0} == {**last, "peak_loss": 0}
    finished, lost = (read(trial, rows)[0] for trial, rows in trained)
    assert (finished.diverged, lost.diverged, lost.finished) == (False, True, False)


def test_between_the_ends_there_is_a_step_and_two_accuracies(trained):
    trial, rows = trained[0]
    kept = trial.run()
    assert kept == thinned(rows)
    names = {"step", "validation_accuracy", "test_accuracy"}
    assert [row.keys() for row in kept[1:-1]] == [names] * (len(rows) - 2)
    assert set(LOSSES) < kept[0].keys() & kept[-1].keys()
    assert len(json.dumps(kept)) < 0.6 * len(json.dumps(rows))


def test_a_peak_of_the_loss_on_the_way_is_still_a_divergence(trained):
    trial, rows = trained[0]
    peak = 1001 * rows[0]["validation_loss"]
    high = [*rows[:3], {**rows[3], "peak_loss": peak}, *rows[4:]]
    run, _ = read(trial, thinned(high))
    assert run.diverged
    assert run.finished
    assert thinned(high)[-1]["peak_loss"] == pytest.approx(peak, rel=1e-5)


def test_few_rows_are_as_they_were(trained):
    ends = [{"step": 0, "peak_loss": None}, {"step": 9, "peak_loss": 1.5}]
    assert thinned(ends) == ends
    assert thinned(ends[:1]) == ends[:1]


def test_a_folder_keeps_every_number_of_float32(tmp_path):
    generator = np.random.default_rng(0)
    drawn = (generator.normal(size=500) * 10.0 ** generator.integers(-30, 30, 500)).astype("f4")
    given = [float(one) + 1e-12 * float(one) for one in drawn]  # as sums in float64 are
    with opened(tmp_path / "run") as folder:
        folder.add("key", {}, [{"step": 12345678901, "values": given, "one": given[0]}])
        (row,) = folder.finished["key"]
    assert row["step"] == 12345678901
    assert (np.array(row["values"], dtype="f4") == drawn).all()
    digits = [len(f"{one!r}".partition("e")[0].strip("-0.").replace(".", "")) for one in given]
    kept = [
        len(f"{one!r}".partition("e")[0].strip("-0.").replace(".", "")) for one in row["values"]
    ]
    assert max(kept) == 9 < max(digits)
