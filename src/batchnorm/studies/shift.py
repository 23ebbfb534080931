"""L14: batch norm limits how far the distribution of the hidden units moves."""

import math
from dataclasses import replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data
from batchnorm.studies._judge import by_seed, judge
from batchnorm.studies._looks import EXAMPLES, Look, look, places
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._sweep import Rows, networks, one_rate, sweep
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._wider import WITH, WITHOUT
from batchnorm.train import Row

if TYPE_CHECKING:
    import altair as alt

NAME = "shift"
LECTURE = "L14"
TITLE = "Batch norm limits how far the hidden units' distributions move"
CLAIM = (
    "Batch norm reduces the amount that the distribution of the hidden unit values shifts around: "
    "their mean and variance stay the same, governed by beta and gamma, and the later layers have "
    "more firm ground to stand on."
)
METHOD = (
    f"While a network is trained with and without batch norm, the same {EXAMPLES} training "
    "examples are shown to it every few steps, and what comes to its hidden activations is "
    "recorded. The drift is the way that a unit's mean goes from look to look, in its standard "
    "deviations, and how often its standard deviation is multiplied, as a logarithm: the median "
    "over a layer's units, summed over training, averaged over layers; in evaluation after the "
    "first steps, in which running averages forget their initial values. Both arms start from the "
    "same weights and take the same mini-batches at the same learning rate. That the first steps "
    "are left out was settled after a short run of two seeds with them, in which the spread in "
    "evaluation moved more with batch norm (0.76 times less with sigmoid, 0.69 with ReLU)."
)
PUBLISHED = (
    "With batch norm the 15th, 50th and 85th percentiles of a typical sigmoid's inputs hardly move "
    "over 50,000 steps on MNIST: Ioffe & Szegedy 2015, Figure 1. That this is why it helps is "
    "disputed: Santurkar et al. 2018 made the distributions less stable on purpose, and training "
    "was as fast; Awais et al. 2020 argue the opposite."
)
MEANING = (
    "Watch the hidden units of your own network with batchnorm.record: distributions that run away "
    "or stretch by orders of magnitude point to a learning rate or initial weights that do not fit "
    "it. That batch norm holds them in place in training follows from its formula; whether that is "
    "why a network learns faster is another question, on which this study says nothing."
)

HALVED = 2.0  # times: a drift that is not even halved is not limited
STEPS = {"quick": (200, 20), "full": (2000, 50)}  # and steps between looks
WARM = 60  # steps until running averages have forgotten where they began: 0.9^60 is 0.2 %
BINS = 40
PERCENTILES = ("p15", "p50", "p85")
DRIFTS = {
    "mean": "The hidden units' means move less with batch norm",
    "spread": "The units' standard deviations change less with batch norm",
}
MODES = {"training": "in training", "evaluation": "in evaluation, on running averages"}


