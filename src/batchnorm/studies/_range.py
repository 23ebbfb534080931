"""The range of a setting, a learning rate say, over which an arm works well."""

import math
from dataclasses import dataclass
from itertools import pairwise

from batchnorm.studies._sweep import Run, Sweep


@dataclass(frozen=True)
class Range:
    """Where one arm works, with one seed; settings as powers of ten.

    Args:
        low: the least setting of the longest run of neighbours that work.
        high: the greatest.
        at_low: ``low`` is the end of the grid: the range may go on below it.
        at_high: the same above.
        best: the setting with the highest validation accuracy.
        accuracy: the test accuracy there.
        gained: how far that is above the untrained network's.
    """

    low: float
    high: float
    at_low: bool
    at_high: bool
    best: float
    accuracy: float
    gained: float

    @property
    def width(self) -> float:
        """In decades."""
        return self.high - self.low

    @property
    def widest(self) -> float:
        """The most that the width can be: infinite where the grid ended first."""
        return math.inf if self.at_low or self.at_high else self.width


def working(sweep: Sweep, seed: int, near: float) -> Range:
    """The longest run of neighbouring settings whose test accuracy is near the best one's.

    The best is chosen on the validation set; accuracies are those at the end of training, and a
    run that did not come to its end has none. Of two runs of one length the one with the best
    setting counts.
    """
    settings = sorted(sweep)
    ends = [sweep[s][seed] for s in settings]
    best = max(range(len(ends)), key=lambda i: _end(ends[i], "validation"))
    goal = _end(ends[best], "test") - near
    works = [_end(run, "test") >= goal for run in ends]
    first, last = max(_stretches(works), key=lambda s: (s[1] - s[0], s[0] <= best <= s[1]))
    return Range(
        _power(settings[first]),
        _power(settings[last]),
        first == 0,
        last == len(settings) - 1,
        _power(settings[best]),
        _end(ends[best], "test"),
        _end(ends[best], "test") - ends[best].test[0],
    )


def diverges_from(sweep: Sweep, seed: int) -> tuple[float, float]:
    """The power of ten from which training diverges: at least, at most (inf: not on the grid)."""
    for setting in sorted(sweep):
        if sweep[setting][seed].diverged:
            return _power(setting), _power(setting)
    return _power(max(sweep)), math.inf


def mean_accuracy(sweep: Sweep, seed: int) -> float:
    """Test accuracy averaged over the grid on its logarithmic axis (by trapezoids).

    What a run that did not come to its end had learned is lost: it counts as untrained.
    """
    settings = sorted(sweep)
    ends = [sweep[s][seed] for s in settings]
    points = [
        (_power(s), run.test[-1] if run.finished else run.test[0])
        for s, run in zip(settings, ends, strict=True)
    ]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def _power(setting: float) -> float:
    # A grid has three digits (0.316): its powers of ten are meant to two.
    return round(math.log10(setting), 2)


def _end(run: Run, part: str) -> float:
    accuracies: tuple[float, ...] = getattr(run, part)
    return accuracies[-1] if run.finished else 0.0


def _stretches(works: list[bool]) -> list[tuple[int, int]]:
    """First and last index of every unbroken stretch."""
    out: list[tuple[int, int]] = []
    for i, fine in enumerate(works):
        if fine and out and out[-1][1] == i - 1:
            out[-1] = out[-1][0], i
        elif fine:
            out.append((i, i))
    return out
