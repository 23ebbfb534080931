"""L15: batch norm and dropout in one network, in either order and at several rates."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data, load
from batchnorm.studies._dropout_costs import compared, lost, lost_anew
from batchnorm.studies._dropped import BEFORE, LAST, dropouts_of, shifts, with_dropout
from batchnorm.studies._kept import thinned
from batchnorm.studies._network import fresh, label
from batchnorm.studies._orders import ALONE, BARE, ORDERS, PLAIN, Arm, Arms, Name, arms_of, both
from batchnorm.studies._sweep import LOST, SEEDS, networks
from batchnorm.studies._taught import tested_on
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._variance_ratios import variances
from batchnorm.studies._verdict import Verdict
from batchnorm.surgery import recalibrate
from batchnorm.train import Row, evaluate

if TYPE_CHECKING:
    import altair as alt

NAME = "dropout"
LECTURE = "L15"
TITLE = "Batch norm can be used together with dropout"
CLAIM = (
    "The noise of mini-batches regularizes slightly, as dropout does; batch norm may be used "
    "together with dropout for the stronger effect of dropout."
)
METHOD = (
    "Networks of the same initial weights are trained on the same mini-batches: without either, "
    "with batch norm before each hidden activation, with dropout at the same places, and with "
    "both: dropout before each batch norm, after each (for ReLU the same as after the activation), "
    "and after the last one only. Since dropout costs accuracy by itself where there is too little "
    "training for it, what is judged first is what it costs beside batch norm less what it costs "
    "at the same places without. Each arm has its best learning rate where several are tried (a "
    "quick look has one), chosen on the validation set. "
    f"{LOST} The variance ratio is that of the running variance to the "
    "variance of what a batch norm takes in in evaluation, where nothing is dropped out: the "
    "median over channels, taken above 1, of the layer where it is largest."
)
PUBLISHED = (
    "Dropout was taken out, or its rate lowered from 40 % to 5 or 10 %: Ioffe & Szegedy 2015. "
    "Dropout in front of batch norm shifts the variance from training to evaluation: DenseNet on "
    "CIFAR-100 fell from 77.42 % to 68.55 % (Li et al. 2018). "
    "CaffeNet's layers fc6 and fc7: 0.513 without, 0.527 at rate 0.2, 0.499 at 0.5 "
    "(ducha-aiki's caffenet-benchmark)."
)
MEANING = (
    "Put dropout behind the last batch norm, so that no batch norm sees dropped values. Where one "
    "does, its running variance is that of training, which evaluation does not have: keep the rate "
    "low there, and compare with statistics measured anew without dropout (recalibrate). Whether "
    "dropout pays at all is for a network that fits its training set much better than new data."
)

RATES = {"quick": (0.1, 0.5), "full": (0.1, 0.2, 0.5)}  # of values that are dropped out
LEARNING_RATES = {"quick": (0.1,), "full": (0.0316, 0.1, 0.316, 1.0)}
LOOKS = {"quick": (100, 200), "full": (200, 2000)}  # steps between rows, and all of them

Rows = list[dict[str, Any]]


def trials(setup: Setup) -> list[Trial] | str:
    """All orders and rates, batch norm alone, dropout alone and neither, over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    base = bases[-1]
    if setup.model is not None and (own := dropouts_of(fresh(setup.model, load(setup.data)))):
        return (
            f"{setup.model} has dropout of its own ({', '.join(own)}); the study puts its own in "
            "different places, which would come on top: give the network without it"
        )
    every, most = LOOKS[setup.scale]
    base = replace(base, steps=min(base.steps, most), every=every, procedure=NAME)
    arms = [(None, 0.0, False), (None, 0.0, True)]
    arms += [
        (order, rate, order in ORDERS) for order in (*ORDERS, "bare") for rate in RATES[setup.scale]
    ]
    return [
        replace(
            base,
            batch_norm=batch_norm,
            learning_rate=learning_rate,
            seed=seed,
            options={"order": order, "rate": rate},
        )
        for order, rate, batch_norm in arms
        for learning_rate in LEARNING_RATES[setup.scale]
        for seed in range(SEEDS[setup.scale])
    ]


def rows(trial: Trial, data: Data) -> list[Row]:
    """Rows of training; the last also has what became of the variances, where there is batch norm.

    And the test accuracy with statistics measured anew, without dropout.
    """
    order, rate = trial.option("order"), trial.option("rate")
    model = with_dropout(trial, data, order, rate)
    rows: list[dict[str, Any]] = [*thinned(descended(trial, model, data))]
    rows[-1] |= tested_on(data)
    if trial.batch_norm and not rows[-1].get("diverged"):
        rows[-1] |= shifts(model, data, rate if order == BEFORE else 0.0)
        like = next(model.parameters())
        recalibrate(model, data.train.x.to(like.device, like.dtype).split(500))
        rows[-1]["anew"] = evaluate(model, data.test)[1]
    return rows


def measure(rows: Rows) -> list[Verdict]:
    """What dropout costs beside batch norm less what it costs without it (the headline).

    Then accuracy against batch norm alone, also with statistics measured anew; the variances, and
    the ratio that dropout predicts.
    """
    out: list[Verdict] = []
    for network in dict.fromkeys(row["activation"] for row in rows):
        arms = arms_of([row for row in rows if row["activation"] == network])
        most = max(rate for _, rate in arms)
        seeing = [name for name in both(arms) if name[0] != ORDERS[LAST] and name[1] == most]
        out += [compared(arms, name, label(network)) for name in seeing]
        out += [lost(arms, name, label(network)) for name in both(arms)]
        out += [lost_anew(arms, name, label(network)) for name in seeing]
        out += variances(arms, label(network))
    return out


def charts(rows: Rows) -> "dict[str, alt.LayerChart]":
    """Accuracy over the rate, order by order; variance ratios layer by layer; what is lost."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        arms = arms_of([row for row in rows if row["activation"] == network])
        points = [
            row | {"arm": order, "rate": rate}
            for (order, rate), start in _points(arms)
            for row in start.last.values()
        ]
        out[f"rates-{network}"] = sweep(
            points,
            "rate",
            log_x=False,
            x_title="rate of dropout",
            title=f"Test accuracy at the end, {label(network)}",
        )
        most = max(rate for _, rate in arms)
        layers = [
            {"arm": order, "layer": layer, "ratio": ratio}
            for order in [*ORDERS.values(), ALONE]
            for row in arms[order, 0.0 if order == ALONE else most].last.values()
            for layer, ratio in enumerate(row.get("ratios") or [], start=1)
        ]
        if layers:
            out[f"variances-{network}"] = sweep(
                layers,
                "layer",
                "ratio",
                log_x=False,
                y_title="running variance / variance",
                title=f"Running variance to that in evaluation, rate {most:g}, {label(network)}",
            )
    out["lost"] = intervals(
        [asdict(v) | {"label": v.metric} for v in measure(rows) if v.unit == "points"],
        x_title="points of accuracy lost",
        title="What dropout costs beside batch norm: median and interval",
        reference=0,
    )
    return out


def _points(arms: Arms) -> list[tuple[Name, Arm]]:
    """Every order's line, from the network without dropout at rate 0 on."""
    begin = [(order, arms[ALONE, 0.0]) for order in ORDERS.values()] + [(BARE, arms[PLAIN, 0.0])]
    return [
        ((order, rate), one)
        for order, start in begin
        for rate, one in [(0.0, start), *sorted((r, a) for (o, r), a in arms.items() if o == order)]
    ]
