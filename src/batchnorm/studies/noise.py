"""L15: mini-batch statistics are noisy; the noise regularizes, less so in bigger mini-batches."""

import math
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from batchnorm.data import Data, load
from batchnorm.studies._gaps import LARGE, SMALL, gaps, pictures
from batchnorm.studies._ghosts import gap_of, in_groups
from batchnorm.studies._judge import by_seed, judge, predicted
from batchnorm.studies._network import EMBEDDED, build, label, phrase
from batchnorm.studies._noise import Found, noise_of
from batchnorm.studies._sweep import SEEDS, Rows, networks
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict

if TYPE_CHECKING:
    import altair as alt

NAME = "noise"
LECTURE = "L15"
TITLE = "Batch norm adds noise, and less of it in bigger mini-batches"
CLAIM = (
    "Each mini-batch is scaled by its own mean and variance, which are noisy; this adds some noise "
    "to the hidden units and so has a slight regularization effect. A bigger mini-batch, say 512 "
    "instead of 64, reduces the noise and with it the regularization."
)
METHOD = (
    "The noise: an example is put into random mini-batches of the training set (drawn with "
    "replacement) and sent through a trained network, in which batch norm alone is in training "
    "mode; what is told is the standard deviation of a unit's normalized value from mini-batch to "
    "mini-batch, in standard deviations of the unit over the training set. The regularization: "
    "networks are trained on the same mini-batches of 512, from the same weights, in which batch "
    "norm normalizes groups of 16 to 512 examples (ghost batches), so that the number of updates "
    "is the same, at one learning rate, 0.1. The gap is between the training and the test set, in "
    "evaluation mode, with statistics of the whole training set for all. Since a network that has "
    "learned less has a narrower gap, too, the test loss is compared besides."
)
PUBLISHED = (
    "A training example is seen with the others of its mini-batch, which regularizes: Ioffe & "
    "Szegedy 2015, section 3.4. Normalizing small groups of a large mini-batch significantly "
    "decreases the generalization gap: Hoffer et al. 2017. Composer's documentation tells of a "
    "change of -0.3 to +0.3 % on ImageNet with groups of 32."
)
MEANING = (
    "The noise follows from the number of examples that are normalized together, so you can "
    "choose it apart from the mini-batch that you train on: ghost_size= normalizes smaller groups. "
    "Do not count on it as your regularizer, and expect its effect to change when you change the "
    "mini-batch or the number of devices."
)

SLOPE, SLOPE_TOLERANCE = -0.5, 0.05  # of log noise by log m: 1 / sqrt(m)
CUT = math.sqrt(8)  # of 512 to 64
CUT_TOLERANCE = 0.1 * CUT  # what the tolerated slope makes of a factor of 8 in size
FOLLOWS, FAR = 0.1, 0.5  # relative distance from the law, as in the study of the identity
LAW_FROM = 32  # below it the first-order law is known not to hold
ALL = (8, 16, 32, 64, 128, 256, 512)
SIZES = {"quick": (8, 32, 64, 512), "full": ALL}
GHOSTS = {"quick": (16, SMALL, LARGE), "full": ALL}
DRAWS = {"quick": 200, "full": 1000}
STEPS = {"quick": (100, 60), "full": (1000, 1000)}  # before the noise is measured; in groups
RATES = {"sigmoid": 1.0}  # others 0.1


