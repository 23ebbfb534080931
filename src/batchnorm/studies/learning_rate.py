"""L12: with batch norm a much bigger range of learning rates works well."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from batchnorm.studies._range import Range, diverges_from, mean_accuracy, working
from batchnorm.studies._sweep import Rows, Sweep, networks, rates, runs, sweep
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, bootstrap, decide

if TYPE_CHECKING:
    import altair as alt

NAME = "learning_rate"
LECTURE = "L12"
TITLE = "Batch norm makes the hyperparameter search easier"
CLAIM = (
    "Batch normalization makes the hyperparameter search much easier and the network much more "
    "robust: a much bigger range of hyperparameters works well."
)
METHOD = (
    "The network is trained with and without batch norm at every learning rate of a grid, from the "
    "same weights on the same mini-batches. A rate works when the test accuracy at the end is "
    "within 2 points of that at the arm's best rate, which is chosen on the validation set; the "
    "width is that of the longest run of working rates, in decades."
)
PUBLISHED = (
    "Inception with batch norm trained at 30 times the learning rate of the original, which "
    "diverged at 5 times: Ioffe & Szegedy 2015, section 4.2.1. Batch norm primarily enables "
    "training with larger learning rates: Bjorck et al. 2018."
)

NEAR = 0.02  # of the best accuracy: what counts as working well
WIDER = 0.5  # decades, a factor of 3.2: less is not a much bigger range
EASIER = 5.0  # points of accuracy at a learning rate taken blindly from the grid
WITHOUT, WITH = "without", "with batch norm"
INITIAL_SCALES = {
    "quick": (0.01, 0.1, 10.0, 100.0),
    "full": (0.01, 0.0316, 0.1, 0.316, 3.16, 10.0, 31.6, 100.0),
}
LEARNED = 0.1  # an arm whose best accuracy has not risen by so much works nowhere
SCALED_AT = 0.1  # the learning rate at which initial scales are compared: it works for both arms

INF = math.inf
Pairs = list[tuple[Range, Range]]


def trials(setup: Setup) -> list[Trial] | str:
    """Both arms over the learning rates and, the embedded network, over initial scales."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    # A quick look is taken at one network: the one that trains well without batch norm too.
    bases = bases[-1:] if setup.scale == "quick" else bases
    out: list[Trial] = []
    for base in bases:
        for arm in (False, True):
            out += sweep(base, setup.scale, rates(setup.scale, base), batch_norm=arm)
            if base.activation == "relu":
                for factor in INITIAL_SCALES[setup.scale]:
                    scaled = replace(base, init_scale=factor)
                    out += sweep(scaled, setup.scale, [SCALED_AT], batch_norm=arm)
    return out


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Width of the working range (the headline), both its ends, divergence, the blind pick."""
    verdicts: list[Verdict] = []
    # The network that trains well without batch norm gives the headline: it is the harder case.
    for network in sorted(_networks(rows), key=lambda name: name != "relu"):
        arms = runs(rows, lambda row, network=network: _arm(row, network))
        verdicts += _over_rates(arms[WITHOUT], arms[WITH], network)
        scaled = runs(rows, lambda row, network=network: _scaled_arm(row, network), "init_scale")
        if len(scaled.get(WITH, {})) > 1:
            verdicts.append(_over_initial_scales(scaled[WITHOUT], scaled[WITH], network))
    return verdicts


def _over_rates(plain: Sweep, normed: Sweep, network: str) -> list[Verdict]:
    seeds = sorted(next(iter(plain.values())))
    pairs = [(working(plain, s, NEAR), working(normed, s, NEAR)) for s in seeds]
    if dead := _dead(pairs):
        return [_unknown(f"range of learning rates, {network}", dead)]
    start = [(diverges_from(plain, s), diverges_from(normed, s)) for s in seeds]
    points = [100 * (mean_accuracy(normed, s) - mean_accuracy(plain, s)) for s in seeds]
    return [
        _width(
            pairs,
            f"range of learning rates, {network}",
            f"The range of learning rates that work well is wider with batch norm ({network}).",
        ),
        _verdict(
            [b.high - (INF if a.at_high else a.high) for a, b in pairs],
            [(INF if b.at_high else b.high) - a.high for a, b in pairs],
            f"largest rate, {network}",
            f"The largest learning rate that works well is larger with batch norm ({network}).",
        ),
        _verdict(
            [(-INF if a.at_low else a.low) - b.low for a, b in pairs],
            [a.low - (-INF if b.at_low else b.low) for a, b in pairs],
            f"smallest rate, {network}",
            f"The smallest learning rate that works well is smaller with batch norm ({network}).",
            note="How many times smaller. What a small rate lacks is steps: with more of them "
            "smaller rates work in both arms.",
        ),
        _verdict(
            [b[0] - a[1] for a, b in start],
            [b[1] - a[0] for a, b in start],
            f"divergence, {network}",
            "The learning rate at which the loss leaves the finite numbers, or comes to 1000 times "
            f"that at the start, is larger with batch norm ({network}).",
        ),
        _verdict(
            points,
            points,
            f"blind pick, {network}",
            "A learning rate taken blindly from the grid gives a higher test accuracy with batch "
            f"norm ({network}).",
            unit="points",
            claimed=EASIER,
            note="Accuracy averaged over the logarithm of the learning rate.",
        ),
    ]


def _over_initial_scales(plain: Sweep, normed: Sweep, network: str) -> Verdict:
    metric = f"range of initial scales, {network}"
    pairs = [(working(plain, s, NEAR), working(normed, s, NEAR)) for s in sorted(plain[1.0])]
    if dead := _dead(pairs):
        return _unknown(metric, dead)
    claim = "The range of factors on the initial weights that work well is wider with batch norm"
    note = f"At the learning rate {SCALED_AT:g} in both arms."
    return _width(pairs, metric, f"{claim} ({network}).", note)


def _width(pairs: Pairs, metric: str, claim: str, note: str = "") -> Verdict:
    plain, normed = zip(*pairs, strict=True)
    return _verdict(
        [b.width - a.widest for a, b in pairs],
        [b.widest - a.width for a, b in pairs],
        metric,
        claim,
        unit="decades",
        note=f"{note} Without: {_words(plain)}. With: {_words(normed)}.".strip(),
    )


def _words(ranges: Sequence[Range]) -> str:
    low, high, best, accuracy = (
        median(getattr(r, field) for r in ranges) for field in ("low", "high", "best", "accuracy")
    )
    return (
        f"{10**low:.3g} to {10**high:.3g}, best {10**best:.3g} with {100 * accuracy:.1f} % "
        "(medians)"
    )


def _verdict(
    lows: list[float],
    highs: list[float],
    metric: str,
    claim: str,
    *,
    unit: str = "×",
    claimed: float = WIDER,
    note: str = "",
) -> Verdict:
    """From with less without, one a seed; for the unit × in decades, and shown as a factor."""
    ends = bootstrap(lows, highs)
    word = decide(*ends[1:], none=0, claimed=claimed)
    factor = unit == "×"
    value, low, high = ((10**v if factor else v) if math.isfinite(v) else None for v in ends)
    if None in (value, low, high):
        note = f"{note} An end that is not given lies beyond the grid.".strip()
    none, mark = ("1×", f"{10**claimed:.1f}×") if factor else ("0", f"{claimed:g} {unit}")
    rule = (
        f"supported: the whole interval at {mark} or above; contradicted: all of it below {none}; "
        f"not supported: all of it below {mark}; inconclusive: otherwise"
    )
    return Verdict(NAME, claim, metric, value, low, high, word, unit, rule, note)


def _dead(pairs: Pairs) -> str | None:
    """Why there is no range to speak of: an arm that learns at no setting."""
    for name, ranges in zip((WITHOUT, WITH), zip(*pairs, strict=True), strict=True):
        gained = median(r.gained for r in ranges)
        if gained < LEARNED:
            return (
                f"The network {name} batch norm gains {100 * gained:.0f} points of accuracy at its "
                f"best setting; less than {100 * LEARNED:.0f} says nothing about a range."
            )
    return None


def _unknown(metric: str, why: str) -> Verdict:
    claim = "The range of settings that work well is wider with batch norm."
    rule = f"inconclusive where an arm gains less than {100 * LEARNED:.0f} points of accuracy"
    return Verdict(NAME, claim, metric, None, None, None, INCONCLUSIVE, "decades", rule, why)


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Accuracy over learning rates and over initial scales, and the verdicts' numbers."""
    from batchnorm.charts import intervals, sweep

    # A run that was lost ends with a row without numbers, and so without an accuracy.
    ends = [row for row in rows if row.get("diverged") or row["step"] == row["steps"]]
    out: dict[str, alt.LayerChart] = {}
    for network in _networks(rows):
        drawn = [row | {"arm": arm} for row in ends if (arm := _arm(row, network))]
        title = f"Test accuracy at the end, {network} network"
        out[f"rates-{network}"] = sweep(drawn, title=title)
        scaled = [row | {"arm": arm} for row in ends if (arm := _scaled_arm(row, network))]
        if len({row["init_scale"] for row in scaled}) > 1:
            out[f"initial-scales-{network}"] = sweep(
                scaled,
                "init_scale",
                x_title="factor on the initial weights",
                title=f"{title}, by the scale of the initial weights",
            )
    widths = [v for v in measure(rows) if v.unit == "decades"]
    out["widths"] = intervals(
        [asdict(v) | {"label": v.metric} for v in widths],
        x_title="decades wider with batch norm",
        title="How much wider the working range is, with 95 % intervals",
        reference=0,
    )
    return out


def _networks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["activation"] for row in rows))


def _arm(row: dict[str, Any], network: str) -> str | None:
    if row["activation"] != network or row["init_scale"] != 1:
        return None
    return WITH if row["batch_norm"] else WITHOUT


def _scaled_arm(row: dict[str, Any], network: str) -> str | None:
    if row["activation"] != network or row["learning_rate"] != SCALED_AT:
        return None
    return WITH if row["batch_norm"] else WITHOUT
