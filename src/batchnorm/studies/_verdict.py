"""From paired differences to one of four words, by rules fixed before the run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
CONTRADICTED, INCONCLUSIVE = "contradicted", "inconclusive"
RESAMPLES, SEED, CONFIDENCE = 10_000, 2015, 0.95


@dataclass(frozen=True)
class Verdict:
    """What one measure of a study says.

    Args:
        study: the study's name.
        claim: what this measure says, in one sentence.
        metric: its short name.
        value: the median over paired seeds; None where it could not be measured.
        low: lower end of the interval; None where it is unbounded or was not measured.
        high: upper end, likewise.
        verdict: "supported", "not supported", "contradicted" or "inconclusive".
        unit: of value, low and high.
        threshold: the rule that gave the verdict, in words.
        note: what a reader must know to take the number for what it is.
    """

    study: str
    claim: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    unit: str
    threshold: str
    note: str = ""


def bootstrap(
    differences: Sequence[float], at_most: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Median of paired differences with a 95 % bootstrap interval; the same on every call.

    Where a difference is only known to be no larger than a bound (an arm that never got there),
    ``differences`` holds ``-inf`` and ``at_most`` the bound: the lower end is then the one of
    the worst case and the median and the upper end are those of the best case, so that
    the interval covers whatever the censored values are.

    Args:
        differences: one a seed.
        at_most: upper bounds, one a seed; equal to ``differences`` where these are known.

    Returns:
        Median, lower end, upper end. With five seeds the interval runs from the smallest to the
        largest difference: few seeds cannot say more.

    Raises:
        ValueError: no differences, or bounds of another length.

    >>> bootstrap([1.0, 2.0, 3.0, 4.0, 5.0])
    (3.0, 1.0, 5.0)
    """
    lows = np.asarray(differences, dtype=float)
    highs = lows if at_most is None else np.asarray(at_most, dtype=float)
    if len(lows) == 0 or lows.shape != highs.shape:
        raise ValueError(
            f"{len(lows)} differences with {len(highs)} bounds; expected one of each for every seed"
        )
    drawn = np.random.default_rng(SEED).integers(len(lows), size=(RESAMPLES, len(lows)))
    tail = (1 - CONFIDENCE) / 2
    # A quantile between two values would meet inf - inf; the outer one is also the cautious one.
    low = np.quantile(_median(lows[drawn]), tail, method="lower")
    high = np.quantile(_median(highs[drawn]), 1 - tail, method="higher")
    return float(_median(highs[None])[0]), float(low), float(high)


def _median(rows: np.ndarray) -> np.ndarray:
    ordered = np.sort(rows, axis=1)
    middle = ordered.shape[1] // 2
    if ordered.shape[1] % 2:
        return ordered[:, middle]
    below, above = ordered[:, middle - 1], ordered[:, middle]
    # The mean of -inf and a number is -inf; of -inf and +inf, nan, which cannot arise here.
    return (below + above) / 2


def decide(low: float, high: float, *, none: float, claimed: float) -> str:
    """One of four words for an interval.

    ``none`` is the value that means no effect, ``claimed`` the smallest one that the claim is
    worth. On the line from ``none`` to ``claimed`` and beyond, the interval is

    - "supported" when all of it is at or beyond ``claimed``,
    - "contradicted" when all of it is on the other side of ``none``,
    - "not supported" when all of it falls short of ``claimed``,
    - "inconclusive" when ``claimed`` lies inside it: more seeds would tell.

    Raises:
        ValueError: ``none`` equals ``claimed``, or the ends are not in order.

    >>> decide(1.3, 1.9, none=1.0, claimed=1.1)
    'supported'
    >>> decide(0.9, 1.05, none=1.0, claimed=1.1)
    'not supported'
    """
    if none == claimed or not low <= high:
        raise ValueError(
            f"cannot decide on the interval [{low}, {high}] with none={none} and "
            f"claimed={claimed}: expected low <= high and two different marks"
        )
    if claimed < none:
        low, high, none, claimed = -high, -low, -none, -claimed
    if low >= claimed:
        return SUPPORTED
    if high < none:
        return CONTRADICTED
    return NOT_SUPPORTED if high < claimed else INCONCLUSIVE
