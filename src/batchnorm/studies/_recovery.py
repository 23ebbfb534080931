"""What a new domain costs a network, and what of it comes back."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from torch import Tensor, nn

from batchnorm.data import Examples
from batchnorm.studies._averages import with_statistics
from batchnorm.studies._taught import taught, weakened
from batchnorm.surgery import recalibrate
from batchnorm.train import evaluate

EQUAL = 0.02  # accuracies so close are not told apart
LOST = 0.02  # a domain in which less accuracy is lost has nothing to recover
CLEAN, AS_TRAINED, ANEW, SKEWED = "clean", "as trained", "measured anew", "of two classes"
PRIOR = 16.0
FEW, MANY = 32, 512
SIZES = (1, 2, 8, FEW, 128, MANY)
ALONE, WITH_PRIOR = "new images alone", f"old statistics as {PRIOR:g} images"
Found = dict[str, Any]


def row_of(domain: str, way: str, model: nn.Module, test: Examples, **about: Any) -> Found:
    """One judgement: the domain, the way the statistics came about, the accuracy."""
    return {"domain": domain, "way": way, "accuracy": evaluate(model, test)[1], **about}


def anew(domain: str, model: nn.Module, new: Tensor, test: Examples) -> list[Found]:
    """Judgements with statistics measured anew on ever more images of the domain."""
    out: list[Found] = []
    for size in sorted({min(size, len(new)) for size in SIZES}):
        for name, prior in ((ALONE, 0.0), (WITH_PRIOR, PRIOR)):
            copied = with_statistics(model)
            about = {"size": size, "old": name}
            try:
                recalibrate(copied, [_for(model, new[:size])], prior=prior)
            except ValueError:  # one image has no variance in a fully connected layer
                out.append({"domain": domain, "way": ANEW, "accuracy": None, **about})
                continue
            out.append(row_of(domain, ANEW, copied, test, **about))
    return out


def skewed(model: nn.Module, x: Tensor, y: Tensor, test: Examples) -> list[Found]:
    """On images as they were trained on: of two classes of more, and as many of all."""
    two = x[y < 2][:FEW]
    out: list[Found] = []
    if len(two) < 2 or bool((y < 2).all()):
        return out
    for way, images in ((SKEWED, two), (ANEW, x[: len(two)])):
        copied = with_statistics(model)
        recalibrate(copied, [_for(model, images)])
        out.append(row_of(CLEAN, way, copied, test, size=len(two), old=ALONE))
    return out


def _for(model: nn.Module, x: Tensor) -> Tensor:
    like = next(model.parameters())
    return x.to(like.device, like.dtype)


def accuracy(
    rows: list[dict[str, Any]], domain: str, way: str, size: int | None = None
) -> float | None:
    """Of the network as trained, or with statistics of so many new images, or as many as are."""
    found = [row for row in rows if (row["domain"], row["way"]) == (domain, way)]
    if size is not None:
        found = [row for row in found if row["old"] == ALONE and row["size"] <= size]
        found = sorted(found, key=lambda row: row["size"])
    return found[-1]["accuracy"] if found else None


def clean(rows: list[dict[str, Any]]) -> float | None:
    """On images as they were trained on; None for a network that has learned too little."""
    found = accuracy(rows, CLEAN, AS_TRAINED)
    return found if taught(rows[0], found) else None


def recovered(rows: list[dict[str, Any]], domain: str, size: int) -> float | None:
    """Of the accuracy that a domain costs, the share that statistics measured anew bring back."""
    before, trained = clean(rows), accuracy(rows, domain, AS_TRAINED)
    anew = accuracy(rows, domain, ANEW, size)
    if before is None or trained is None or anew is None or before - trained < LOST:
        return None
    return (anew - trained) / (before - trained)


def less_lost(
    normed: list[dict[str, Any]], plain: list[dict[str, Any]], domain: str
) -> float | None:
    """Points of accuracy that a domain costs less with batch norm."""
    costs: list[float] = []
    for mine in (plain, normed):
        before, there = clean(mine), accuracy(mine, domain, AS_TRAINED)
        if before is None or there is None:
            return None
        costs.append(100 * (before - there))
    return costs[0] - costs[1]


def lost(rows: list[dict[str, Any]], way: str) -> float | None:
    """Points of accuracy lost on clean images in this way; None where a number is missing."""
    before, after = clean(rows), accuracy(rows, CLEAN, way)
    return None if before is None or after is None else 100 * (before - after)


def doubts(
    rows: Sequence[Found],
    normed: Sequence[float | None],
    plain: Sequence[float | None],
    mark: float,
) -> str:
    """What weakens a comparison of both arms' losses.

    Args:
        rows: of both.
        normed: accuracies with batch norm on images as they were, one a seed.
        plain: the same without it.
        mark: the points that count.
    """
    both = list(zip(normed, plain, strict=True))
    # Where one arm has learned nothing there is nothing to compare with.
    either = [None if a is None or b is None else min(a, b) for a, b in both]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    return f"{weakened(rows, either, mark)} {_unequal(pairs)}".strip()


def _unequal(pairs: Sequence[tuple[float, float]]) -> str:
    """That one arm has learned less than the other, and so has less to lose; or nothing.

    >>> _unequal([(0.95, 0.6), (0.96, 0.7)])
    'Before any shift the network without batch norm is right on 65.0 %, the one with it on ...'
    """
    ours, theirs = (median(one) for one in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    if round(abs(ours - theirs), 9) <= EQUAL:
        return ""
    low, high = sorted((ours, theirs))
    less, more = ("without", "with it") if theirs < ours else ("with", "without it")
    return (
        f"Before any shift the network {less} batch norm is right on {100 * low:.1f} %, the one "
        f"{more} on {100 * high:.1f} % (medians): what has learned less has less to lose."
    )


def middle(values: list[float | None]) -> float | None:
    """The median of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
