"""How long a run takes: told before it, mended while it goes on."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import Tiny, fake_study, go

from batchnorm.data import load
from batchnorm.studies import _workers, overview
from batchnorm.studies._estimate import DRAWING, STARTING, Estimate, together
from batchnorm.studies._trial import Trial

SMALL = Trial(data="digits8x8", depth=2, width=16, steps=200, every=10)


SLEEPY = """
import time
from torch import nn

class Sleepy(nn.Sequential):
    def forward(self, x):
        time.sleep(0.01 if self.training else 0.002)
        return super().forward(x)

def net():
    return Sleepy(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.alone
def test_before_anything_has_run_it_is_that_of_a_few_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sleepy.py").write_text(SLEEPY)
    estimate = Estimate(load)
    trial = replace(SMALL, network="sleepy:net", activation="own")
    assert estimate.seconds([trial]) is None, "nothing is known yet"
    start = time.monotonic()
    estimate.prepare([trial, replace(trial, seed=3, learning_rate=0.5)])
    assert len(estimate.paces) == 1, "what costs the same is tried once"
    (told,) = estimate.seconds([trial])
    # 200 steps of 10 ms and a little; the few steps that were tried took less than all of them.
    assert 0.9 * 2.0 < told < 2.0 * max(4, time.monotonic() - start)
    twice, half = estimate.seconds([replace(trial, steps=400), replace(trial, steps=100)])
    assert half < 0.6 * told < told < 0.6 * twice
    sys.modules.pop("sleepy", None)


def test_trials_that_have_run_tell_better():
    estimate = Estimate(load)
    estimate.prepare([SMALL])
    (first,) = estimate.seconds([SMALL])
    estimate.learn(SMALL, 7.0)
    estimate.learn(replace(SMALL, seed=1, learning_rate=3.0), 9.0)
    other = replace(SMALL, seed=4)
    assert estimate.seconds([other]) == [8.0]
    # What has not run costs by its own steps, so many times as much as those that have.
    (longer,) = estimate.seconds([replace(other, steps=400, every=20)])
    assert longer > 8
    own = replace(other, procedure="depth")
    assert estimate.seconds([own]) == pytest.approx([8.0])
    estimate.learn(replace(own, options={"layers": 3}), 80.0)
    assert estimate.seconds([own]) == pytest.approx([80.0])
    assert first < 8


def test_the_first_trials_of_a_process_do_not_tell_what_the_others_take(monkeypatch):
    monkeypatch.setattr(_workers, "_begun", count())
    told = [_workers.attempt(Tiny(seed=seed)).cold for seed in range(4)]
    assert told == [True, True, False, False]
    estimate = Estimate(load)
    estimate.prepare([SMALL])
    first = estimate.seconds([SMALL])
    estimate.learn(SMALL, 46.0, cold=True)
    assert estimate.seconds([SMALL]) == first
    estimate.learn(SMALL, 7.0)
    assert estimate.seconds([SMALL]) == [7.0]


def test_where_nothing_else_is_known_they_do():
    estimate = Estimate(load)
    estimate.learn(SMALL, 46.0, cold=True)
    assert estimate.seconds([SMALL]) == [46.0]


def test_what_cannot_be_tried_is_left_to_its_trial():
    estimate = Estimate(load)
    estimate.prepare([replace(SMALL, network="nowhere:net")])
    assert estimate.seconds([SMALL]) is None


def test_side_by_side_no_trial_ends_before_it_is_done():
    assert together([], 2) == 0
    assert together([1, 1, 1, 1], 2) == 2
    assert together([1, 1, 1, 9], 2) == 9


def test_a_run_is_told_its_time_and_where_each_study_stands(tmp_path):
    seen = []
    slow = [Tiny(seed=seed, pause=0.2) for seed in range(6)]
    studies = [
        fake_study("slow", slow, timings=[Tiny(seed=9, pause=0.1)]),
        fake_study("half", [*slow[:2], Tiny(seed=7, do="raise")]),
        fake_study("idle", "there is nothing to normalize"),
    ]
    go(studies, tmp_path, jobs=1, on_progress=seen.append)
    assert seen[0].seconds_left is not None, "before anything has run"
    trials = [p for p in seen if p.stage == "trials"]
    told = [p.seconds_left for p in trials]
    assert told[0] > STARTING + 2 * DRAWING, "processes start, and two studies are drawn"
    assert DRAWING < told[-1] < told[1], "it goes down; one study has failed"
    middle = trials[4]  # told by the trials themselves: each sleeps 0.2 s, each timing 0.1 s
    assert 0.2 < middle.seconds_left < 60
    shares = {share.study: share for share in trials[-1].studies}
    assert (shares["slow"].done, shares["slow"].total, shares["slow"].state) == (6, 6, "")
    assert shares["half"].state == "failed"
    assert shares["idle"].state == "not applicable"
    assert seen[-1].stage == "page"
    assert seen[-1].seconds_left == 0


def test_an_executor_of_others_is_timed_before_it_is_foretold(tmp_path):
    seen = []
    with ThreadPoolExecutor(2) as pool:
        trials = [Tiny(seed=seed, pause=0.1) for seed in range(8)]
        go([fake_study("tiny", trials)], tmp_path, executor=pool, on_progress=seen.append)
    assert seen[0].seconds_left is None, "nobody knows how many run at a time"
    assert any(p.seconds_left is not None for p in seen[1:-1])


def test_an_overview_does_nothing_but_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans, seconds = overview(["speed", "learning_rate"], data="digits8x8", jobs=2)
    assert [plan.name for plan in plans] == ["speed", "learning_rate"]
    assert all(plan.trials and plan.seconds for plan in plans)
    assert max(plan.seconds for plan in plans) <= seconds
    assert seconds < sum(plan.seconds for plan in plans), "shared trials are counted once"
    assert all(plan.seconds > STARTING + DRAWING for plan in plans)
    assert seconds > STARTING + 2 * DRAWING
    assert not any(tmp_path.iterdir())
