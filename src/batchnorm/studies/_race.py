"""How much sooner one arm comes to the best accuracy of another."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean, median

from batchnorm.studies._pace import Cost
from batchnorm.studies._sweep import Run, Sweep, too_few
from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, bootstrap, decide, finite, interval

CLAIMED = 1.1  # a tenth fewer steps: less is not worth the name of a speed-up
LEARNED = 0.1  # a network whose accuracy has not risen by so much has no pace to compare with
RULE = (
    f"supported: the whole interval at {CLAIMED} or above; contradicted: all of it below 1; not "
    f"supported: all of it below {CLAIMED}; inconclusive: otherwise, or where the network without "
    f"batch norm gains less than {100 * LEARNED:.0f} points of accuracy"
)
STEPS = Cost()  # counted, not timed


@dataclass(frozen=True)
class Race:
    """To the base's best accuracy: by how much sooner another arm is there.

    Args:
        names: of the base and of the other arm.
        base_rate: the base's learning rate, where its validation accuracy comes highest.
        rate: the other's, with which it comes to that accuracy soonest on the validation set; for a
            race at the same rate, ``base_rate``.
        lows: log of steps(base) / steps(other), one a seed; ``-inf`` where it never got there.
        highs: the same, but where it never got there, with the steps it was given.
        steps: medians of both arms; ``inf`` for never.
        gained: how much accuracy the base learned.
        every: steps between looks: no arm can be seen to be faster.
        budget: steps that the base was given.
        limits: what the choice of the rates or the examples leave open, a sentence each.
    """

    names: tuple[str, str]
    base_rate: float
    rate: float
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    steps: tuple[float, float]
    gained: float
    every: int
    budget: int
    limits: tuple[str, ...]

    @property
    def note(self) -> str:
        """What was compared, and how to read it."""
        base, other = ("never" if s == math.inf else f"{s:g}" for s in self.steps)
        words = [
            f"Learning rates {self.base_rate:g} and {self.rate:g}; median steps {base} and "
            f"{other}, read every {self.every}."
        ]
        never = sum(low == -math.inf for low in self.lows)
        if never:
            words.append(
                f"{_capital(self.names[1])}: never there in {never} of {len(self.lows)} seeds; the "
                "upper end takes it as there at the last step, and nothing bounds the lower end."
            )
        return " ".join(words)

    @property
    def caution(self) -> str:
        """What the numbers cannot show."""
        words = [*self.limits]
        if self.steps[0] > 0.9 * self.budget:
            words.append(
                f"{_capital(self.names[0])}: still improving when the {self.budget} steps ended; "
                "with more steps the mark and the ratio would be others."
            )
        return " ".join(words)


def race(arms: dict[str, Sweep], names: tuple[str, str], *, same: bool = False) -> Race:
    """Choose the rates on the validation set, count steps on the test set.

    Args:
        arms: by name.
        names: of the base, whose best accuracy is the mark, and of the arm that races to it.
        same: at the base's rate, not at the one that suits the other arm.
    """
    base, other = (arms[name] for name in names)

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
    few = too_few(marks[seeds[0]], median(goals.values()))
    chosen = [end_of(names[0], base_rate, base)]
    chosen += [] if same or other is base else [end_of(names[1], rate, other)]
    return Race(
        names,
        base_rate,
        rate,
        lows=tuple(math.log(t / o) if o < math.inf else -math.inf for t, o, _ in pairs),
        highs=tuple(math.log(t / min(o, budget)) for t, o, budget in pairs),
        steps=(median(theirs), median(ours)),
        gained=median(max(marks[s].test) - marks[s].test[0] for s in seeds),
        every=_every(marks[seeds[0]]),
        budget=marks[seeds[0]].budget,
        limits=tuple(filter(None, [few, *chosen])),
    )


def raced(study: str, result: Race, metric: str, claim: str, step: Cost | None = STEPS) -> Verdict:
    """Of a ratio of steps; times what a step costs, for seconds, or None where none were timed."""
    none = (study, claim, metric, None, None, None, INCONCLUSIVE, "×", RULE)
    if result.gained < LEARNED:
        gained = f"The base learned {100 * result.gained:.0f} points in the steps given: no pace."
        return Verdict(*none, caution=f"{gained} {result.caution}".strip())
    if step is None:
        return Verdict(*none, "No seconds were measured.", caution=result.caution)
    value, *ends = bootstrap(result.lows, result.highs)
    # An arm that never got there is 0 times as fast at the least: that bounds nothing.
    low, high = (math.exp(end) * at for end, at in zip(ends, (step.low, step.high), strict=True))
    return Verdict(
        study,
        claim,
        metric,
        None if value is None else math.exp(value) * step.ratio,
        low or None,
        finite(high),
        decide(low, high, none=1, claimed=CLAIMED),
        "×",
        RULE,
        step.note or result.note,
        interval(len(result.lows)),
        result.caution,
    )


def end_of(name: str, rate: float, grid: Collection[float]) -> str:
    """A caution where an arm's best learning rate is at the end of what was tried, or nothing."""
    if len(grid) == 1:
        return f"{_capital(name)}: {rate:g} is the one learning rate tried."
    if min(grid) < rate < max(grid):
        return ""
    side = "higher" if rate == max(grid) else "lower"
    return (
        f"{_capital(name)}: {rate:g} is the best of the learning rates tried and their "
        f"{side[:-2]}est; a {side} one may be better."
    )


def _capital(name: str) -> str:
    name = "without batch norm" if name == "without" else name
    return name[0].upper() + name[1:]


def _first(run: Run, part: str, goal: float) -> float:
    """The first step at which an accuracy is reached, one look after the start at the soonest."""
    accuracies: tuple[float, ...] = getattr(run, part)
    for step, accuracy in zip(run.steps, accuracies, strict=True):
        if accuracy >= goal:
            return max(step, _every(run))
    return math.inf


def _every(run: Run) -> int:
    return run.steps[1] if len(run.steps) > 1 else run.budget
