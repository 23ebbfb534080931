"""The race of noisy batch norm, and whether its noise is large enough to tell anything."""

from dataclasses import replace
from statistics import fmean
from typing import Any

from batchnorm.studies._judge import by_seed, judge
from batchnorm.studies._race import race, raced
from batchnorm.studies._slower import slower
from batchnorm.studies._sweep import Rows, Sweep
from batchnorm.studies._verdict import SUPPORTED, Verdict
from batchnorm.studies._wider import WITH, WITHOUT

NOISY = "noisy batch norm"
TOLERATED = 1.5  # times the steps of ordinary batch norm: noise that costs no more does no harm
RUINED = 3.0  # times: what noise slows down so much lived on still distributions
UNSETTLED = 2.0  # times the drift without batch norm: less does not unsettle the distributions


def noise(study: str, arms: dict[str, Sweep], looks: Rows, name: str) -> list[Verdict]:
    """Of its steps against ordinary batch norm's and against none's, and of its drift.

    Args:
        study: its name.
        arms: the race's, by name.
        looks: rows with "arm" and "drift".
        name: the network's.
    """
    ordinary, noisy = (race(arms, (WITHOUT, arm)) for arm in (WITH, NOISY))
    moved = _drifts(study, looks, name)
    verdict = slower(
        study,
        ordinary,
        noisy,
        f"steps, noisy to ordinary batch norm, {name}",
        "Noise that unsettles the distributions costs batch norm little: it comes to the best "
        f"accuracy without batch norm in at most {TOLERATED:g} times the steps ({name}).",
        claimed=TOLERATED,
        none=RUINED,
    )
    if moved.verdict != SUPPORTED:
        weak = (
            f"That the noise moves the units' means {UNSETTLED:g} times as far as they move "
            f"without batch norm is {moved.verdict}: it may be too little for its race to tell "
            "much."
        )
        verdict = replace(verdict, caution=f"{weak} {verdict.caution}".strip())
    return [
        verdict,
        raced(
            study,
            noisy,
            f"steps, noisy batch norm to none, {name}",
            "Noisy batch norm reaches the best accuracy of the network without batch norm in fewer "
            f"steps ({name}).",
        ),
        moved,
    ]


def _drifts(study: str, looks: Rows, name: str) -> Verdict:
    times: list[float | None] = []
    for seed in by_seed(looks).values():
        noisy, plain = (
            _drift([row for row in seed if row["arm"] == arm]) for arm in (NOISY, WITHOUT)
        )
        times.append(noisy / plain if noisy and plain else None)
    return judge(
        study,
        f"drift, noisy batch norm to none, {name}",
        "With noisy batch norm the units' means move further from look to look than without any "
        f"batch norm ({name}).",
        times,
        none=1.0,
        claimed=UNSETTLED,
        unit="×",
        note="In standard deviations of the unit; what comes to the activations, in training.",
    )


def _drift(rows: list[dict[str, Any]]) -> float | None:
    found = [row["drift"] for row in rows if row["step"] and not row.get("diverged")]
    return None if not found or None in found else fmean(found)
