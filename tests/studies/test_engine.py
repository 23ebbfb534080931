"""The engine: order, sharing, failures, and workers that die, by simulation and for real."""

import os
import signal
import sys
import threading
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import Tiny

from batchnorm.studies._engine import GIVE_UP, _Rounds, run_trials
from batchnorm.studies._workers import Outcome, Workers, attempt, reason


def outcomes_of(trials, workers, **options):
    outcomes = {}

    def take(key, outcome):
        assert key not in outcomes, "reported twice"
        outcomes[key] = outcome

    run_trials(trials, workers, take, **options)
    return outcomes


class Simulated:
    """Stands for :class:`Workers`: trials are words; one of ``killers`` breaks all that are out."""

    def __init__(self, killers=(), window=4, given=None, deaths=99):
        self.killers, self.window, self.given = killers, window, given
        self.deaths, self.replaced, self.out, self.ran = deaths, 0, {}, []
        self.lock = threading.Lock()

    def submit(self, trial):
        self.ran.append(trial)
        with self.lock:
            self.out[trial] = future = Future()
        threading.Timer(0.02, self.settle).start()
        return future

    def settle(self):
        with self.lock:
            out, self.out = self.out, {}
        dead = self.deaths > 0 and any(trial in self.killers for trial in out)
        self.deaths -= dead
        for future in out.values():
            if dead:
                future.set_exception(BrokenExecutor("dead"))
            else:
                future.set_result(Outcome([{"step": 0}], 0.0))

    def replace(self):
        self.replaced += 1


def named(words):
    return {word: word for word in words}


def test_a_killer_is_named_and_its_neighbours_go_through():
    workers = Simulated(killers={"c", "f"})
    outcomes = outcomes_of(named("abcdefgh"), workers)
    assert {key for key, outcome in outcomes.items() if outcome.failure} == {"c", "f"}
    assert set(outcomes) == set("abcdefgh")
    assert outcomes["c"].failure == (
        "its worker process died 3 times (killed, crashed or out of memory)"
    )
    assert workers.ran.count("c") == 3


def test_a_trial_whose_worker_is_killed_twice_from_outside_goes_through():
    outcomes = outcomes_of(named("abc"), Simulated(killers={"b"}, deaths=2))
    assert all(outcome.failure is None for outcome in outcomes.values())


@pytest.mark.parametrize("queue", ["waiting", "alone"])
def test_a_trial_that_could_not_be_handed_over_waits_where_it_did(queue):
    class Broken(Simulated):
        def submit(self, trial):
            raise BrokenExecutor("dead before it was handed anything")

    rounds = _Rounds(named("ab"), Broken(), lambda *_: None, lambda key: True)
    rounds.waiting.clear()
    getattr(rounds, queue).extend("ab")
    assert rounds.hand_over()
    assert list(getattr(rounds, queue)) == ["a", "b"]
    assert len(rounds.waiting) + len(rounds.alone) == 2


def test_workers_that_never_live_are_given_up():
    workers = Simulated(killers=set("abcdefghijklmnopqrstuvwxyz"), window=2)
    outcomes = outcomes_of(named("abcdefghijklmnopqrstuvwxyz"), workers)
    assert len(outcomes) == 26
    assert outcomes["z"].failure == "worker processes broke down and cannot be replaced"
    assert len(workers.ran) <= 2 * GIVE_UP


def test_a_given_executor_that_breaks_is_not_replaced():
    workers = Simulated(killers={"d"}, given=object(), window=2)
    outcomes = outcomes_of(named("abcde"), workers)
    assert [outcomes[key].failure for key in "ab"] == [None, None]
    assert {outcomes[key].failure for key in "de"} == {
        "the given executor broke down and cannot be replaced"
    }
    assert workers.replaced == 0


def test_trials_that_nobody_wants_any_more_are_left_out():
    seen = []
    trials = {str(seed): Tiny(seed=seed) for seed in range(4)}
    with ThreadPoolExecutor(1) as pool:
        workers = Workers(1, pool)
        run_trials(trials, workers, lambda key, _: seen.append(key), wanted=lambda key: key != "2")
    assert seen == ["0", "1", "3"]


