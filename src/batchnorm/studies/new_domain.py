"""L14's black cats: a network meets images from elsewhere, and its statistics are measured anew."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from batchnorm.data import Data, Examples, load
from batchnorm.studies._domains import DOMAINS, seen_in
from batchnorm.studies._judge import Marks, by_seed, judge
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._recovery import (
    ANEW,
    AS_TRAINED,
    CLEAN,
    FEW,
    LOST,
    MANY,
    SKEWED,
    Found,
    accuracy,
    anew,
    doubts,
    less_lost,
    lost,
    middle,
    recovered,
    row_of,
    skewed,
)
from batchnorm.studies._sweep import SEEDS, networks, one_rate
from batchnorm.studies._taught import tested_on, weakened
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict

if TYPE_CHECKING:
    import altair as alt

NAME = "new_domain"
LECTURE = "L14"
TITLE = "Batch norm shields a network from inputs unlike its training data"
CLAIM = (
    "A classifier trained on black cats does not do well on coloured ones: covariate shift. Batch "
    "norm limits how much the distribution of the values in a layer is moved by what comes "
    "before."
)
METHOD = (
    "Networks with batch norm and without it are trained on the images as they are, and judged on "
    "test images that are inverted, dimmed to 0.3, brightened by half the range, noised with half "
    "the range, or blurred. Then batch norm's statistics alone are measured anew on 1 to 512 "
    "unlabelled images of the new kind, taken from the validation set, with the old statistics "
    "counting for nothing or for 16 images. Shielded is what is lost less with batch norm, as "
    "trained, than without it; recovered, a share of what is lost with it. The lecture speaks of "
    "shifts that the training of earlier layers makes (see the study of the shift); here the "
    "inputs shift. All arms of a network have one learning rate. The blur was made stronger after "
    "a first run, in which it had cost less than two points."
)
PUBLISHED = (
    "ResNet-50 on corrupted ImageNet (ImageNet-C): a mean corruption error of 62.2 % with "
    "statistics measured anew against 76.7 %, and 32 images are enough for most of it: Schneider "
    "et al. 2020. Accuracy from 39.2 to 48.7 %: Benz et al. 2021."
)
MEANING = (
    "Batch norm with the running statistics of training does not protect a network against inputs "
    "from elsewhere; they are part of what no longer fits. Measuring them anew needs no labels "
    "and no training: batchnorm.recalibrate(model, batches), with a prior where there are few "
    "images. Have all classes among them: statistics of some classes alone can do harm where "
    "nothing had to be mended."
)

HALF, NOTHING = 0.5, 0.0  # of the accuracy lost
SHIELDED = 2.0  # points: what studies tell apart
UNHARMED, HARMED = 0.5, 2.0  # points
STEPS = {"quick": 200, "full": 2000}


def trials(setup: Setup) -> list[Trial] | str:
    """Both arms over paired seeds."""
    shape = load(setup.data).shape
    if len(shape) != 3:
        return (
            f"data {setup.data!r} has examples of shape {shape}: images (channels, height, width) "
            "are needed, which can be inverted, dimmed, noised and blurred"
        )
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    steps = STEPS[setup.scale]
    return [
        replace(
            base,
            batch_norm=batch_norm,
            learning_rate=one_rate(base),
            steps=steps,
            every=steps,
            seed=seed,
            procedure=NAME,
        )
        for base in bases
        for batch_norm in (False, True)
        for seed in range(SEEDS[setup.scale])
    ]


def rows(trial: Trial, data: Data) -> list[Found]:
    """The accuracy in each domain; with batch norm also for statistics measured anew."""
    model = build(trial, data)
    descended(trial, model, data)
    out: list[Found] = [row_of(CLEAN, AS_TRAINED, model, data.test)]
    ends = data.train.x.min().item(), data.train.x.max().item()
    order = torch.randperm(
        len(data.validation), generator=torch.Generator().manual_seed(trial.seed)
    )
    images = data.validation.x[order]
    for domain in DOMAINS:
        test = Examples(seen_in(domain, data.test.x, ends, trial.seed), data.test.y)
        out.append(row_of(domain, AS_TRAINED, model, test))
        if trial.batch_norm:
            new = seen_in(domain, images, ends, trial.seed + 1)
            out += anew(domain, model, new, test)
    if trial.batch_norm:
        out += skewed(model, images, data.validation.y[order], data.test)
    about = tested_on(data) | {"images": len(images)}
    return [about | row for row in out]


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Whether batch norm shields (the headline); what statistics anew recover; and their harm."""
    out: list[Verdict] = []
    # That of the network that trains well without batch norm too is the headline.
    for network in sorted({row["activation"] for row in rows}, key=lambda name: name != "relu"):
        mine = [row for row in rows if row["activation"] == network]
        out += _network(mine, label(network))
    return out


