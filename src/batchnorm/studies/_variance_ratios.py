"""What dropout does to the variances that batch norm learns: verdicts of the study of dropout."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from batchnorm.studies._dropped import BEFORE
from batchnorm.studies._judge import Marks, judge
from batchnorm.studies._orders import ALONE, ORDERS, Arm, Arms, both
from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, agrees, bootstrap, interval

NAME = "dropout"
HELD, SHIFTED = 1.1, 1.3  # of the variance ratio: averages trail by less; what is worth a warning
AGREES = 0.1  # of the predicted ratio, for the same reason


def variances(arms: Arms, network: str) -> list[Verdict]:
    """Each arm's variance ratio, and that of dropout before batch norm by the predicted one."""
    marks = Marks(none=SHIFTED, claimed=HELD, unit="×")
    out: list[Verdict] = []
    for arm in [*both(arms), (ALONE, 0.0)]:
        name = arm[0] if arm[0] == ALONE else f"{arm[0]}, rate {arm[1]:g}"
        out.append(
            judge(
                NAME,
                f"variance ratio, {name}, {network}",
                "Batch norm sees in evaluation the variance that it learned in training: "
                f"{name} ({network}).",
                arms[arm].each(_worst),
                note=f"Layers, medians: {_layers(arms[arm])}.",
                **marks,
            )
        )
    before = ORDERS[BEFORE]
    return out + [
        _predicted(arms[arm].each(lambda row: row.get("predicted")), arm[1], network)
        for arm in sorted(arms)
        if arm[0] == before
    ]


def _ratios(row: dict[str, Any]) -> list[float]:
    return [ratio for ratio in row.get("ratios") or [] if ratio is not None]


def _worst(row: dict[str, Any]) -> float | None:
    """The largest of the layers' ratios, taken above 1."""
    return max((max(r, 1 / r) for r in _ratios(row) if r > 0), default=None)


def _layers(arm: Arm) -> str:
    found = [ratios for row in arm.last.values() if (ratios := _ratios(row))]
    return ", ".join(f"{median(layer):.2f}" for layer in zip(*found, strict=False)) or "none"


def _predicted(values: Sequence[float | None], rate: float, network: str) -> Verdict:
    """The first layer's ratio by the one that dropout right in front of it must give."""
    metric = f"variance ratio to that predicted, rate {rate:g}, {network}"
    claim = (
        "The first batch norm behind dropout learns the variance "
        f"(var + mean²) / p - mean², with p = {1 - rate:g} ({network})."
    )
    rule = (
        f"supported: the whole interval within {AGREES:g} of 1; contradicted: all of it further "
        "away on one side; inconclusive: otherwise"
    )
    kept = [value for value in values if value is not None]
    if 2 * len(kept) <= len(values):
        return Verdict(NAME, claim, metric, None, None, None, INCONCLUSIVE, "×", rule)
    value, low, high = bootstrap(kept)
    word = agrees(low, high, expected=1, tolerance=AGREES)
    lost = len(values) - len(kept)
    caution = f"{lost} of {len(values)} seeds gave no number, and are left out." if lost else ""
    held = interval(len(kept))
    return Verdict(
        NAME, claim, metric, value, low, high, word, "×", rule, interval=held, caution=caution
    )