def trials(setup: Setup) -> list[Trial] | str:
    """Every network with batch norm and without it, over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    steps, every = STEPS[setup.scale]
    mine = {"steps": steps, "every": every, "procedure": NAME}
    return [
        replace(trial, options={"drawn": True}) if trial.seed == 0 else trial
        for base in bases
        for arm in (False, True)
        for trial in sweep(base, setup.scale, [one_rate(base)], batch_norm=arm, **mine)
    ]


def rows(trial: Trial, data: Data) -> list[dict[str, Any]]:
    """A row for each look, layer and mode; of the first seed with the histograms that are drawn."""
    model, at = build(trial, data), places(trial, data)
    like = next(model.parameters())
    x = data.train.x[:EXAMPLES].to(like.device, like.dtype)
    out: list[dict[str, Any]] = []
    before: dict[tuple[str, str], dict[str, Any]] = {}

    def see(row: Row) -> None:
        for mode in MODES if not row.get("diverged") else ():
            seen = look(model, at, x, training=mode == "training", bins=BINS)
            for place in at:
                found = _told(seen, place, before.get((mode, place)))
                found["test_accuracy"] = row["test_accuracy"]
                drawn = mode == "training" and "drawn" in dict(trial.options)
                out.append({"step": row["step"], "layer": place, "mode": mode, **found})
                out[-1] |= _shape(seen[place]) if drawn else {}
                before[mode, place] = seen[place]

    descended(trial, model, data, see)
    return out


def _told(seen: Look, place: str, before: dict[str, Any] | None) -> dict[str, Any]:
    """Percentiles of the layer's first unit, and the medians of its units' drift."""
    now = seen[place]
    out: dict[str, Any] = {name: _finite(now[name][0]) for name in PERCENTILES}
    drift: dict[str, list[float]] = {"mean": [], "spread": []}
    if before is not None:
        for mean, std, was, spread in zip(
            now["mean"], now["std"], before["mean"], before["std"], strict=True
        ):
            if std > 0 and spread > 0:  # a unit that is the same for all examples has no scale
                drift["mean"].append(abs(mean - was) / spread)
                drift["spread"].append(abs(math.log(std / spread)))
    return out | {key: _finite(median(v)) if v else None for key, v in drift.items()}


def _shape(now: dict[str, Any]) -> dict[str, Any]:
    return {"counts": now["histogram"], "ends": [_finite(end) for end in now["histogram_ends"]]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """How many times less it drifts with batch norm: means (the headline), spreads; both modes."""
    out: list[Verdict] = []
    # The network that learns without batch norm gives the headline: what learns nothing stays.
    for network in sorted(dict.fromkeys(r["activation"] for r in rows), key=lambda n: n != "relu"):
        mine = [row for row in rows if row["activation"] == network]
        for mode, words in MODES.items():
            for what, claim in DRIFTS.items():
                out.append(
                    judge(
                        NAME,
                        f"drift of the {what}, {mode}, {label(network)}",
                        f"{claim} {words} ({label(network)}).",
                        _times(mine, mode, what),
                        none=1.0,
                        claimed=HALVED,
                        unit="×",
                        note="How many times less; both arms at the same learning rate. "
                        + _ends(mine, mode, what),
                        caution=_learned(mine),
                    )
                )
    return out


def _times(rows: Rows, mode: str, what: str) -> list[float | None]:
    """Drift without batch norm over drift with it, one a seed."""
    out: list[float | None] = []
    for mine in by_seed(rows).values():
        without, with_it = (_summed(mine, arm, mode, what) for arm in (False, True))
        out.append(without / with_it if without is not None and with_it else None)
    return out


def _summed(rows: Rows, arm: bool, mode: str, what: str) -> float | None:
    """Over training, averaged over layers; None for a run that did not come to its end."""
    mine = [row for row in rows if row["batch_norm"] == arm and row["mode"] == mode]
    if not mine or max(row["step"] for row in mine) < mine[0]["steps"]:
        return None
    # In evaluation the first running averages would count as a shift, and for batch norm alone.
    since = WARM if mode == "evaluation" else 0
    drift = [row[what] for row in mine if row["step"] > since]
    layers = len({row["layer"] for row in mine})
    return None if None in drift else sum(drift) / layers


def _ends(rows: Rows, mode: str, what: str) -> str:
    seeds = by_seed(rows).values()
    sums = [[_summed(mine, arm, mode, what) for mine in seeds] for arm in (False, True)]
    known = [[one for one in arm if one is not None] for arm in sums]
    if not all(known):
        return ""
    unit = "standard deviations" if what == "mean" else "in logarithms"
    plain, normed = (median(one) for one in known)
    return f"Medians: {plain:.2g} without batch norm, {normed:.2g} with it ({unit})."


def _learned(rows: Rows) -> str:
    """A network that learns nothing does not move either."""
    low = {
        arm: fmean([row["test_accuracy"] or 0 for row in rows if _is_last(row, arm)] or [0])
        for arm in (False, True)
    }
    words = [
        f"{'With' if arm else 'Without'} batch norm it has only {100 * value:.0f} % accuracy at "
        "the end: what learns little moves little."
        for arm, value in low.items()
        if value < 0.5
    ]
    return " ".join(words)


def _is_last(row: dict[str, Any], arm: bool) -> bool:
    return row["batch_norm"] == arm and row["step"] == row["steps"]


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """The distributions to scrub through, and the percentiles of one unit over training."""
    from batchnorm.charts import curves, halves

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine: list[dict[str, Any]] = [
            row | {"arm": WITH if row["batch_norm"] else WITHOUT}
            for row in rows
            if row["activation"] == network and row["mode"] == "training" and row.get("drawn")
        ]
        drawn = [row for row in mine if "counts" in row and None not in row["ends"]]
        if drawn:
            if all(row["layer"].isdigit() for row in drawn):  # a place in a list is no name
                order = sorted({int(row["layer"]) for row in drawn})
                drawn = [r | {"layer": str(order.index(int(r["layer"])) + 1)} for r in drawn]
            out[f"distributions-{network}"] = halves(
                drawn,
                y_title="value that comes to the activation",
                title=f"What comes to the hidden activations, {phrase(network)}",
            )
        last = [row for row in mine if row["layer"] == mine[-1]["layer"]]
        out[f"percentiles-{network}"] = curves(
            last,
            "step",
            "p50",
            band=("p15", "p85"),
            y_title="value that comes to the activation",
            title=f"One unit of the last hidden layer, {phrase(network)}: "
            "median, and band from the 15th to the 85th percentile",
        )
    return out
