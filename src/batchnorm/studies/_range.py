"""The range of a setting, a learning rate say, over which an arm works well."""

import math
from dataclasses import dataclass
from itertools import pairwise

from batchnorm.studies._sweep import Sweep

LEARNED = 0.1  # an arm whose best accuracy has not risen by so much works nowhere


@dataclass(frozen=True)
class Bracket:
    """A number known only to lie between two: a range may end anywhere between grid points."""

    least: float
    most: float

    def less(self, other: "Bracket") -> "Bracket":
        """This number less the other one, whatever both are."""
        return Bracket(self.least - other.most, self.most - other.least)


@dataclass(frozen=True)
class Range:
    """Where one arm works, with one seed; settings as powers of ten.

    Args:
        low: the least setting of the widest run of neighbours that work.
        high: the greatest.
        below: the setting next to ``low`` that does not work; ``-inf`` where the grid ends first.
        above: the same next to ``high``; ``inf`` where the grid ends first.
        best: the setting with the highest validation accuracy.
        accuracy: the test accuracy there.
        gained: how far that is above the untrained network's.
    """

    low: float
    high: float
    below: float
    above: float
    best: float
    accuracy: float
    gained: float

    @property
    def start(self) -> Bracket:
        """Where the range begins: it works from somewhere between two settings on."""
        return Bracket(self.below, self.low)

    @property
    def end(self) -> Bracket:
        """Where it ends."""
        return Bracket(self.high, self.above)

    @property
    def width(self) -> Bracket:
        """In decades."""
        return self.end.less(self.start)

    @property
    def learned(self) -> bool:
        """Whether there is a range at all: if not, every setting is near the best one."""
        return self.gained >= LEARNED


def working(sweep: Sweep, seed: int, near: float) -> Range:
    """The widest run of neighbouring settings whose test accuracy is near the best one's.

    The best is chosen on the validation set; accuracies are those at the end of training. Of two
    runs as wide as each other, in decades, the one with the best setting counts.
    """
    settings = sorted(sweep)
    ends = [sweep[s][seed] for s in settings]
    best = max(range(len(ends)), key=lambda i: ends[i].end("validation"))
    goal = ends[best].end("test") - near
    works = [run.end("test") >= goal for run in ends]
    powers = [-math.inf, *map(power, settings), math.inf]

    def wide(stretch: tuple[int, int]) -> tuple[float, bool]:
        first, last = stretch
        return powers[last + 1] - powers[first + 1], first <= best <= last

    first, last = max(_stretches(works), key=wide)
    return Range(
        low=powers[first + 1],
        high=powers[last + 1],
        below=powers[first],
        above=powers[last + 2],
        best=powers[best + 1],
        accuracy=ends[best].end("test"),
        gained=ends[best].end("test") - ends[best].test[0],
    )


def diverges_from(sweep: Sweep, seed: int) -> Bracket:
    """The power of ten from which training diverges: ``inf`` at most, where the grid ends first."""
    fine = -math.inf
    for setting in sorted(sweep):
        if sweep[setting][seed].diverged:
            return Bracket(fine, power(setting))
        fine = power(setting)
    return Bracket(fine, math.inf)


def mean_accuracy(sweep: Sweep, seed: int) -> Bracket:
    """Test accuracy averaged over the grid on its logarithmic axis.

    Between two settings it lies between theirs.
    """
    settings = sorted(sweep)
    ends = [sweep[s][seed].end("test") for s in settings]
    points = list(zip(map(power, settings), ends, strict=True))
    span = points[-1][0] - points[0][0]
    least, most = (
        sum((b[0] - a[0]) * side(a[1], b[1]) for a, b in pairwise(points)) / span
        for side in (min, max)
    )
    return Bracket(least, most)


def power(setting: float) -> float:
    """The decimal logarithm of a setting of a grid."""
    # A grid has three digits (0.316) and is meant to lie at eighths of a decade.
    exact = math.log10(setting)
    eighth = round(8 * exact) / 8
    return eighth if abs(exact - eighth) < 0.005 else exact


def _stretches(works: list[bool]) -> list[tuple[int, int]]:
    """First and last index of every unbroken stretch."""
    out: list[tuple[int, int]] = []
    for i, fine in enumerate(works):
        if fine and out and out[-1][1] == i - 1:
            out[-1] = out[-1][0], i
        elif fine:
            out.append((i, i))
    return out
