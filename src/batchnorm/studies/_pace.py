"""What a step costs, in seconds, from short and long trials timed alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Cost:
    """Seconds of a step without batch norm over those with it.

    Args:
        ratio: from the quickest turn of each timed trial: whatever else runs only adds to it.
        low: the least over the turns; 0 where one was lost in noise.
        high: the most; infinite likewise.
        note: the seconds, in words.
    """

    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0
    note: str = ""


def cost(rows: Rows) -> Cost | None:
    """Of the two arms of one network; None where they were not timed, or all is lost in noise.

    Args:
        rows: timed trials, with "steps", "batch_norm", "seconds" (the quickest turn) and "turns"
            (the seconds of every turn).
    """
    plain, normed = ([row for row in rows if row["batch_norm"] == arm] for arm in (False, True))
    if min(len({row["steps"] for row in arm}) for arm in (plain, normed)) < 2:
        return None
    best = [_a_step(arm, [row["seconds"] for row in arm]) for arm in (plain, normed)]
    if min(best) <= 0:
        return None
    turns = [
        (_a_step(plain, mine), _a_step(normed, theirs))
        for mine, theirs in zip(_turns(plain), _turns(normed), strict=True)
    ]
    ratios = [best[0] / best[1], *(a / b for a, b in turns if min(a, b) > 0)]
    lost = any(min(turn) <= 0 for turn in turns)
    low, high = (0.0, math.inf) if lost else (min(ratios), max(ratios))
    return Cost(
        ratios[0],
        low,
        high,
        f"A step takes {1e3 * best[0]:.2f} ms without and {1e3 * best[1]:.2f} ms with batch norm, "
        f"in the quickest of {len(turns) + 1} timings"
        + (
            " of which noise hid some"
            if lost
            else f"; after the first their ratio is {low:.2g} to {high:.2g}"
        )
        + ". The interval is that of the steps, widened by this.",
    )


def _turns(arm: Rows) -> list[tuple[float, ...]]:
    """The seconds of the arm's trials, turn by turn; the first one pays for the process's start."""
    return list(zip(*(row["turns"][1:] for row in arm), strict=True))


def _a_step(arm: Rows, seconds: Sequence[float]) -> float:
    """The long trial less the short one: nothing of the start is in the difference."""
    took = {row["steps"]: s for row, s in zip(arm, seconds, strict=True)}
    return (took[max(took)] - took[min(took)]) / (max(took) - min(took))
