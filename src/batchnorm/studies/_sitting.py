"""One stretch of work on a run's folder: from its opening to its end or interruption."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any

from batchnorm.studies._context import Context, Stamped
from batchnorm.studies._earlier import earlier
from batchnorm.studies._engine import run_trials
from batchnorm.studies._estimate import DRAWING, STARTING, Estimate, together
from batchnorm.studies._folder import UNFINISHED, Folder
from batchnorm.studies._manifest import machine, now
from batchnorm.studies._plan import Part
from batchnorm.studies._run import Progress, Share
from batchnorm.studies._trial import Trial
from batchnorm.studies._workers import Outcome, Workers
from batchnorm.train import Row

SAVE_EVERY = 5.0  # seconds: so much of a killed sitting is missing from the total at most
TELL_EVERY = 0.5  # seconds between estimates: each looks at all trials
TIMES = 4  # a timing is the least of so many: whatever else the machine did only adds to it


class Sitting:
    """Runs the trials that a folder lacks, and the timings.

    Args:
        folder: open; its finished trials are taken over where their keys are wanted.
        parts: the studies; marked as failed where one of their trials fails.
        context: has the data.
        jobs: processes, where there is no executor.
        executor: where the trials run; None for processes of our own.
        on_progress: told after every trial.
        replaces: see :class:`Progress`.
    """

    def __init__(
        self,
        folder: Folder,
        parts: list[Part],
        context: Context,
        jobs: int,
        executor: Executor | None,
        on_progress: Callable[[Progress], object],
        replaces: str = "",
    ) -> None:
        self.folder, self.parts, self.on_progress = folder, parts, on_progress
        self.jobs, self.executor, self.replaces = jobs, executor, replaces
        # Studies share what is equal: one key, one trial.
        self.trials = {key: trial for part in parts for key, trial in part.trials.items()}
        self.best: tuple[float, Trial] | None = None
        self.resumed = 0
        for key, trial in self.trials.items():
            if key in folder.finished:
                self.resumed += 1
                self.look_at(trial, folder.finished[key])
        self.earlier = earlier(folder, self.trials.keys() & folder.finished.keys())
        timed = {key for part in parts for key in part.timings}
        # Taken on another machine, or fewer times, they are not comparable.
        same = self.earlier.machine == machine()
        known = {k: e for k, e in self.earlier.timings.items() if same and e.get("turns") == TIMES}
        self.timings = {key: known[key] for key in known if key in timed}
        self.started = self.earlier.started or now()
        self.estimate, self.spent = Estimate(context.examples), 0.0
        self.told = -math.inf
        self.seconds_left: float | None = None
        self.start, self.saved, self.worked = time.monotonic(), -math.inf, False

    def run_trials(self) -> None:
        left = {k: t for k, t in self.trials.items() if k not in self.folder.finished}
        self.estimate.prepare([*left.values(), *self.untimed().values()])
        self.tell("trials", self.resumed, len(self.trials))
        stamped = {key: self.stamped(key, trial) for key, trial in left.items()}
        with Workers(min(self.jobs, len(left)), self.executor) as workers:
            run_trials(stamped, workers, self.take, wanted=self.wanted)

    def take(self, key: str, outcome: Outcome) -> None:
        if outcome.failure is None:
            self.folder.add(key, asdict(self.trials[key]), outcome.rows)
            self.look_at(self.trials[key], outcome.rows)
            self.estimate.learn(self.trials[key], outcome.seconds, cold=outcome.cold)
            self.spent += outcome.seconds
        else:
            self.fail(key, outcome.failure)
        self.worked = True
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()
        self.tell_trials()

    def tell_trials(self) -> None:
        done = sum(key in self.folder.finished for key in self.trials)
        left = sum(self.wanted(key) for key in self.trials if key not in self.folder.finished)
        self.tell("trials", done, done + left)

    def wanted(self, key: str) -> bool:
        return any(part.failed is None and key in part.trials for part in self.parts)

    def fail(self, key: str, why: str) -> None:
        for part in self.parts:
            trial = part.trials.get(key) or part.timings.get(key)
            if trial is not None and part.failed is None:
                part.failed = f"{why}, in the trial {described(trial)}"

    def look_at(self, trial: Trial, rows: list[Row]) -> None:
        accuracies = [row.get("validation_accuracy") for row in rows]
        best = max((value for value in accuracies if value is not None), default=None)
        if best is not None and (self.best is None or best > self.best[0]):
            self.best = best, trial

    def run_timings(self) -> None:
        """Alone and one after another, in turns, so that a slow minute of the machine hits all.

        On this machine, also where trials run on others: seconds of several do not compare.
        """
        left = self.untimed()
        with Workers(1) as workers:
            for turn in range(TIMES):
                for place, (key, trial) in enumerate(left.items()):
                    self.tell("timing", turn * len(left) + place, TIMES * len(left))
                    alone = {key: self.stamped(key, trial)}
                    run_trials(alone, workers, self.take_time)

    def untimed(self) -> dict[str, Trial]:
        wanted = {k: t for p in self.parts if not p.failed for k, t in p.timings.items()}
        return {key: trial for key, trial in wanted.items() if key not in self.timings}

    def stamped(self, key: str, trial: Trial) -> Stamped:
        stamp = next(part.stamps[key] for part in self.parts if key in part.stamps)
        return Stamped(trial, stamp)

    def take_time(self, key: str, outcome: Outcome) -> None:
        self.worked = True
        if outcome.failure is not None:
            return self.fail(key, outcome.failure)
        trial = next(part.timings[key] for part in self.parts if key in part.timings)
        before = self.timings.get(key, {})
        each = [*before.get("each", []), outcome.seconds]
        steps = outcome.rows[-1].get("step") if outcome.rows else None
        measured = {"seconds": min(each), "steps": steps, "turns": len(each), "each": each}
        self.timings[key] = {"key": key, "trial": asdict(trial), **measured}

    def seconds(self, part: Part) -> list[dict[str, Any]]:
        """A row for each of a study's timings: the fields, the key, "seconds", and all "turns"."""
        return [
            {**asdict(trial), "key": key, "seconds": took["seconds"], "turns": took["each"]}
            for key, trial in part.timings.items()
            if (took := self.timings.get(key))
        ]

    @property
    def timing(self) -> dict[str, Any]:
        """What is not the same from run to run: the machine, and seconds."""
        before = self.earlier.seconds
        spent = time.monotonic() - self.start if self.worked or not before else 0.0
        return {
            "machine": machine(),
            "trials": list(self.timings.values()),
            "total_seconds": round(before + spent, 3),
        }

    @property
    def finished(self) -> str:
        """When the last trial ended: now, or in an earlier sitting where none was left to run."""
        return now() if self.worked else self.earlier.finished or now()

    def save(self) -> None:
        """Note how far the run has come, for the sitting that goes on with it."""
        so_far = {"started": self.started, "keys": list(self.trials), **self.timing}
        self.folder.write(UNFINISHED, so_far)
        self.saved = time.monotonic()

    def tell(self, stage: str, done: int, total: int) -> None:
        if stage != "trials" or done == self.resumed or time.monotonic() > self.told + TELL_EVERY:
            self.told = time.monotonic()
            self.seconds_left = self.left(stage, done / total if total else 1.0)
        left = self.seconds_left
        studies = tuple(self.share(part) for part in self.parts)
        so_far = stage, done, total, self.resumed, self.best, left, studies
        self.on_progress(Progress(*so_far, self.replaces))

    def share(self, part: Part) -> Share:
        done = sum(key in self.folder.finished for key in part.trials)
        return Share(
            part.study.NAME, done, len(part.trials), "" if part.status == "done" else part.status
        )

    def left(self, stage: str, timed: float) -> float | None:
        """Seconds until the page, as estimated."""
        if stage == "page":
            return 0.0
        missing = [
            trial
            for key, trial in self.trials.items()
            if key not in self.folder.finished and self.wanted(key)
        ]
        trials = self.estimate.seconds(missing)
        timings = self.estimate.seconds(self.untimed().values())
        side_by_side = self.processes()
        if trials is None or timings is None or (missing and not side_by_side):
            return None
        share = 1 - timed if stage == "timing" else 1.0
        starting = STARTING if missing and not self.spent else 0.0
        around = starting + DRAWING * sum(part.status == "done" for part in self.parts)
        return around + together(trials, side_by_side or 1) + share * TIMES * sum(timings)

    def processes(self) -> float:
        """How many trials run at a time: as asked, or as they did on an executor; 0 before that."""
        if self.executor is None:
            return self.jobs
        return self.spent / max(time.monotonic() - self.start, 1e-9)


def described(trial: Trial) -> str:
    """A trial in a few words.

    >>> described(Trial(batch_norm=True, learning_rate=0.5))
    'with batch norm, sgd, learning rate 0.5, seed 0'
    """
    arm = "with batch norm" if trial.batch_norm else "without batch norm"
    return f"{arm}, {trial.optimizer}, learning rate {trial.learning_rate:g}, seed {trial.seed}"
