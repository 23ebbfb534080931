"""The gap between training and test set, in groups of few examples and of many: its verdicts."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm.studies._ghosts import Found
from batchnorm.studies._judge import Marks, by_seed, judge, predicted
from batchnorm.studies._network import label, phrase
from batchnorm.studies._sweep import NEAR
from batchnorm.studies._taught import weakened
from batchnorm.studies._verdict import Verdict

if TYPE_CHECKING:
    import altair as alt

SMALL, LARGE = 64, 512  # the lectures' mini-batches
NARROWER = 5.0  # per cent of the gap in the loss: less is hard to see under seeds
LOWER = 1.0  # per cent of the test loss: less is not worth a change of the mini-batch
POINTS = 0.5  # of the gap in accuracy: five examples of a thousand
ORDERED = 0.5  # rank correlation: half way to perfect order
SLIGHT = 100 * NEAR  # points of accuracy: closer ones are not told apart
Seed = dict[int, Found]  # the row of each size of groups
Of = Callable[[Found], float | None]


def gaps(study: str, rows: list[Found]) -> list[Verdict]:
    """How much narrower the gap is, of loss and accuracy; its order; what it is worth; its size."""
    seeds = [{row["group"]: row for row in mine} for mine in by_seed(rows).values()]
    shown = f"groups of {SMALL} instead of {LARGE}"
    network = label(rows[0]["activation"])
    learned = [seed[LARGE]["test_accuracy"] for seed in seeds if LARGE in seed]

    def caution(mark: float) -> str:
        return f"{weakened(rows, learned, mark)} {_slower(seeds)}".strip()

    def smaller(metric: str, claim: str, of: Of, by: float, note: str, doubt: str) -> Verdict:
        """By so many per cent of what it is with large groups."""
        values, marks = (
            [_narrower(mine, of) for mine in seeds],
            Marks(none=0.0, claimed=by, unit="%"),
        )
        return judge(
            study, f"{metric}, {network}", claim, values, note=note, caution=doubt, **marks
        )

    return [
        smaller(
            "gap of the loss",
            f"With {shown} the gap between training and test loss is narrower.",
            _loss_gap,
            NARROWER,
            f"Test loss less training loss, medians: {_medians(seeds, _loss_gap, '.3f')}.",
            caution(math.inf),
        ),
        judge(
            study,
            f"gap of the accuracy, {network}",
            f"With {shown} the gap between training and test accuracy is narrower.",
            [_less(mine, _accuracy_gap) for mine in seeds],
            none=0.0,
            claimed=POINTS,
            unit="points",
            note="Training accuracy less test accuracy, in points, medians: "
            f"{_medians(seeds, _accuracy_gap, '.2f')}.",
            caution=caution(POINTS),
        ),
        judge(
            study,
            f"order of the gaps, {network}",
            "The more examples are normalized together, the wider the gap of the loss.",
            [_order(mine) for mine in seeds],
            none=0.0,
            claimed=ORDERED,
            note="Spearman's rank correlation of the size of a group and the gap, seed by seed.",
            caution=("Three sizes have few orders. " if len(seeds[0]) <= 3 else "")
            + caution(math.inf),
        ),
        smaller(
            "test loss",
            f"The noise regularizes to advantage: {shown} lower the test loss ({network}).",
            _test_loss,
            LOWER,
            f"Test loss, medians: {_medians(seeds, _test_loss, '.4f')}; training loss: "
            f"{_medians(seeds, _train_loss, '.4f')}.",
            weakened(rows, learned, math.inf),
        ),
        predicted(
            study,
            f"change of the test accuracy, {network}",
            f"The effect is slight: {shown} change the test accuracy by less than {SLIGHT:g} "
            "points.",
            [_less(mine, _mistakes) for mine in seeds],
            0.0,
            SLIGHT,
            unit="points",
            note=f"Test accuracy, medians: {_medians(seeds, _accuracy, '.1f')}.",
        ),
    ]


def pictures(rows: Sequence[Found]) -> "dict[str, alt.LayerChart]":
    """Both gaps over the size of groups; nothing where no row tells of one."""
    from batchnorm.charts import sweep

    told = [
        row | {"arm": f"mini-batches of {LARGE}"} | gap for row in rows if (gap := _gap_in(row))
    ]
    titles = {
        "loss": ("loss_gap", "test loss less training loss"),
        "accuracy": ("points_gap", "points of accuracy less on the test set"),
    }
    return {
        f"gap-{what}": sweep(
            told,
            "group",
            field,
            x_title="examples normalized together",
            y_title=title,
            title=f"The gap between training and test {what}, {phrase(told[0]['activation'])}",
        )
        for what, (field, title) in (titles.items() if told else ())
    }


def _gap_in(row: Found) -> Found:
    """Both gaps of a row that tells of one; nothing of another."""
    if "train_loss" not in row:
        return {}
    # Not named after accuracy alone: charts show shares as percentages.
    return {"loss_gap": _loss_gap(row), "points_gap": _accuracy_gap(row)}


def _loss_gap(row: dict[str, Any]) -> float | None:
    return None if row["test_loss"] is None else row["test_loss"] - row["train_loss"]


def _train_loss(row: Found) -> float | None:
    return row["train_loss"]


def _test_loss(row: Found) -> float | None:
    return row["test_loss"]


def _accuracy_gap(row: dict[str, Any]) -> float | None:
    if row["test_accuracy"] is None:
        return None
    return 100 * (row["train_accuracy"] - row["test_accuracy"])


def _accuracy(row: dict[str, Any]) -> float | None:
    return None if row["test_accuracy"] is None else 100 * row["test_accuracy"]


def _mistakes(row: Found) -> float | None:
    return None if row["test_accuracy"] is None else 100 * (1 - row["test_accuracy"])


def _pair(mine: Seed, of: Of) -> tuple[float, float] | None:
    """Of small and of large groups."""
    if SMALL not in mine or LARGE not in mine:
        return None
    small, large = of(mine[SMALL]), of(mine[LARGE])
    return None if small is None or large is None else (small, large)


def _less(mine: Seed, of: Of) -> float | None:
    """By how much a thing is less with small groups."""
    pair = _pair(mine, of)
    return None if pair is None else pair[1] - pair[0]


def _narrower(mine: Seed, of: Of) -> float | None:
    """By how many per cent of what there is with large groups; None where that is nothing."""
    pair = _pair(mine, of)
    return None if pair is None or pair[1] <= 0 else 100 * (1 - pair[0] / pair[1])


def _slower(seeds: list[Seed]) -> str:
    """A caution where small groups have learned less of the training set by the end, too."""
    pairs = [pair for mine in seeds if (pair := _pair(mine, _train_loss))]
    if not pairs or median(small - large for small, large in pairs) <= 0:
        return ""
    small, large = (median(losses) for losses in zip(*pairs, strict=True))
    return (
        f"In groups of {SMALL} the training loss ends higher, at {small:.3g} instead of "
        f"{large:.3g}: a network that has learned less has a narrower gap, too (see the test loss)."
    )


def _order(mine: Seed) -> float | None:
    sizes = sorted(mine)
    found = [_loss_gap(mine[size]) for size in sizes]
    known = [one for one in found if one is not None]
    if len(known) < len(found) or len(found) < 3:
        return None
    ranks = np.argsort(np.argsort(known))
    return float(np.corrcoef(np.arange(len(known)), ranks)[0, 1])


def _medians(seeds: list[Seed], of: Of, digits: str) -> str:
    words: list[str] = []
    for size in sorted({size for mine in seeds for size in mine}):
        known = [one for mine in seeds if size in mine and (one := of(mine[size])) is not None]
        words.append(
            f"{median(known):{digits}} in groups of {size}" if known else f"none at {size}"
        )
    return ", ".join(words)
