"""Another first seed: every study on seeds of its own, and nothing else about it changes."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import SETUP, Tiny, fake_study, go

from batchnorm.studies._asked import STUDIES
from batchnorm.studies._context import Context
from batchnorm.studies._plan import chosen, planned
from batchnorm.studies._trial import Setup


@pytest.fixture(scope="module")
def context():
    return Context()


@pytest.mark.parametrize("name", STUDIES)
def test_all_trials_are_those_of_seed_0_further_on(name, context):
    first, second = (
        planned(chosen(name), Setup(seed=seed), context)[0] for seed in (Setup.seed, 100)
    )
    for of in ("trials", "timings"):
        mine, theirs = (list(getattr(part, of).values()) for part in (first, second))
        assert [replace(trial, seed=trial.seed + 100) for trial in mine] == theirs
        assert not getattr(first, of).keys() & getattr(second, of).keys()


@pytest.mark.parametrize("name", STUDIES)
def test_seed_0_is_what_the_study_itself_says(name, context):
    (part,) = planned(chosen(name), Setup(), context)
    trials = part.study.trials(Setup())
    assert part.trials == {trial.key(str(context.of(trial))): trial for trial in trials}


def test_a_run_from_another_seed_says_so_and_shares_no_row(tmp_path):
    study = fake_study("tiny", [Tiny(seed=seed) for seed in range(3)], timings=[Tiny()])
    with ThreadPoolExecutor(1) as pool:
        go([study], tmp_path, executor=pool)
        run = go([study], tmp_path, executor=pool, setup=replace(SETUP, seed=7))
    assert (run.trials, run.resumed) == (3, 0)
    records = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert sorted(record["trial"]["seed"] for record in records) == [0, 1, 2, 7, 8, 9]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["seed"], manifest["seeds"]) == (7, [7, 8, 9])
    again = manifest["command"]
    assert again == f"batchnorm study tiny --data digits8x8 --seed 7 --out {tmp_path}"
    assert "--seed 7" in manifest["studies"][0]["command"]
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert [entry["trial"]["seed"] for entry in timing["trials"]] == [7]
