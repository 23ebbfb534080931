"""What a new domain costs a network, and what of it comes back."""

from statistics import median
from typing import Any

from torch import Tensor, nn

from batchnorm.data import Examples
from batchnorm.studies._averages import with_statistics
from batchnorm.surgery import recalibrate
from batchnorm.train import evaluate

LOST = 0.02  # a domain in which less accuracy is lost has nothing to recover
LEARNED = 0.5  # a network that is right less often has little to lose
CLEAN, AS_TRAINED, ANEW, SKEWED = "clean", "as trained", "measured anew", "of two classes"
PRIOR = 16.0
FEW, MANY = 32, 512
SIZES = (1, 2, 8, FEW, 128, MANY)
ALONE, WITH_PRIOR = "new images alone", f"old statistics as {PRIOR:g} images"
Found = dict[str, Any]


def row_of(domain: str, way: str, model: nn.Module, test: Examples, **about: Any) -> Found:
    return {"domain": domain, "way": way, "accuracy": evaluate(model, test)[1], **about}


def anew(domain: str, model: nn.Module, new: Tensor, test: Examples) -> list[Found]:
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
    """On images as they were trained on: of two classes, and as many of all."""
    two = x[y < 2][:FEW]
    out: list[Found] = []
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


def recovered(rows: list[dict[str, Any]], domain: str, size: int) -> float | None:
    """Of the accuracy that a domain costs, the share that statistics measured anew bring back."""
    clean, trained = accuracy(rows, CLEAN, AS_TRAINED), accuracy(rows, domain, AS_TRAINED)
    anew = accuracy(rows, domain, ANEW, size)
    if clean is None or trained is None or anew is None or clean - trained < LOST:
        return None
    return (anew - trained) / (clean - trained)


def less_lost(
    normed: list[dict[str, Any]], plain: list[dict[str, Any]], domain: str
) -> float | None:
    """Points of accuracy that a domain costs less with batch norm."""
    costs: list[float] = []
    for mine in (plain, normed):
        clean, there = accuracy(mine, CLEAN, AS_TRAINED), accuracy(mine, domain, AS_TRAINED)
        if clean is None or there is None or clean < LEARNED:
            return None
        costs.append(100 * (clean - there))
    return costs[0] - costs[1]


def lost(rows: list[dict[str, Any]], way: str) -> float | None:
    before, after = accuracy(rows, CLEAN, AS_TRAINED), accuracy(rows, CLEAN, way)
    return None if before is None or after is None else 100 * (before - after)


def middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
