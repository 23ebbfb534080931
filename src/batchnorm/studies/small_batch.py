"""L15: what becomes of batch norm in mini-batches of a few examples, and of what replaces it."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data, load
from batchnorm.studies._network import EMBEDDED, build, label
from batchnorm.studies._small import GHOST, GROUP, NORM, RENORM, other, with_norm
from batchnorm.studies._small_costs import ANEW, ARMS, LARGE, SMALL, TESTED, losses
from batchnorm.studies._sweep import LOST, SEEDS, ends, networks
from batchnorm.studies._taught import tested_on
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict
from batchnorm.surgery import recalibrate
from batchnorm.train import Row, evaluate

if TYPE_CHECKING:
    import altair as alt

NAME = "small_batch"
LECTURE = "L15"
TITLE = "Batch norm needs more than a few examples in a mini-batch"
CLAIM = (
    "Mean and variance of a mini-batch are noisy, since they are those of 64, 128 or 256 examples "
    "instead of all; the larger the mini-batch, the less the noise."
)
METHOD = (
    "Networks of the same initial weights see equally many examples, in mini-batches of 2 to 64, "
    "with batch norm, batch renormalization (limits raised to r 3 and d 5 over the first fifth of "
    "the steps) or group norm (groups of at most 16 channels) before each hidden activation. The "
    "learning rate, fixed beforehand for mini-batches of 64, is proportional to their size; no arm "
    "has its best one (of five from 0.3 to 30 times as large, in one seed, batch norm's best gave "
    "50.9 % at 2 and 91.2 % at 64, group norm's 89.1 % and 81.9 %). "
    "Of 2 values, as in a fully connected layer, batch norm leaves only which is "
    "larger; in a convolution positions count too. Ghost batches normalize a few examples together "
    "within mini-batches of 64: the noise of small ones with the updates of large ones. What is "
    f"lost is test accuracy at the end, against 64. {LOST} With statistics "
    "measured anew, running averages are those of the whole training set. To save time a quick "
    "look has no mini-batches of 8 and 32, renormalization at 2 and 64 alone, and 2560 examples; "
    "these had been 6000 until a run of one seed (47.8 points more lost than by group norm at 2)."
)
PUBLISHED = (
    "ResNet-50 on ImageNet in mini-batches of 2: group norm has an error 10.6 % lower than batch "
    "norm's (Wu & He 2018). Batch renormalization does substantially better than batch norm with "
    "small mini-batches or dependent examples (Ioffe 2017)."
)
MEANING = (
    "Count the examples that one batch norm sees in one call, on one device: that is the size of "
    "the mini-batch here. Where memory allows only a few, compare with group norm, which does not "
    "depend on it, and measure the statistics of a trained batch norm anew (recalibrate) before "
    "you judge it: its running averages are of few examples, too."
)

SIZES = {"quick": (2, 4, 16, 64), "full": (2, 4, 8, 16, 32, 64)}
EXAMPLES = {"quick": 2560, "full": 30_000}
LEARNING_RATE = 0.1  # at 64; what other studies take for a ReLU network, at 60

Rows = list[dict[str, Any]]


def trials(setup: Setup) -> list[Trial] | str:
    """All norms at all sizes of mini-batches, over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    data, base = load(setup.data), replace(bases[-1], batch_norm=True, procedure=NAME)
    if (count := len(data.train)) < LARGE:
        return f"data {setup.data!r} has {count} examples to train on; {LARGE} are a mini-batch"
    # The embedded networks have what it takes; to build them takes longer than all else here.
    if base.network not in EMBEDDED and (why := other(build(base, data))):
        return f"{setup.model}: {why}; the study needs others in its place"
    sizes = SIZES[setup.scale]
    arms = [(arm, size, size) for arm in (NORM, GROUP) for size in sizes]
    # The slowest of them, judged at the smallest alone.
    arms += [(RENORM, size, size) for size in (sizes if setup.scale == "full" else (SMALL, LARGE))]
    arms += [(GHOST, size, LARGE) for size in sizes if size < LARGE]
    steps = {size: EXAMPLES[setup.scale] // size for size in sizes}
    return [
        replace(
            base,
            batch_size=batch,
            learning_rate=LEARNING_RATE * batch / LARGE,
            steps=steps[batch],
            every=steps[batch],
            seed=seed,
            options={"arm": arm, "together": together},
        )
        for arm, together, batch in arms
        for seed in range(SEEDS[setup.scale])
    ]


def rows(trial: Trial, data: Data) -> list[Row]:
    """Rows of training; the last also has the accuracy with statistics measured anew."""
    arm = trial.option("arm")
    model = with_norm(build(trial, data), arm, trial.option("together"), trial.steps)
    rows = descended(trial, model, data)
    rows[-1] |= tested_on(data) | {ANEW: None}
    if arm != GROUP and not rows[-1].get("diverged"):
        like = next(model.parameters())
        x = data.train.x.to(like.device, like.dtype)
        recalibrate(model, x.split(1000), layer_by_layer=True)
        rows[-1][ANEW] = evaluate(model, data.test)[1]
    return rows


def measure(rows: Rows) -> list[Verdict]:
    """What batch norm loses more than group norm at 2 (the headline) and at 4; and other norms."""
    out: list[Verdict] = []
    for network in dict.fromkeys(row["activation"] for row in rows):
        out += losses([row for row in rows if row["activation"] == network], label(network))
    return out


def charts(rows: Rows) -> "dict[str, alt.LayerChart]":
    """Accuracy over the examples normalized together, as trained and anew; and what is lost."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine = ends([row for row in rows if row["activation"] == network])
        mine.sort(key=lambda row: ARMS.index(row["arm"]))
        anew = [row for row in mine if row["arm"] != GROUP]
        for name, drawn, field, how in (
            ("sizes", mine, TESTED, "at the end"),
            ("anew", anew, ANEW, "with statistics measured anew"),
        ):
            out[f"{name}-{network}"] = sweep(
                drawn,
                "together",
                field,
                x_title="examples in a mini-batch, or in a ghost batch",
                y_title="test accuracy",
                title=f"Test accuracy {how}, {label(network)}",
            )
    out["lost"] = intervals(
        [asdict(v) | {"label": v.metric} for v in measure(rows)],
        x_title="points of accuracy",
        title="What mini-batches of a few examples cost: median and interval",
        reference=0,
    )
    return out
