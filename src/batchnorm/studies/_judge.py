"""One number a seed, marks fixed beforehand, and the verdict on them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Required, TypedDict

from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, agrees, bootstrap, decide, interval


class Marks(TypedDict, total=False):
    """What several verdicts share: keywords of :func:`judge`."""

    none: Required[float]
    claimed: Required[float]
    unit: str


def judge(
    study: str,
    metric: str,
    claim: str,
    values: Sequence[float | None],
    *,
    none: float,
    claimed: float,
    unit: str = "",
    note: str = "",
    caution: str = "",
) -> Verdict:
    """The verdict on one number a seed; a seed without a finite one is left out, and said so.

    Args:
        study: its name.
        metric: short name of the number.
        claim: what the verdict is on, in one sentence.
        values: the number, one a seed; None where the seed has none.
        none: the value that means no effect, or the opposite of what is claimed.
        claimed: the least that the claim is worth; below ``none`` where less is better.
        unit: of the numbers.
        note: what a reader must know.
        caution: what weakens the verdict.

    >>> judge("x", "gain", "It gains.", [2.0, None, 3.0, 2.5], none=0, claimed=1).verdict
    'supported'
    """
    rule = _rule(none, claimed, unit)
    about = (study, metric, claim, unit, note, caution)
    return _on(values, partial(decide, none=none, claimed=claimed), rule, *about)


def predicted(
    study: str,
    metric: str,
    claim: str,
    values: Sequence[float | None],
    expected: float,
    tolerance: float,
    *,
    unit: str = "",
    note: str = "",
) -> Verdict:
    """The verdict on a value that theory gives; a seed without one is left out, and said so."""
    rule = (
        f"supported: the whole interval within {tolerance:.2g} of {expected:.3g}; contradicted: "
        "all of it further away on one side; inconclusive: otherwise"
    )
    about = (study, metric, claim, unit, note, "")
    return _on(values, partial(agrees, expected=expected, tolerance=tolerance), rule, *about)


def _on(
    values: Sequence[float | None],
    word: Callable[[float, float], str],
    rule: str,
    study: str,
    metric: str,
    claim: str,
    unit: str,
    note: str,
    caution: str,
) -> Verdict:
    """The word for the interval of what numbers there are; too few of them decide nothing."""
    kept = [value for value in values if value is not None and math.isfinite(value)]
    if len(kept) < len(values):
        lost = f"{len(values) - len(kept)} of {len(values)} seeds gave no number"
        caution = f"{caution} {lost}, and are left out.".strip()
    if 2 * len(kept) <= len(values):
        nothing = (None, None, None, INCONCLUSIVE, unit, rule)
        return Verdict(study, claim, metric, *nothing, note, caution=caution)
    value, low, high = bootstrap(kept)
    about = (word(low, high), unit, rule, note, interval(len(kept)), caution)
    return Verdict(study, claim, metric, value, low, high, *about)


def _rule(none: float, claimed: float, unit: str) -> str:
    beyond, short = ("above", "below") if claimed > none else ("below", "above")
    mark, zero = f"{claimed:g} {unit}".strip(), f"{none:g} {unit}".strip()
    return (
        f"supported: the whole interval at {mark} or {beyond}; contradicted: all of it {short} "
        f"{zero}; not supported: all of it {short} {mark}; inconclusive: otherwise"
    )


def by_seed(rows: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The rows of each seed, in the order in which the seeds come."""
    out: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault(row["seed"], []).append(row)
    return out