def _network(rows: list[dict[str, Any]], name: str) -> list[Verdict]:
    normed = list(by_seed([row for row in rows if row["batch_norm"]]).values())
    plain = list(by_seed([row for row in rows if not row["batch_norm"]]).values())
    share = Marks(none=NOTHING, claimed=HALF, unit="of what was lost")
    harm = Marks(none=HARMED, claimed=UNHARMED, unit="points")
    before = [accuracy(mine, CLEAN, AS_TRAINED) for mine in normed]

    def caution(mark: float) -> str:
        few = f"There were only {n} new images." if (n := rows[0]["images"]) < MANY else ""
        return f"{weakened(rows, before, mark)} {few}".strip()

    def overall(size: int) -> list[float | None]:
        return [middle([recovered(mine, one, size) for one in DOMAINS]) for mine in normed]

    verdicts = [
        judge(
            NAME,
            f"recovered, {size} images, {name}",
            f"Statistics measured anew on {size} unlabelled images bring back half of the accuracy "
            "lost in a new domain, at the median of the domains.",
            overall(size),
            caution=caution(100 * LOST),
            **share,
        )
        for size in (MANY, FEW)
    ]
    verdicts += [
        judge(
            NAME,
            f"recovered, {domain}, {name}",
            f"Statistics measured anew on {MANY} unlabelled images bring back half of the accuracy "
            f"lost where images are {domain}.",
            [recovered(mine, domain, MANY) for mine in normed],
            note=f"Seeds that lose less than {100 * LOST:.0f} points have nothing to recover.",
            caution=caution(100 * LOST),
            **share,
        )
        for domain in DOMAINS
    ]
    shield = [
        middle([less_lost(ours, theirs, one) for one in DOMAINS])
        for theirs, ours in zip(plain, normed, strict=True)
    ]
    without = [accuracy(mine, CLEAN, AS_TRAINED) for mine in plain]
    return [
        judge(
            NAME,
            f"loss avoided in a new domain, {name}",
            "Inputs altered in ways not seen in training cost less accuracy with batch norm, as "
            "trained, than without it.",
            shield,
            none=0,
            claimed=SHIELDED,
            unit="points",
            note="The median of the domains; both arms at the same learning rate.",
            caution=doubts(rows, before, without, SHIELDED),
        ),
        *verdicts,
        judge(
            NAME,
            f"statistics of two classes, {name}",
            "Statistics measured anew on images of two classes alone do no harm where nothing is "
            "new.",
            [lost(mine, SKEWED) for mine in normed],
            note=f"Accuracy lost on test images as they were, with {FEW} images of two classes.",
            caution=weakened(rows, before, UNHARMED),
            **harm,
        ),
        judge(
            NAME,
            f"statistics of few images, {name}",
            "Statistics measured anew on as few images of all classes do no harm there.",
            [lost(mine, ANEW) for mine in normed],
            note=f"Accuracy lost on test images as they were, with {FEW} images of all classes.",
            caution=weakened(rows, before, UNHARMED),
            **harm,
        ),
    ]


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Accuracy against the number of new images, a chart a domain; and what is recovered."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        normed = [row for row in rows if row["activation"] == network and row["batch_norm"]]
        for domain in DOMAINS:
            mine = [row for row in normed if row["domain"] == domain]
            anew = [row | {"arm": row["old"]} for row in mine if row["way"] == ANEW]
            trained = [
                row | {"arm": AS_TRAINED, "size": size}
                for row in mine
                if row["way"] == AS_TRAINED
                for size in sorted({one["size"] for one in anew})
            ]
            if anew:
                out[f"{domain}-{network}"] = sweep(
                    trained + [row for row in anew if row["accuracy"] is not None],
                    "size",
                    "accuracy",
                    x_title="new images",
                    y_title="test accuracy",
                    title=f"Test images {domain}, {phrase(network).removeprefix('the ')}",
                )
    told = [asdict(v) | {"label": v.metric} for v in measure(rows) if "recovered" in v.metric]
    out["recovered"] = intervals(
        told,
        x_title="share of the accuracy lost",
        title="What statistics measured anew bring back: median and interval",
        reference=0,
    )
    return out
