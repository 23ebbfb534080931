"""L9: batch norm works with momentum, RMSprop and Adam as with plain gradient descent."""

from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from batchnorm.studies._best import accuracies_at_best
from batchnorm.studies._network import label
from batchnorm.studies._race import race, raced
from batchnorm.studies._sweep import (
    LOST,
    NEAR,
    Sweep,
    decades,
    ends,
    networks,
    rates,
    runs,
    sweep,
    too_few,
)
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict, bootstrap, decide, interval
from batchnorm.studies._wider import WITH, WITHOUT

if TYPE_CHECKING:
    import altair as alt

NAME = "optimizers"
LECTURE = "L9"
TITLE = "Batch norm works with any optimizer"
CLAIM = (
    "Batch norm works with momentum, RMSprop and Adam just as it does with plain gradient descent."
)
METHOD = (
    "The network is trained by each optimizer with and without batch norm, from the same weights "
    "on the same mini-batches, at every learning rate of the optimizer's own grid. Each arm's best "
    "rate is chosen on the validation set; what is compared is the test accuracy at the end, and "
    f"the steps until the best accuracy without batch norm is reached. {LOST}"
)
PUBLISHED = (
    "Any variant of stochastic gradient descent can be used: Ioffe & Szegedy 2015, section 3. "
    "Normalized weights change the effective learning rate as they grow, which Adam only partially "
    "undoes: van Laarhoven 2017. No figures optimizer by optimizer were published."
)
MEANING = (
    "Batch norm does not tie you to an optimizer: its gamma and beta are parameters like others. "
    "Choose the optimizer for other reasons, and search its learning rate anew with batch norm in "
    "before you compare: the rate that suited the network without it need not suit it any more."
)

OPTIMIZERS = {
    "sgd": "plain gradient descent",
    "momentum": "momentum",
    "rmsprop": "RMSprop",
    "adam": "Adam",
}
RATES = {  # those of plain gradient descent are the other studies'
    ("quick", "momentum"): decades(-2, 0, 1),
    ("quick", "rmsprop"): decades(-3.5, -1.5, 1),
    ("quick", "adam"): decades(-3, -1, 1),
    ("full", "momentum"): decades(-3.5, 0.5, 0.5),
    ("full", "rmsprop"): decades(-5, -0.5, 0.5),
    ("full", "adam"): decades(-4.5, 0, 0.5),
}
STEPS = {"quick": 150, "full": 1000}
HARM = -100 * NEAR  # points: closer accuracies are not told apart
FAILED = -5.0  # points lost: that is no longer "works"


def trials(setup: Setup) -> list[Trial] | str:
    """Both arms by every optimizer; those of plain gradient descent are other studies' too."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    # One network: the one that trains well without batch norm too.
    base = bases[-1]
    out: list[Trial] = []
    for arm in (False, True):
        out += sweep(base, setup.scale, rates(setup.scale, base), batch_norm=arm)
        for name in list(OPTIMIZERS)[1:]:
            other = replace(base, optimizer=name, steps=STEPS[setup.scale])
            out += sweep(other, setup.scale, RATES[setup.scale, name], batch_norm=arm)
    return out


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """What the worst optimizer gains by batch norm (the headline), and each one's race."""
    arms = {name: runs(rows, lambda row, name=name: _arm(row, name)) for name in OPTIMIZERS}
    network = label(rows[0]["activation"])
    races = [
        raced(
            NAME,
            race(arms[name], (WITHOUT, WITH)),
            f"steps, {network}, {words}",
            f"With {words}, each arm at its best learning rate, batch norm reaches the best "
            "accuracy of the network without it in fewer steps.",
        )
        for name, words in OPTIMIZERS.items()
    ]
    return [_works(arms, network), *races]


def _works(arms: dict[str, dict[str, Sweep]], network: str) -> Verdict:
    """By how much the accuracy rises, with the optimizer that gains least, seed by seed."""
    best = {
        name: {arm: accuracies_at_best(mine) for arm, mine in both.items()}
        for name, both in arms.items()
    }
    # What is paired are the seeds that all of them have.
    seeds = sorted(set.intersection(*(set(both[WITH][1]) for both in best.values())))
    gains = {
        name: [100 * (both[WITH][1][seed] - both[WITHOUT][1][seed]) for seed in seeds]
        for name, both in best.items()
    }
    worst = [min(mine) for mine in zip(*gains.values(), strict=True)]
    value, low, high = bootstrap(worst)
    told = "; ".join(
        f"{OPTIMIZERS[name]} {median(mine):+.1f} (rates {best[name][WITHOUT][0]:g} and "
        f"{best[name][WITH][0]:g})"
        for name, mine in gains.items()
    )
    first = next(iter(next(iter(arms["sgd"][WITHOUT].values())).values()))
    accuracy = min(median(both[arm][1].values()) for both in best.values() for arm in both)
    at_end = [
        OPTIMIZERS[name]
        for name, both in best.items()
        if any(both[arm][0] in (min(mine), max(mine)) for arm, mine in arms[name].items())
    ]
    ended = f"The best rate tried is the last of its grid with {', '.join(at_end)}."
    return Verdict(
        NAME,
        "With each optimizer, batch norm at its best learning rate comes at least as far as the "
        f"network without it at its own ({network}).",
        f"gain with the worst optimizer, {network}",
        value,
        low,
        high,
        decide(low, high, none=FAILED, claimed=HARM),
        "points",
        f"supported: the whole interval at {HARM:g} points or above, closer ones not being told "
        f"apart; contradicted: all of it below {FAILED:g}; not supported: all of it below "
        f"{HARM:g}; inconclusive: otherwise",
        f"Test accuracy at the end, gains in points (medians): {told}.",
        interval(len(worst)),
        " ".join(filter(None, [too_few(first, accuracy), ended if at_end else ""])),
    )


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Accuracy over learning rates, optimizer by optimizer, and the ratios of steps."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {
        "ratios": intervals(
            [asdict(v) | {"label": v.metric} for v in measure(rows)[1:]],
            x_title="times fewer steps",
            title="How many times fewer steps batch norm takes: median and interval",
            reference=1,
            log_x=True,
        )
    }
    for name, words in OPTIMIZERS.items():
        out[f"rates-{name}"] = sweep(
            [row | {"arm": arm} for row in ends(rows) if (arm := _arm(row, name))],
            title=f"Test accuracy at the end, {words}",
        )
    return out


def _arm(row: dict[str, Any], optimizer: str) -> str | None:
    if row["optimizer"] != optimizer:
        return None
    return WITH if row["batch_norm"] else WITHOUT
