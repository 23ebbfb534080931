"""L15: what becomes of batch norm in mini-batches of a few examples, and of what replaces it."""

from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data, load
from batchnorm.studies._judge import Marks, by_seed, judge
from batchnorm.studies._network import build, label
from batchnorm.studies._small import GHOST, GROUP, NORM, RENORM, other, with_norm
from batchnorm.studies._sweep import NEAR, SEEDS, ends, networks
from batchnorm.studies._taught import tested_on, weakened
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict
from batchnorm.surgery import recalibrate
from batchnorm.train import Row, evaluate

if TYPE_CHECKING:
    import altair as alt

NAME = "small_batch"
LECTURE = "L15"
TITLE = "Mini-batches of a few examples, and other norms"
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
    "lost is test accuracy at the end, against 64. With statistics measured anew, running averages "
    "are those of the whole training set. To save time a quick look has no mini-batches of 8 and "
    "32, renormalization at 2 and 64 alone, and 2560 examples; these had been 6000 until a run of "
    "one seed (47.8 points more lost than by group norm at 2)."
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

POINTS = 100 * NEAR  # of accuracy: closer ones are not told apart
SMALL, FEW, LARGE = 2, 4, 64
TESTED, ANEW = "test_accuracy", "anew_accuracy"
ARMS = (NORM, GHOST, RENORM, GROUP)
SIZES = {"quick": (2, 4, 16, 64), "full": (2, 4, 8, 16, 32, 64)}
EXAMPLES = {"quick": 2560, "full": 30_000}
LEARNING_RATE = 0.1  # at 64; what other studies take for a ReLU network, at 60
# Momentum a weighs so many mini-batches as equal ones would: (2 - a) / a.
AVERAGED = (
    "With momentum 0.1, running averages in mini-batches of 2 are worth only about 38 examples: "
    "what batch norm loses may be theirs, not that of training (see statistics anew)."
)

Rows = list[dict[str, Any]]
Found = dict[tuple[str, int], dict[str, Any]]  # the last row, by arm and examples


def trials(setup: Setup) -> list[Trial] | str:
    """All norms at all sizes of mini-batches, over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    data, base = load(setup.data), replace(bases[-1], batch_norm=True, procedure=NAME)
    if (count := len(data.train)) < LARGE:
        return f"data {setup.data!r} has {count} examples to train on; {LARGE} are a mini-batch"
    if why := other(build(base, data)):
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
        mine = ends([row for row in rows if row["activation"] == network])
        out += _network(mine, label(network))
    return out


def _network(rows: Rows, name: str) -> list[Verdict]:
    seeds: list[Found] = [
        {(row["arm"], row["together"]): row for row in mine} for mine in by_seed(rows).values()
    ]
    large = [_points(found, NORM, LARGE) for found in seeds]
    caution = weakened(rows, [one and one / 100 for one in large], POINTS)
    noisy = f"{AVERAGED} {caution}".strip()
    marks = Marks(none=0.0, claimed=POINTS, unit="points")
    told = f"Test accuracy at the end, medians: {_medians(seeds)}."

    def more(size: int, field: str = TESTED) -> list[float | None]:
        """Points that batch norm loses more than group norm."""
        both = [(_lost(f, NORM, size, field), _lost(f, GROUP, size)) for f in seeds]
        return [_less(*pair) for pair in both]

    def better(arm: str) -> list[float | None]:
        """Points that an arm is better than batch norm at the smallest size."""
        both = [(_points(f, arm, SMALL), _points(f, NORM, SMALL)) for f in seeds]
        return [_less(*pair) for pair in both]

    at = f"At mini-batches of {SMALL}"
    measures = [
        (
            f"lost more than group norm at {SMALL}",
            f"{at} batch norm loses more against {LARGE} than group norm does.",
            more(SMALL),
            told,
            noisy,
        ),
        (
            f"lost more than group norm at {FEW}",
            f"At mini-batches of {FEW} batch norm loses more against {LARGE} than group norm does.",
            more(FEW),
            "",
            caution,
        ),
        (
            f"lost more, statistics anew, at {SMALL}",
            f"{at} batch norm loses more than group norm even with statistics measured anew.",
            more(SMALL, ANEW),
            f"With statistics anew, medians: {_medians(seeds, ANEW)}.",
            caution,
        ),
        (
            f"group norm, better at {SMALL}",
            f"{at} group norm has a higher accuracy than batch norm.",
            better(GROUP),
            "",
            noisy,
        ),
        (
            f"batch renormalization, better at {SMALL}",
            f"{at} batch renormalization has a higher accuracy than batch norm.",
            better(RENORM),
            "",
            noisy,
        ),
        (
            f"lost by ghost batches of {SMALL}",
            f"The noise alone costs accuracy: ghost batches of {SMALL} lose against whole "
            f"mini-batches of {LARGE}, with the same number of updates.",
            [_less(_points(f, NORM, LARGE), _points(f, GHOST, SMALL)) for f in seeds],
            "",
            caution,
        ),
    ]
    return [
        judge(NAME, f"{metric}, {name}", claim, values, note=note, caution=doubt, **marks)
        for metric, claim, values, note, doubt in measures
    ]


def _points(found: Found, arm: str, size: int, field: str = TESTED) -> float | None:
    """Accuracy in points; what a run that diverged has is what guessing has."""
    row = found.get((arm, size))
    if row is None:
        return None
    return 100 * (row["guessing"] if row[field] is None else row[field])


def _lost(found: Found, arm: str, size: int, field: str = TESTED) -> float | None:
    return _less(_points(found, arm, LARGE, field), _points(found, arm, size, field))


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _medians(seeds: list[Found], field: str = TESTED) -> str:
    words: list[str] = []
    for arm in (NORM,) if field == ANEW else ARMS:
        sizes = sorted({size for found in seeds for kind, size in found if kind == arm})
        at = {size: [_points(found, arm, size, field) for found in seeds] for size in sizes}
        known = {size: [one for one in mine if one is not None] for size, mine in at.items()}
        told = [f"{median(mine):.1f} % at {size}" for size, mine in known.items() if mine]
        words.append(f"{arm} {', '.join(told)}")
    return "; ".join(words)


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
