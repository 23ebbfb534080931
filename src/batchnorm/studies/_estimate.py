"""How long trials will take: from a few steps tried here, then from the trials that have run."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from statistics import mean

import torch

from batchnorm.data import Data, Examples
from batchnorm.studies._network import build
from batchnorm.studies._trial import Trial
from batchnorm.train import evaluate, train

TRYING = 2.0  # seconds for all that is tried: networks after that are taken to cost the average
STEPS = 20  # tried
SLOW = 0.5  # seconds: a step that takes longer is tried once
LOOKED_AT = 200  # examples evaluated
# Seconds besides the trials, as taken on a core of 2026: until a process has trained its first
# step; a study's charts and its place on the page.
STARTING, DRAWING = 3.5, 1.2


@dataclass(frozen=True)
class Pace:
    """What a network costs, in seconds.

    Args:
        start: of a trial, before its first step.
        step: of training.
        example: evaluated.
    """

    start: float
    step: float
    example: float


@dataclass
class Estimate:
    """Seconds of one thread for each trial; better the more trials have run.

    Args:
        examples: the data set of a name.
    """

    examples: Callable[[str], Data]
    paces: dict[Trial, Pace] = field(default_factory=dict[Trial, Pace])
    took: dict[Trial, list[float]] = field(default_factory=lambda: defaultdict(list))

    def prepare(self, trials: Iterable[Trial]) -> None:
        """Try a few steps of each network; of at most so many that it stays a moment."""
        end = time.monotonic() + TRYING
        for network in dict.fromkeys(map(_network, trials)):
            if network not in self.paces and time.monotonic() < end:
                pace = _tried(network, self.examples(network.data))
                self.paces |= {} if pace is None else {network: pace}

    def learn(self, trial: Trial, seconds: float, *, cold: bool = False) -> None:
        """Take in what a trial took; of a cold one only where nothing else is known.

        The first trials of a process load and compile: taken for all, they would foretell hours
        where minutes are left.
        """
        if cold and self.paces:
            return
        self.took[_kind(trial)].append(seconds)

    def seconds(self, trials: Iterable[Trial]) -> list[float] | None:
        """Of each trial; None where nothing is known of any network."""
        if not self.paces and not self.took:
            return None
        ratios = self._ratios()
        return [self._of(trial, ratios) for trial in trials]

    def _of(self, trial: Trial, ratios: dict[str, float]) -> float:
        if took := self.took.get(_kind(trial)):
            return mean(took)
        # A study's own procedure may do more than train: others of its trials tell how much.
        known = ratios.get(trial.procedure, ratios.get("", 1.0))
        return known * self._first(trial)

    def _first(self, trial: Trial) -> float:
        """By the steps that were tried."""
        paces = self.paces
        pace = paces.get(_network(trial)) or _average(paces.values())
        data = self.examples(trial.data)
        rows = 1 + trial.steps / trial.every
        return (
            pace.start
            + trial.steps * pace.step
            + rows * pace.example * (len(data.validation) + len(data.test))
        )

    def _ratios(self) -> dict[str, float]:
        """What trials took over what was expected of them, by procedure, and of all under ""."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for trial, took in self.took.items():
            for name in (trial.procedure, ""):
                sums[name][0] += sum(took)
                sums[name][1] += len(took) * self._first(trial)
        return {name: real / first for name, (real, first) in sums.items() if first > 0}


def _average(paces: Iterable[Pace]) -> Pace:
    known = list(paces) or [Pace(0.0, 0.0, 0.0)]
    return Pace(*(mean(one) for one in zip(*map(astuple, known), strict=True)))


def together(seconds: Iterable[float], processes: float) -> float:
    """How long trials take side by side.

    >>> together([1.0, 1.0, 4.0], 2)
    4.0
    """
    each = list(seconds)
    return max([sum(each) / processes, *each], default=0.0)


@cache
def _kind(trial: Trial) -> Trial:
    """Trials that cost the same: they differ in numbers that no work depends on."""
    return replace(trial, seed=0, learning_rate=1.0, init_scale=1.0)


@cache
def _network(trial: Trial) -> Trial:
    plain = {"optimizer": Trial.optimizer, "procedure": "train", "options": ()}
    return replace(_kind(trial), steps=STEPS, every=STEPS, **plain)


def _tried(trial: Trial, data: Data) -> Pace | None:
    """What the network costs; None where it cannot be tried: the trial itself will say why."""
    few = replace(data, validation=_first(data.validation, 2), test=_first(data.test, 2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as trials have
    try:
        network = build(trial, data)

        def seconds(steps: int) -> float:
            start = time.perf_counter()
            train(network, few, batch_size=trial.batch_size, steps=steps, every=steps)
            return time.perf_counter() - start

        first = seconds(1)
        if first > SLOW:  # it also loads what it calls
            first = seconds(1)
        slow = first > SLOW
        if not slow:  # the least of two: whatever else the machine does only adds
            first, more = (min(seconds(n) for _ in range(2)) for n in (1, 1 + STEPS))
            step = max(0.0, more - first) / STEPS
        else:
            step = first / 2
        looked_at = _first(data.validation, 2 if slow else LOOKED_AT)
        start = time.perf_counter()
        evaluate(network, looked_at)
        return Pace(first, step, (time.perf_counter() - start) / len(looked_at))
    except Exception:
        return None
    finally:
        torch.set_num_threads(threads)


def _first(examples: Examples, count: int) -> Examples:
    return Examples(examples.x[:count], examples.y[:count])
