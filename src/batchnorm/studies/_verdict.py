"""From paired differences to one of four words, by rules fixed before the run."""

import math
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
    lows: Sequence[float], highs: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Median of paired differences with a 95 % bootstrap interval; the same on every call.

    A difference may be known only to lie in ``[low, high]``: with ``-inf`` for low where an arm
    never got there, ``inf`` for high where it left the range that was looked at. The lower end is
    that of all the lows and the upper end that of all the highs, so that the interval holds
    whatever the true values are; the median is that of the side that is finite.

    Args:
        lows: the differences, one a seed, or the least that each can be.
        highs: the most that each can be; the same as ``lows`` when left out.

    Returns:
        Median, lower end, upper end. With five seeds the interval runs from the smallest to the
        largest difference: few seeds cannot say more.

    Raises:
        ValueError: no differences, or ``highs`` of another length.

    >>> bootstrap([1.0, 2.0, 3.0, 4.0, 5.0])
    (3.0, 1.0, 5.0)
    """
    below = np.asarray(lows, dtype=float)
    above = below if highs is None else np.asarray(highs, dtype=float)
    if len(below) == 0 or below.shape != above.shape:
        raise ValueError(
            f"{len(below)} lows and {len(above)} highs; expected one of each for every seed, and "
            "at least one seed"
        )
    drawn = np.random.default_rng(SEED).integers(len(below), size=(RESAMPLES, len(below)))
    tail = (1 - CONFIDENCE) / 2
    # A quantile between two values would meet inf - inf; the outer one is also the cautious one.
    low = np.quantile(_median(below[drawn]), tail, method="lower")
    high = np.quantile(_median(above[drawn]), 1 - tail, method="higher")
    middles = [float(_median(side[None])[0]) for side in (below, above)]
    value = middles[0] if math.isfinite(middles[0]) else middles[1]
    return value, float(low), float(high)


def _median(rows: np.ndarray) -> np.ndarray:
    ordered = np.sort(rows, axis=1)
    middle = ordered.shape[1] // 2
    if ordered.shape[1] % 2:
        return ordered[:, middle]
    return (ordered[:, middle - 1] + ordered[:, middle]) / 2


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
