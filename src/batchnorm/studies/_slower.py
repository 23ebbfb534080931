"""How many times the steps of one arm another takes to the same mark."""

import math

from batchnorm.studies._race import LEARNED, Race
from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, bootstrap, decide, finite, interval


def slower(
    study: str,
    usual: Race,
    other: Race,
    metric: str,
    claim: str,
    *,
    claimed: float,
    none: float,
) -> Verdict:
    """Of two races against the same base to the same mark, a verdict on the ratio of their steps.

    Args:
        study: its name.
        usual: the race of the arm that the other one is measured by.
        other: the other one's.
        metric: short name of the ratio.
        claim: what the verdict is on, in one sentence.
        claimed: so many times the steps at most.
        none: more is the opposite of what is claimed.
    """
    rule = (
        f"supported: the whole interval at {claimed:g}× or below; contradicted: all of it above "
        f"{none:g}×; not supported: all of it above {claimed:g}×; inconclusive: otherwise, or "
        f"where the network without batch norm gains less than {100 * LEARNED:.0f} points"
    )
    cautions = [*usual.caution.split(". "), *other.caution.split(". ")]
    caution = ". ".join(dict.fromkeys(one.rstrip(".") for one in cautions if one))
    caution += "." if caution else ""
    if usual.gained < LEARNED:
        gained = f"The base learned {100 * usual.gained:.0f} points in the steps given: no pace."
        empty = (None, None, None, INCONCLUSIVE, "×", rule)
        return Verdict(study, claim, metric, *empty, caution=f"{gained} {caution}".strip())
    # base / usual over base / other is other / usual; an arm never there has -inf for its low.
    pairs = list(zip(usual.lows, usual.highs, other.lows, other.highs, strict=True))
    lows = [low - high for low, _, _, high in pairs]
    highs = [high - low for _, high, low, _ in pairs]
    value, low, high = bootstrap(lows, highs)
    ends = (math.exp(low), math.exp(high) if high < math.inf else math.inf)
    both = (f"{race.names[1]} {_steps(race.steps[1])} at {race.rate:g}" for race in (usual, other))
    return Verdict(
        study,
        claim,
        metric,
        None if value is None else math.exp(value),
        ends[0] or None,
        finite(ends[1]),
        decide(*ends, none=none, claimed=claimed),
        "×",
        rule,
        f"Median steps, read every {usual.every}: {'; '.join(both)}.",
        interval(len(pairs)),
        caution,
    )


def _steps(steps: float) -> str:
    return "never" if steps == math.inf else f"{steps:g}"
