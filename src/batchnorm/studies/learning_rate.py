"""L12: with batch norm a much bigger range of learning rates works well."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchnorm.studies._network import label, phrase
from batchnorm.studies._range import Bracket, diverges_from
from batchnorm.studies._sweep import LOST, NEAR, Rows, Sweep, ends, networks, rates, runs, sweep
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._wider import WITH, WITHOUT, blind, judged, paired, unknown

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
    f"within {100 * NEAR:g} points of that at the arm's best rate, which is chosen on the "
    "validation set; the width is that of the widest run of working rates, in decades. A grid only "
    "shows between which two rates a range ends: the lower end of an interval takes each end where "
    "it is worst for batch norm, the upper end where it is best, and the value the middle. "
    f"{LOST}"
)
PUBLISHED = (
    "Inception with batch norm trained at 30 times the learning rate of the original, which "
    "diverged at 5 times: Ioffe & Szegedy 2015, section 4.2.1. Batch norm primarily enables "
    "training with larger learning rates: Bjorck et al. 2018."
)
MEANING = (
    "When you put batch norm in, search the learning rate anew, in factors of about three, and "
    "look above the rate that suited the network without it. A wide range makes the search "
    "shorter; it does not replace it."
)

EASIER = 5.0  # points of accuracy at a learning rate taken blindly from the grid


def trials(setup: Setup) -> list[Trial] | str:
    """Both arms over the learning rates."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    # A quick look is taken at one network: the one that trains well without batch norm too.
    bases = bases[-1:] if setup.scale == "quick" else bases
    return [
        trial
        for base in bases
        for arm in (False, True)
        for trial in sweep(base, setup.scale, rates(setup.scale, base), batch_norm=arm)
    ]


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Width of the working range (the headline), both its ends, divergence, the blind pick."""
    verdicts: list[Verdict] = []
    # The network that trains well without batch norm gives the headline: it is the harder case.
    for network in sorted(_networks(rows), key=lambda name: name != "relu"):
        arms = runs(rows, lambda row, network=network: _arm(row, network))
        verdicts += _over_rates(arms[WITHOUT], arms[WITH], network)
    return verdicts


def _over_rates(plain: Sweep, normed: Sweep, network: str) -> list[Verdict]:
    name, pairs = label(network), paired(plain, normed)
    if pairs.dead:
        return [unknown(f"range of learning rates, {name}", NAME, pairs)]
    return [
        judged(
            pairs.differences("width"),
            f"range of learning rates, {name}",
            f"The range of learning rates that work well is wider with batch norm ({name}).",
            study=NAME,
            unit="decades",
            note=pairs.words(),
            caution=pairs.caution,
        ),
        judged(
            pairs.differences("end"),
            f"largest rate, {name}",
            f"The largest learning rate that works well is larger with batch norm ({name}).",
            study=NAME,
            caution=pairs.caution,
        ),
        judged(
            [Bracket(-d.most, -d.least) for d in pairs.differences("start")],
            f"smallest rate, {name}",
            f"The smallest learning rate that works well is smaller with batch norm ({name}).",
            study=NAME,
            note="How many times smaller. What a small rate lacks is steps: with more of them "
            "smaller rates work in both arms.",
            caution=pairs.caution,
        ),
        *_over_the_whole_grid(plain, normed, name, pairs.few),
    ]


def _over_the_whole_grid(plain: Sweep, normed: Sweep, name: str, few: str) -> list[Verdict]:
    seeds = sorted(next(iter(plain.values())))
    return [
        judged(
            [diverges_from(normed, s).less(diverges_from(plain, s)) for s in seeds],
            f"divergence, {name}",
            "The learning rate at which the loss leaves the finite numbers, or comes to 1000 times "
            f"that at the start, is larger with batch norm ({name}).",
            study=NAME,
        ),
        blind(
            plain,
            normed,
            f"blind pick, {name}",
            "learning rate",
            study=NAME,
            claimed=EASIER,
            where=f" ({name})",
            caution=few,
        ),
    ]


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Accuracy over learning rates, and the verdicts' numbers."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in _networks(rows):
        drawn = [row | {"arm": arm} for row in ends(rows) if (arm := _arm(row, network))]
        title = f"Test accuracy at the end, {phrase(network).removeprefix('the ')}"
        out[f"rates-{network}"] = sweep(drawn, title=title)
    widths = [v for v in measure(rows) if v.unit == "decades"]
    out["widths"] = intervals(
        [asdict(v) | {"label": v.metric} for v in widths],
        x_title="decades wider with batch norm",
        title="How much wider the working range is: median and interval",
        reference=0,
    )
    return out


def _networks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["activation"] for row in rows))


def _arm(row: dict[str, Any], network: str) -> str | None:
    if row["activation"] != network:
        return None
    return WITH if row["batch_norm"] else WITHOUT