def trials(setup: Setup) -> list[Trial] | str:
    """One trial a network and seed for the noise; one a size of groups and seed for the gap."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    steps, grouped = STEPS[setup.scale]
    own = {"batch_norm": True, "procedure": NAME}
    out = [
        replace(
            base,
            learning_rate=RATES.get(base.activation, 0.1),
            steps=steps,
            every=steps,
            seed=seed,
            options={"draws": DRAWS[setup.scale], "sizes": SIZES[setup.scale]},
            **own,
        )
        for base in bases
        for seed in range(SEEDS[setup.scale])
    ]
    base = replace(bases[-1], batch_size=LARGE, steps=grouped, every=grouped, **own)
    return out + [
        replace(base, seed=seed, options={"group": size})
        for size in (GHOSTS[setup.scale] if _can_be_grouped(base) else ())
        for seed in range(SEEDS[setup.scale])
    ]


def _can_be_grouped(base: Trial) -> bool:
    if base.network in EMBEDDED:  # they can; to build one takes longer than all else of a plan
        return True
    try:
        in_groups(build(base, load(base.data)), LARGE)
    except ValueError:
        return False
    return True


def rows(trial: Trial, data: Data) -> list[Found]:
    """A row a size and layer with its noise; or one row with the gap."""
    model = build(trial, data)
    options = dict(trial.options)
    if "group" in options:
        model = in_groups(model, options["group"])
        descended(trial, model, data)
        return [gap_of(model, data)]
    if descended(trial, model, data)[-1].get("diverged"):
        return [{"size": m, "layer": 1, "noise": None, "law": None} for m in options["sizes"]]
    like = next(model.parameters())
    x = data.train.x.to(like.device, like.dtype)
    # An example for each seed.
    probe = (trial.seed * 997) % len(x)
    return noise_of(model, x, probe, options["sizes"], options["draws"], trial.seed)


def measure(rows: Rows) -> list[Verdict]:
    """How the noise falls (the headline, of the last network), its size; and the gap."""
    noisy = [row for row in rows if "noise" in row]
    out: list[Verdict] = []
    for network in reversed(list(dict.fromkeys(row["activation"] for row in noisy))):
        out += _noise([r for r in noisy if r["activation"] == network], label(network))
    pairs = [row for row in rows if "train_loss" in row]
    return out + (gaps(NAME, pairs) if pairs else [])


def _noise(rows: Rows, name: str) -> list[Verdict]:
    seeds = by_seed(rows).values()
    cuts = [_cut(mine) for mine in seeds]
    out = [
        predicted(
            NAME,
            f"slope of the noise, {name}",
            "The noise of a hidden unit's value falls as one over the square root of the "
            f"mini-batch's size: a slope of {SLOPE:g} in logarithms ({name}).",
            [_slope(mine) for mine in seeds],
            SLOPE,
            SLOPE_TOLERANCE,
            note=f"All layers, mini-batches of {LAW_FROM} to {LARGE}. {_told(rows)}",
        ),
        predicted(
            NAME,
            f"noise at {SMALL} over {LARGE}, {name}",
            f"Going from {SMALL} to {LARGE} examples divides the noise by the square root of 8, "
            f"{CUT:.2f} ({name}).",
            cuts,
            CUT,
            CUT_TOLERANCE,
            unit="×",
            note="At the last batch norm, with the noise of all before it.",
        ),
    ]
    off = [_off_the_law(mine) for mine in seeds]
    if any(one is not None for one in off):
        out.append(
            judge(
                NAME,
                f"size of the noise, {name}",
                "At x standard deviations from its mean a unit of skewness s and kurtosis k in the "
                "first hidden layer has noise sqrt((1 + x s + x^2 (k - 1) / 4) / m) "
                f"({name}).",
                off,
                none=FAR,
                claimed=FOLLOWS,
                note=f"The largest relative distance from it for {LAW_FROM} examples or more.",
            )
        )
    return out


def _at(rows: Rows, size: int, layers: str = "all") -> float | None:
    """The root of the mean square over layers, or the last layer's."""
    found = [row["noise"] for row in rows if row["size"] == size]
    if not found or None in found or min(found) <= 0:
        return None
    found = found[-1:] if layers == "last" else found
    return math.sqrt(sum(one**2 for one in found) / len(found))


def _slope(rows: Rows) -> float | None:
    sizes = sorted({row["size"] for row in rows if row["size"] >= LAW_FROM})
    noise = [_at(rows, size) for size in sizes]
    known = [one for one in noise if one is not None]
    if len(known) < max(len(sizes), 2):
        return None
    return float(np.polyfit(np.log(sizes), np.log(known), 1)[0])


def _cut(rows: Rows) -> float | None:
    small, large = (_at(rows, size, "last") for size in (SMALL, LARGE))
    return small / large if small is not None and large is not None else None


def _off_the_law(rows: Rows) -> float | None:
    found = [row for row in rows if row["layer"] == 1 and row["size"] >= LAW_FROM]
    if not found or any(row["law"] is None or row["noise"] is None for row in found):
        return None
    return max(abs(row["noise"] / row["law"] - 1) for row in found)


def _told(rows: Rows) -> str:
    words: list[str] = []
    for size in (SMALL, LARGE):
        known = [at for mine in by_seed(rows).values() if (at := _at(mine, size)) is not None]
        words += [f"{median(known):.3f} at {size}"] if known else []
    return f"Standard deviations: {', '.join(words)} (medians)." if words else ""


def charts(rows: Rows) -> "dict[str, alt.LayerChart]":
    """The noise against the size of the mini-batch, layer by layer; the gaps against the groups."""
    from batchnorm.charts import sweep

    out: dict[str, alt.LayerChart] = {}
    noisy = [row for row in rows if "noise" in row]
    for network in dict.fromkeys(row["activation"] for row in noisy):
        mine = [row for row in noisy if row["activation"] == network]
        drawn = [row | {"arm": f"batch norm {row['layer']}"} for row in mine]
        drawn += [
            row | {"arm": "predicted for the first", "noise": row["law"]}
            for row in mine
            if row["law"] is not None
        ]
        out[f"noise-{network}"] = sweep(
            drawn,
            "size",
            "noise",
            x_title="examples in a mini-batch",
            y_title="noise, standard deviations",
            title=f"One example in {mine[0]['draws']} random mini-batches, {phrase(network)}",
            log_y=True,
        )
    return out | pictures(rows)
