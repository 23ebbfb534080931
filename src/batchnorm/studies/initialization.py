"""L12: with batch norm a much bigger range of initial weights works well."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from batchnorm.studies._network import label, phrase
from batchnorm.studies._range import diverges_from
from batchnorm.studies._sweep import LOST, NEAR, Sweep, ends, networks, one_rate, runs, sweep
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._wider import WITH, WITHOUT, blind, judged, paired, unknown

if TYPE_CHECKING:
    import altair as alt

NAME = "initialization"
LECTURE = "L12"
TITLE = "Batch norm forgives the scale of the initial weights"
CLAIM = (
    "Batch normalization makes the network much more robust: a much bigger range of "
    "hyperparameters works well. The scale of the initial weights is one of them."
)
METHOD = (
    "Every initial weight is multiplied by one factor, and the network is trained with and without "
    "batch norm from there, at one learning rate, on the same mini-batches. A factor works when "
    f"the test accuracy at the end is within {100 * NEAR:g} points of that at the arm's best "
    "factor, which is chosen on the validation set; the width is that of the widest run of working "
    "factors, in decades, with ends that are known to a step of the grid. "
    f"{LOST}"
)
PUBLISHED = (
    "Batch norm gives the same output for weights of any scale, and larger weights get smaller "
    "gradients: Ioffe & Szegedy 2015, section 3.3. No range was published."
)
MEANING = (
    "With batch norm the scale of the initial weights need not be tuned layer by layer, but it is "
    "not without effect: under plain gradient descent a factor c on the weights acts like a "
    "learning rate c\N{SUPERSCRIPT TWO} times smaller. Where training with batch norm "
    "starts slowly, look at the two together."
)

SCALES = {
    "quick": (0.01, 0.1, 0.316, 3.16, 10.0),
    "full": (0.01, 0.0316, 0.1, 0.316, 3.16, 10.0, 31.6, 100.0),
}
SAFER = 5.0  # points of accuracy at a factor taken blindly from the grid


def trials(setup: Setup) -> list[Trial] | str:
    """Both arms over the factors; at the factor 1 the trials are those of other studies."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    # A quick look is taken at one network: the one that trains well without batch norm too.
    bases = bases[-1:] if setup.scale == "quick" else bases
    out: list[Trial] = []
    for base in bases:
        for arm in (False, True):
            out += sweep(base, setup.scale, [one_rate(base)], batch_norm=arm)
            for factor in SCALES[setup.scale]:
                # Only the end is read.
                scaled = replace(base, init_scale=factor, every=base.steps)
                out += sweep(scaled, setup.scale, [one_rate(base)], batch_norm=arm)
    return out


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Width of the working range (the headline), divergence, the blind pick."""
    verdicts: list[Verdict] = []
    # The network that trains well without batch norm gives the headline: it is the harder case.
    for network in sorted(_networks(rows), key=lambda name: name != "relu"):
        arms = runs(rows, lambda row, network=network: _arm(row, network), "init_scale")
        rate = next(row["learning_rate"] for row in rows if row["activation"] == network)
        verdicts += _over_scales(arms[WITHOUT], arms[WITH], network, rate)
    return verdicts


def _over_scales(plain: Sweep, normed: Sweep, network: str, rate: float) -> list[Verdict]:
    name, pairs = label(network), paired(plain, normed)
    metric = f"range of initial scales, {name}"
    if pairs.dead:
        return [unknown(metric, NAME, pairs)]
    seeds = sorted(next(iter(plain.values())))
    steps = next(iter(plain[1.0].values())).budget
    short = (
        "With batch norm a small factor makes each step larger in relation to the weights and a "
        f"large one smaller: in a run of only {steps} steps small factors win for that reason, and "
        "large ones lack time."
    )
    return [
        judged(
            pairs.differences("width"),
            metric,
            "The range of factors on the initial weights that work well is wider with batch norm "
            f"({name}).",
            study=NAME,
            unit="decades",
            note=f"At the learning rate {rate:g} in both arms. {pairs.words()}",
            caution=f"{short} {pairs.caution}".strip(),
        ),
        judged(
            [diverges_from(normed, s).less(diverges_from(plain, s)) for s in seeds],
            f"divergence over scales, {name}",
            "The factor on the initial weights at which the loss leaves the finite numbers, or "
            f"comes to 1000 times that at the start, is larger with batch norm ({name}).",
            study=NAME,
        ),
        blind(
            plain,
            normed,
            f"blind pick of the scale, {name}",
            "factor on the initial weights",
            study=NAME,
            claimed=SAFER,
            where=f" ({name})",
            caution=f"{short} {pairs.few}".strip(),
        ),
    ]


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Accuracy over initial scales, and how much wider the range is."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in _networks(rows):
        out[f"scales-{network}"] = sweep(
            [row | {"arm": arm} for row in ends(rows) if (arm := _arm(row, network))],
            "init_scale",
            x_title="factor on the initial weights (1: as drawn)",
            title=f"Test accuracy at the end, {phrase(network).removeprefix('the ')}, by the scale "
            "of the initial weights",
        )
    widths = [v for v in measure(rows) if v.unit == "decades"]
    out["widths"] = intervals(
        [asdict(v) | {"label": v.metric} for v in widths],
        x_title="decades wider with batch norm",
        title="How much wider the range of initial scales is: median and interval",
        reference=0,
    )
    return out


def _networks(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["activation"] for row in rows))


def _arm(row: dict[str, Any], network: str) -> str | None:
    if row["activation"] != network:
        return None
    return WITH if row["batch_norm"] else WITHOUT