def test_an_interruption_cancels_what_has_not_begun():
    trials = {str(seed): Tiny(seed=seed, pause=0.05) for seed in range(20)}

    def interrupt(key, outcome):
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        futures = []
        workers = Workers(1, pool)
        submit = workers.submit
        workers.submit = lambda trial: futures.append(submit(trial)) or futures[-1]
        with pytest.raises(KeyboardInterrupt):
            run_trials(trials, workers, interrupt)
        assert sum(future.cancelled() for future in futures) >= 17


def test_an_interruption_of_our_own_workers_is_silent(caplog, monkeypatch):
    def interrupt(key, outcome):
        raise KeyboardInterrupt

    # Many are out, so that some have not begun: loky's thread raised over those once cancelled.
    monkeypatch.setattr(Workers, "window", 30)
    trials = {str(seed): Tiny(seed=seed) for seed in range(30)}
    with pytest.raises(KeyboardInterrupt), Workers(1) as workers:
        run_trials(trials, workers, interrupt)
    assert caplog.text == ""


@pytest.mark.parametrize("jobs", [1, 3])
def test_threads_do_not_mix_their_seeds(jobs):
    trials = {str(seed): Tiny(seed=seed, pause=0.005) for seed in range(12)}
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = outcomes_of(trials, Workers(jobs, pool))
    assert {key: outcome.rows for key, outcome in outcomes.items()} == {
        key: trial.run() for key, trial in trials.items()
    }


def test_what_raises_is_told_in_one_line_with_its_place():
    outcome = attempt(Tiny(do="raise"))
    assert outcome.rows == []
    assert outcome.failure.startswith("ValueError: this trial always raises (fake_studies.py, line")
    assert attempt(Tiny(do="exit")).failure.startswith("SystemExit: leaving (fake_studies.py")
    assert reason(KeyError()) == "KeyError"


def test_what_diverges_is_a_result():
    rows = attempt(Tiny(do="nan")).rows
    assert rows[3]["loss"] is None
    assert rows[2]["loss"] is not None


def test_processes_give_the_rows_of_this_one_and_survive_kills(tmp_path):
    flag = tmp_path / "has died"
    trials = {str(seed): Tiny(seed=seed, pause=0.02) for seed in range(30)}
    trials["3"] = Tiny(do="die once", flag=str(flag))
    trials["5"] = Tiny(do="raise")
    trials["7"] = Tiny(do="nan", seed=7)
    outcomes, killed = {}, []

    def take(key, outcome):
        outcomes[key] = outcome
        if len(outcomes) == 15:  # and one from outside, as the kernel does when memory is short
            killed.append(next(iter(workers.own._processes)))
            os.kill(killed[0], signal.SIGKILL)

    with Workers(2) as workers:
        run_trials(trials, workers, take)
        processes = list(workers.own._processes)
    assert flag.exists()
    assert killed
    assert killed[0] not in processes
    assert outcomes.pop("5").failure.startswith("ValueError: this trial always raises")
    assert [outcome.failure for outcome in outcomes.values()] == [None] * 29
    expected = {key: attempt(trials[key]).rows for key in outcomes}
    assert {key: outcome.rows for key, outcome in outcomes.items()} == expected
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_trial_that_always_kills_its_process_is_reported():
    trials = {"bad": Tiny(do="die"), "good": Tiny(seed=1), "fine": Tiny(seed=2)}
    with Workers(2) as workers:
        outcomes = outcomes_of(trials, workers)
    assert outcomes["bad"].failure.startswith("its worker process died 3 times")
    assert outcomes["good"].rows == Tiny(seed=1).run()
    assert outcomes["fine"].failure is None


def test_a_worker_has_one_torch_thread_however_many_the_parent_has():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers(1) as workers:
            workers.submit(Tiny()).result()
            assert workers.own.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
