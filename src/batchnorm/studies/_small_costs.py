"""What mini-batches of a few examples cost in accuracy: verdicts of the study of small batches."""

from statistics import median
from typing import Any

from batchnorm.studies._judge import Marks, judge
from batchnorm.studies._small import GHOST, GROUP, NORM, RENORM
from batchnorm.studies._sweep import NEAR, ends, runs
from batchnorm.studies._taught import weakened
from batchnorm.studies._verdict import Verdict

NAME = "small_batch"
SMALL, FEW, LARGE = 2, 4, 64
TESTED, ANEW = "test_accuracy", "anew_accuracy"
ARMS = (NORM, GHOST, RENORM, GROUP)
POINTS = 100 * NEAR  # of accuracy: closer ones are not told apart
MARKS = Marks(none=0.0, claimed=POINTS, unit="points")
# Momentum a weighs so many mini-batches as equal ones would: (2 - a) / a.
AVERAGED = (
    "With momentum 0.1, running averages in mini-batches of 2 are worth only about 38 examples: "
    "what batch norm loses may be theirs, not that of training (see statistics anew)."
)

Rows = list[dict[str, Any]]
Found = dict[tuple[str, int], dict[str, float]]  # points by field, by arm and examples


def losses(rows: Rows, name: str) -> list[Verdict]:
    """Of one network, called by ``name``; the headline first."""
    seeds = _found(rows)
    large = [_points(found, NORM, LARGE) for found in seeds]
    caution = weakened(rows, [one and one / 100 for one in large], POINTS)
    noisy = f"{AVERAGED} {caution}".strip()

    def more(size: int, field: str = TESTED) -> list[float | None]:
        """Points that batch norm loses more than group norm."""
        both = [(_lost(f, NORM, size, field), _lost(f, GROUP, size)) for f in seeds]
        return [_less(*pair) for pair in both]

    def better(arm: str) -> list[float | None]:
        """Points that an arm is better than batch norm at the smallest size."""
        both = [(_points(f, arm, SMALL), _points(f, NORM, SMALL)) for f in seeds]
        return [_less(*pair) for pair in both]

    at = f"At mini-batches of {SMALL}"
    measures = [
        (
            f"lost more than group norm at {SMALL}",
            f"Going from mini-batches of {LARGE} to {SMALL} costs batch norm more accuracy than it "
            "costs group norm.",
            more(SMALL),
            f"Test accuracy at the end, medians: {_medians(seeds)}.",
            noisy,
        ),
        (
            f"lost more than group norm at {FEW}",
            f"Going from mini-batches of {LARGE} to {FEW} costs batch norm more accuracy than it "
            "costs group norm.",
            more(FEW),
            "",
            caution,
        ),
        (
            f"lost more, statistics anew, at {SMALL}",
            f"{at} batch norm loses more than group norm even with statistics measured anew.",
            more(SMALL, ANEW),
            f"With statistics anew, medians: {_medians(seeds, ANEW)}.",
            caution,
        ),
        (
            f"group norm, better at {SMALL}",
            f"{at} group norm has a higher accuracy than batch norm.",
            better(GROUP),
            "",
            noisy,
        ),
        (
            f"batch renormalization, better at {SMALL}",
            f"{at} batch renormalization has a higher accuracy than batch norm.",
            better(RENORM),
            "",
            noisy,
        ),
        (
            f"lost by ghost batches of {SMALL}",
            f"The noise alone costs accuracy: ghost batches of {SMALL} lose against whole "
            f"mini-batches of {LARGE}, with the same number of updates.",
            [_less(_points(f, NORM, LARGE), _points(f, GHOST, SMALL)) for f in seeds],
            "",
            caution,
        ),
    ]
    return [
        judge(NAME, f"{metric}, {name}", claim, values, note=note, caution=doubt, **MARKS)
        for metric, claim, values, note, doubt in measures
    ]


def _found(rows: Rows) -> list[Found]:
    """The accuracies at the end, as trained and with statistics anew, seed by seed."""
    last = {(row["arm"], row["together"], row["seed"]): row for row in ends(rows)}
    out: dict[int, Found] = {}
    for arm, sizes in runs(rows, lambda row: row["arm"], "together").items():
        for size, mine in sizes.items():
            for seed, run in mine.items():
                anew = last[arm, int(size), seed][ANEW]
                anew = run.end("test") if anew is None else anew
                here = {TESTED: 100 * run.end("test"), ANEW: 100 * anew}
                out.setdefault(seed, {})[arm, int(size)] = here
    return [out[seed] for seed in sorted(out)]


def _points(found: Found, arm: str, size: int, field: str = TESTED) -> float | None:
    row = found.get((arm, size))
    return None if row is None else row[field]


def _lost(found: Found, arm: str, size: int, field: str = TESTED) -> float | None:
    return _less(_points(found, arm, LARGE, field), _points(found, arm, size, field))


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _medians(seeds: list[Found], field: str = TESTED) -> str:
    words: list[str] = []
    for arm in (NORM,) if field == ANEW else ARMS:
        sizes = sorted({size for found in seeds for kind, size in found if kind == arm})
        at = {size: [_points(found, arm, size, field) for found in seeds] for size in sizes}
        known = {size: [one for one in mine if one is not None] for size, mine in at.items()}
        told = [f"{median(mine):.1f} % at {size}" for size, mine in known.items() if mine]
        words.append(f"{arm} {', '.join(told)}")
    return "; ".join(words)
