"""From paired differences to one of four words, by rules fixed before the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
CONTRADICTED, INCONCLUSIVE = "contradicted", "inconclusive"
RESAMPLES, SEED, CONFIDENCE = 10_000, 2015, 0.95
WHOLE_RANGE = 5  # so many differences or fewer have an interval from the smallest to the largest


@dataclass(frozen=True)
class Verdict:
    """What one measure of a study says.

    Args:
        study: the study's name.
        claim: what this measure says, in one sentence.
        metric: its short name.
        value: the median over paired seeds; None where it was not measured, or is only known to be
            at least ``low`` or at most ``high``.
        low: lower end of the interval; None where it is unbounded or was not measured.
        high: upper end, likewise.
        verdict: "supported", "not supported", "contradicted" or "inconclusive".
        unit: of value, low and high.
        threshold: the rule that gave the verdict, in words.
        note: what a reader must know to take the number for what it is.
        interval: what ``low`` and ``high`` are, in words.
        caution: what weakens the verdict; it is shown wherever the verdict is.
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
    interval: str = ""
    caution: str = ""


def bootstrap(
    lows: Sequence[float], highs: Sequence[float] | None = None
) -> tuple[float | None, float, float]:
    """Median of paired differences with a bootstrap interval; the same on every call.

    A difference may be known only to lie in ``[low, high]``: between two settings of a grid, with
    ``-inf`` for low where an arm never got there, ``inf`` for high where it left the range that was
    looked at. The lower end is that of all the lows and the upper end that of all the highs, so
    that the interval holds whatever the true values are.

    Args:
        lows: the differences, one a seed, or the least that each can be.
        highs: the most that each can be; the same as ``lows`` when left out.

    Returns:
        Median, lower end, upper end; :func:`interval` says what the ends are. Of a median that is
        known to lie between two values their middle; None where it is unbounded on a side.

    Raises:
        ValueError: no differences, or ``highs`` of another length.

    >>> bootstrap([1.0, 2.0, 3.0, 4.0, 5.0])
    (3.0, 1.0, 5.0)
    >>> bootstrap([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    (2.5, 1.0, 4.0)
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
    least, most = (float(_median(side[None])[0]) for side in (below, above))
    bounded = math.isfinite(least) and math.isfinite(most)
    return (least + most) / 2 if bounded else None, float(low), float(high)


def interval(seeds: int) -> str:
    """What the ends that :func:`bootstrap` gives for so many differences are, in words.

    Up to five differences, more than one resample in forty has the smallest for its median: the
    interval runs from the smallest to the largest. They lie on both sides of the true median unless
    all fall on one, so the interval holds it with probability ``1 - 2 / 2^seeds``, short of 95 %.

    >>> interval(5)
    'the range over 5 paired seeds, which holds the true median with 93.75 % confidence'
    >>> interval(10)
    'a bootstrap 95 % interval of the median over 10 paired seeds'
    """
    if seeds == 1:
        return "no interval: there is one seed"
    if seeds <= WHOLE_RANGE:
        held = f"{100 * (1 - 2 / 2**seeds):.4g} % confidence"
        return f"the range over {seeds} paired seeds, which holds the true median with {held}"
    return f"a bootstrap 95 % interval of the median over {seeds} paired seeds"


def finite(value: float | None) -> float | None:
    """A number as a verdict holds it: None where it is unbounded."""
    return value if value is not None and math.isfinite(value) else None


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


def agrees(low: float, high: float, *, expected: float, tolerance: float) -> str:
    """One of three words for an interval and a predicted value.

    The interval is "supported" when all of it is within ``tolerance`` of ``expected``,
    "contradicted" when all of it is further away on one side, "inconclusive" otherwise.

    Raises:
        ValueError: ``tolerance`` is not above 0, or the ends are not in order.

    >>> agrees(1.19, 1.22, expected=1.21, tolerance=0.03)
    'supported'
    >>> agrees(1.0, 1.1, expected=1.21, tolerance=0.03)
    'contradicted'
    """
    if not tolerance > 0 or not low <= high:
        raise ValueError(
            f"cannot compare the interval [{low}, {high}] with {expected} to {tolerance}: expected "
            "low <= high and a tolerance above 0"
        )
    least, most = expected - tolerance, expected + tolerance
    if least <= low and high <= most:
        return SUPPORTED
    return CONTRADICTED if high < least or low > most else INCONCLUSIVE
