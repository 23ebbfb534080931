"""From the settings that work in two arms to verdicts on the wider range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from batchnorm.studies._range import LEARNED, Bracket, Range, mean_accuracy, power, working
from batchnorm.studies._sweep import NEAR, Sweep, too_few
from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, bootstrap, decide, finite, interval

WITHOUT, WITH = "without", "with batch norm"
WIDER = 0.5  # decades, a factor of 3.2: less is not a much bigger range


@dataclass(frozen=True)
class Pairs:
    """The ranges of two arms, seed by seed.

    Args:
        kept: without and with batch norm; seeds in which both arms learn somewhere.
        seeds: how many there were.
        lost: in how many of them the arm without batch norm learned nowhere, and the one with it.
        few: a caution where there are too few examples to judge on, or nothing.
        ends: of the grid, as powers of ten.
    """

    kept: list[tuple[Range, Range]]
    seeds: int
    lost: tuple[int, int]
    few: str
    ends: tuple[float, float]

    def differences(self, what: str) -> list[Bracket]:
        """A field of :class:`Range` with batch norm, less that without; one a seed."""
        return [getattr(b, what).less(getattr(a, what)) for a, b in self.kept]

    @property
    def dead(self) -> str:
        """Why nothing can be said of the ranges, where that is so."""
        return "" if 2 * len(self.kept) > self.seeds else self._lost()

    @property
    def caution(self) -> str:
        """What weakens a verdict on them."""
        words = [self.few]
        words += [f"{self._lost()} Such seeds are left out."] if any(self.lost) else []
        for arm, name in enumerate((WITHOUT, WITH)):
            at_end = sum(pair[arm].best in self.ends for pair in self.kept)
            if at_end:
                words.append(
                    f"In {at_end} of {len(self.kept)} seeds the best setting {_with(name)} is the "
                    "last one tried: beyond it there may be a better one."
                )
        return " ".join(filter(None, words))

    def words(self) -> str:
        """Where either arm works, by the medians."""
        sides = zip((WITHOUT, WITH), zip(*self.kept, strict=True), strict=True)
        return " ".join(f"{_with(name).capitalize()}: {_span(ranges)}." for name, ranges in sides)

    def _lost(self) -> str:
        return " ".join(
            f"In {lost} of {self.seeds} seeds the network {_with(name)} gains less than "
            f"{100 * LEARNED:.0f} points of accuracy at its best setting."
            for name, lost in zip((WITHOUT, WITH), self.lost, strict=True)
            if lost
        )


def paired(plain: Sweep, normed: Sweep) -> Pairs:
    """Both arms' ranges over one grid; a seed in which an arm learns nowhere is left out.

    All settings of such a network are near its best one, and still none of them works.
    """
    settings = sorted(plain)
    seeds = sorted(plain[settings[0]])
    every = [(working(plain, s, NEAR), working(normed, s, NEAR)) for s in seeds]
    kept = [pair for pair in every if all(arm.learned for arm in pair)]
    first = plain[settings[0]][seeds[0]]
    return Pairs(
        kept,
        len(seeds),
        (sum(not a.learned for a, _ in every), sum(not b.learned for _, b in every)),
        too_few(first, median(min(a.accuracy, b.accuracy) for a, b in every)),
        (power(settings[0]), power(settings[-1])),
    )


def judged(
    differences: Sequence[Bracket],
    metric: str,
    claim: str,
    *,
    study: str,
    unit: str = "×",
    claimed: float = WIDER,
    note: str = "",
    caution: str = "",
) -> Verdict:
    """From with less without, one a seed; for the unit × in decades, and shown as a factor."""
    ends = bootstrap([d.least for d in differences], [d.most for d in differences])
    word = decide(*ends[1:], none=0, claimed=claimed)
    factor = unit == "×"
    value, low, high = (10**end if factor and end is not None else end for end in map(finite, ends))
    if None in (low, high):
        note = f"{note} An end that is not given lies beyond the grid.".strip()
    none, mark = ("1×", f"{10**claimed:.1f}×") if factor else ("0", f"{claimed:g} {unit}")
    rule = (
        f"supported: the whole interval at {mark} or above; contradicted: all of it below {none}; "
        f"not supported: all of it below {mark}; inconclusive: otherwise"
    )
    held = interval(len(differences))
    return Verdict(study, claim, metric, value, low, high, word, unit, rule, note, held, caution)


def blind(
    plain: Sweep,
    normed: Sweep,
    metric: str,
    setting: str,
    *,
    study: str,
    claimed: float,
    where: str = "",
    caution: str = "",
) -> Verdict:
    """On the accuracy, in points, at a setting taken blindly from the grid."""
    seeds = sorted(next(iter(plain.values())))
    points = [mean_accuracy(normed, s).less(mean_accuracy(plain, s)) for s in seeds]
    limits = f"between {min(plain):g} and {max(plain):g}"
    return judged(
        [Bracket(100 * p.least, 100 * p.most) for p in points],
        metric,
        f"A {setting} taken blindly {limits} gives a higher test accuracy with batch norm{where}.",
        study=study,
        unit="points",
        claimed=claimed,
        note=f"Accuracy averaged over the logarithm of the {setting} {limits}, the ends of this "
        "study's grid: other limits give another number. Between two settings of the grid it is "
        "taken to lie between theirs.",
        caution=caution,
    )


def unknown(metric: str, study: str, pairs: Pairs) -> Verdict:
    """Of ranges that most seeds do not have."""
    claim = "The range of settings that work well is wider with batch norm."
    rule = f"inconclusive where an arm gains less than {100 * LEARNED:.0f} points of accuracy"
    why = f"{pairs.few} {pairs.dead}".strip()
    none = (None, None, None, INCONCLUSIVE, "decades", rule)
    return Verdict(study, claim, metric, *none, caution=why)


def _with(name: str) -> str:
    return "without batch norm" if name == WITHOUT else name


def _span(ranges: Sequence[Range]) -> str:
    low, high, below, above, best, accuracy = (
        median(getattr(r, field) for r in ranges)
        for field in ("low", "high", "below", "above", "best", "accuracy")
    )
    next_to = [f"{10**setting:.3g}" for setting in (below, above) if math.isfinite(setting)]
    beyond = f", {' and '.join(next_to)} no longer" if next_to else ""
    return (
        f"{10**low:.3g} to {10**high:.3g} work{beyond}; best {10**best:.3g} with "
        f"{100 * accuracy:.1f}\N{NO-BREAK SPACE}% (medians)"
    )
