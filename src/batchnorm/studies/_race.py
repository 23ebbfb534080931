"""How much sooner one arm comes to the best accuracy of another."""

import math
from dataclasses import dataclass
from statistics import fmean, median

from batchnorm.studies._sweep import Run, Sweep


@dataclass(frozen=True)
class Race:
    """To the base's best accuracy: by how much sooner another arm is there.

    Args:
        base_rate: the base's learning rate, where its validation accuracy comes highest.
        rate: the other's, with which it comes to that accuracy soonest on the validation set; for a
            race at the same rate, ``base_rate``.
        lows: log of steps(base) / steps(other), one a seed; ``-inf`` where it never got there.
        highs: the same, but where it never got there, with the steps it was given.
        steps: medians of both arms; ``inf`` for never.
        gained: how much accuracy the base learned.
        every: steps between looks: no arm can be seen to be faster.
        budget: steps that the base was given.
    """

    base_rate: float
    rate: float
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    steps: tuple[float, float]
    gained: float
    every: int
    budget: int

    def note(self) -> str:
        """What was compared, and what the numbers cannot show."""
        base, other = ("never" if s == math.inf else f"{s:g}" for s in self.steps)
        words = [
            f"Learning rates {self.base_rate:g} and {self.rate:g}; median steps {base} and "
            f"{other}, read every {self.every}."
        ]
        if self.steps[0] > 0.9 * self.budget:
            words.append(
                f"The first arm was still improving when its {self.budget} steps ended: with more, "
                "the mark and the ratio would be others."
            )
        never = sum(low == -math.inf for low in self.lows)
        if never:
            words.append(
                f"In {never} of {len(self.lows)} seeds the second arm never got there: 0 for the "
                "lower end, and as if it had at the last step for the upper end."
            )
        return " ".join(words)


def race(base: Sweep, other: Sweep, *, same: bool = False) -> Race:
    """Choose the rates on the validation set, count steps on the test set."""

    def learned(rate: float) -> tuple[float, float]:
        mine = base[rate].values()
        # Of rates that come equally far, the soonest: no arm is compared at a needless handicap.
        took = fmean(_first(r, "validation", max(r.validation)) for r in mine)
        return fmean(max(r.validation) for r in mine), -took

    base_rate = max(base, key=learned)
    marks = base[base_rate]
    seeds = sorted(marks)

    def validated(rate: float) -> tuple[float, float]:
        mine = other[rate]
        reached = median(_first(mine[s], "validation", max(marks[s].validation)) for s in seeds)
        return reached, -fmean(max(mine[s].validation) for s in seeds)

    rate = base_rate if same or other is base else min(other, key=validated)
    mine = other[rate]
    goals = {s: max(marks[s].test) for s in seeds}
    theirs = [_first(marks[s], "test", goals[s]) for s in seeds]
    ours = [_first(mine[s], "test", goals[s]) for s in seeds]
    pairs = list(zip(theirs, ours, [mine[s].budget for s in seeds], strict=True))
    return Race(
        base_rate,
        rate,
        lows=tuple(math.log(t / o) if o < math.inf else -math.inf for t, o, _ in pairs),
        highs=tuple(math.log(t / min(o, budget)) for t, o, budget in pairs),
        steps=(median(theirs), median(ours)),
        gained=median(max(marks[s].test) - marks[s].test[0] for s in seeds),
        every=_every(marks[seeds[0]]),
        budget=marks[seeds[0]].budget,
    )


def _first(run: Run, part: str, goal: float) -> float:
    """The first step at which an accuracy is reached, one look after the start at the soonest."""
    accuracies: tuple[float, ...] = getattr(run, part)
    for step, accuracy in zip(run.steps, accuracies, strict=True):
        if accuracy >= goal:
            return max(step, _every(run))
    return math.inf


def _every(run: Run) -> int:
    return run.steps[1] if len(run.steps) > 1 else run.budget
