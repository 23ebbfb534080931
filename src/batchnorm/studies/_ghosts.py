"""Networks that normalize groups of a mini-batch, and the gap between training and test set."""

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from batchnorm.copies import replace
from batchnorm.data import Data
from batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.studies._judge import by_seed, judge, predicted
from batchnorm.studies._network import label
from batchnorm.studies._norms import norms_of
from batchnorm.studies._sweep import NEAR
from batchnorm.studies._taught import tested_on, weakened
from batchnorm.studies._verdict import Verdict
from batchnorm.surgery import is_batch_norm, recalibrate
from batchnorm.train import evaluate

OURS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
CHUNK = 1000  # examples in one call
SMALL, LARGE = 64, 512  # the lectures' mini-batches
NARROWER = 5.0  # per cent of the gap in the loss: less is hard to see under seeds
LOWER = 1.0  # per cent of the test loss: less is not worth a change of the mini-batch
POINTS = 0.5  # of the gap in accuracy: five examples of a thousand
ORDERED = 0.5  # rank correlation: half way to perfect order
SLIGHT = 100 * NEAR  # points of accuracy: closer ones are not told apart
Found = dict[str, Any]
Seed = dict[int, Found]  # the row of each size of groups


def in_groups(model: nn.Module, size: int) -> nn.Module:
    """The model with batch norms that normalize ``size`` examples together, whatever they are fed.

    Parameters and buffers are the model's own. An example that is left over alone, which has no
    variance, is normalized with the running statistics.

    Raises:
        ValueError: a batch norm of a class that cannot do that.
    """
    new: dict[str, nn.Module] = {}
    for path, norm in model.named_modules():
        if is_batch_norm(norm) and not hasattr(norm, "ghost_size"):
            if type(norm) not in OURS:
                raise ValueError(f"{path}, {type(norm).__name__}, cannot normalize by groups")
            new[path] = _ours(norm)
    out = replace(model, new) if new else model
    for norm in norms_of(out):
        norm.ghost_size, norm.one_value = size, "running"
    return out


def _ours(norm: Any) -> nn.Module:
    ours = OURS[type(norm)](
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        setattr(ours, name, value)
    return ours.train(norm.training)


def gap_of(model: nn.Module, data: Data) -> Found:
    """Loss and accuracy on training and test set, with the training set's own statistics.

    Running averages of small groups are noisier than those of large ones, which is not what is
    asked; so all are judged with the statistics of the whole training set.
    """
    like = next(model.parameters())
    about = tested_on(data)
    numbers = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    none: Found = about | dict.fromkeys(numbers)
    if not all(p.isfinite().all() for p in model.parameters()):
        return none
    x = data.train.x.to(like.device, like.dtype)
    recalibrate(model, x.split(CHUNK), layer_by_layer=True)
    out: Found = about
    for name, part in (("train", data.train), ("test", data.test)):
        loss, accuracy = evaluate(model, part)
        out[f"{name}_loss"], out[f"{name}_accuracy"] = loss, accuracy
    return out if math.isfinite(out["train_loss"] + out["test_loss"]) else none


def gaps(study: str, rows: list[Found]) -> list[Verdict]:
    """How much narrower the gap is, of loss and accuracy; its order; what it is worth; its size."""
    seeds = [{row["group"]: row for row in mine} for mine in by_seed(rows).values()]
    shown = f"groups of {SMALL} instead of {LARGE}"
    network = label(rows[0]["activation"])
    learned = [seed[LARGE]["test_accuracy"] for seed in seeds if LARGE in seed]

    def caution(mark: float) -> str:
        return f"{weakened(rows, learned, mark)} {_slower(seeds)}".strip()

    return [
        judge(
            study,
            f"gap of the loss, {network}",
            f"With {shown} the gap between training and test loss is narrower.",
            [_narrower(mine, _loss_gap) for mine in seeds],
            none=0.0,
            claimed=NARROWER,
            unit="%",
            note=f"Test loss less training loss, medians: {_medians(seeds, _loss_gap, '.3f')}.",
            caution=caution(math.inf),
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
        judge(
            study,
            f"test loss, {network}",
            f"The noise regularizes to advantage: {shown} lower the test loss ({network}).",
            [_narrower(mine, _test_loss) for mine in seeds],
            none=0.0,
            claimed=LOWER,
            unit="%",
            note=f"Test loss, medians: {_medians(seeds, _test_loss, '.4f')}; training loss: "
            f"{_medians(seeds, _train_loss, '.4f')}.",
            caution=weakened(rows, learned, math.inf),
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


def gap_in(row: Found) -> Found:
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


def _pair(mine: Seed, of: Callable[[Found], float | None]) -> tuple[float, float] | None:
    """Of small and of large groups."""
    if SMALL not in mine or LARGE not in mine:
        return None
    small, large = of(mine[SMALL]), of(mine[LARGE])
    return None if small is None or large is None else (small, large)


def _less(mine: Seed, of: Callable[[Found], float | None]) -> float | None:
    """By how much a thing is less with small groups."""
    pair = _pair(mine, of)
    return None if pair is None else pair[1] - pair[0]


def _narrower(mine: Seed, of: Callable[[Found], float | None]) -> float | None:
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


def _medians(seeds: list[Seed], of: Callable[[Found], float | None], digits: str) -> str:
    words: list[str] = []
    for size in sorted({size for mine in seeds for size in mine}):
        known = [one for mine in seeds if size in mine and (one := of(mine[size])) is not None]
        words.append(
            f"{median(known):{digits}} in groups of {size}" if known else f"none at {size}"
        )
    return ", ".join(words)
