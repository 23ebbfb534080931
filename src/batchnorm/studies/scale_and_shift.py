"""L2: gamma and beta set the mean and variance of z tilde to whatever training wants."""

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data
from batchnorm.studies._judge import Marks, by_seed, judge
from batchnorm.studies._looks import EXAMPLES, look
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._norms import norms_of
from batchnorm.studies._scales import ALL, OFF, OUTPUT, OWN, at_best, freeze, told
from batchnorm.studies._sweep import LOST, SEEDS, Rows, decades, networks
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict
from batchnorm.surgery import is_batch_norm
from batchnorm.train import Row

if TYPE_CHECKING:
    import altair as alt

NAME = "scale_and_shift"
LECTURE = "L2"
TITLE = "Gamma and beta set the mean and variance of the hidden units"
CLAIM = (
    "Gamma and beta are learnable parameters, which set the mean and variance of z tilde to "
    "whatever you want them to be: hidden units do not always have mean 0 and variance 1."
)
METHOD = (
    "A network with batch norm is trained in three ways from the same weights on the same "
    "mini-batches: all of it; gamma and beta alone, everything else frozen as it was drawn; the "
    "output layer alone. Each way has its own learning rates, of which the one with the highest "
    "validation accuracy at the end is told: gamma and beta alone learn best at rates a hundred "
    f"times as large. Every few steps the same {EXAMPLES} training examples are shown to the "
    "network in training mode, and each unit's mean and standard deviation, gamma and beta are "
    f"recorded. {LOST} A first run had one learning rate for all three, at which gamma and beta "
    "alone learned 7 % of what all parameters did."
)
PUBLISHED = (
    "Training gamma and beta alone, with random weights, reaches 82 % on CIFAR-10 with deep "
    "residual networks, and disables about a third of the features: Frankle et al. 2021. The "
    "lectures give no figure."
)
MEANING = (
    "Let gamma and beta learn, and look where they go with batchnorm.record: they are the mean and "
    "the standard deviation of what comes to the activation in training. A gamma near zero is a "
    "unit that the network does without."
)

EXACT, SEEN = 1e-5, 1e-2  # of the unit's root mean square: rounding; a hundredth
MOVED, STILL = 0.1, 0.01  # standard deviations of the normalized unit
BETTER = 5.0  # points of accuracy: more than seeds differ by
ENOUGH, NOTHING = 50.0, 10.0  # per cent of what all parameters learn
THIRD, FEW = 25.0, 1.0  # per cent of units: about a third; hardly any
STEPS = {"quick": (100, 20), "full": (1000, 100)}  # and steps between looks
RATES = {
    "quick": {ALL: decades(-1, 0, 0.5), OWN: decades(0.5, 2, 0.5), OUTPUT: decades(-1, 0.5, 0.5)},
    "full": {ALL: decades(-1.5, 0, 0.5), OWN: decades(0, 2, 0.5), OUTPUT: decades(-1.5, 0.5, 0.5)},
}


def trials(setup: Setup) -> list[Trial] | str:
    """Every network, in three arms at each one's learning rates over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    steps, every = STEPS[setup.scale]
    return [
        replace(
            base,
            batch_norm=True,
            learning_rate=rate,
            steps=steps,
            every=every,
            seed=seed,
            procedure=NAME,
            options={"trained": arm},
        )
        for base in bases
        for arm in (ALL, OWN, OUTPUT)
        for rate in RATES[setup.scale][arm]
        for seed in range(SEEDS[setup.scale])
    ]


def rows(trial: Trial, data: Data) -> list[dict[str, Any]]:
    """A row for each look and batch norm."""
    model = build(trial, data)
    freeze(model, trial.option("trained"))
    at = [path for path, module in model.named_modules() if is_batch_norm(module)]
    like = next(model.parameters())
    x = data.train.x[:EXAMPLES].to(like.device, like.dtype)
    out: list[dict[str, Any]] = []

    def see(row: Row) -> None:
        about = {name: row[name] for name in ("step", "validation_accuracy", "test_accuracy")}
        seen = {} if row.get("diverged") else look(model, at, x, training=True)
        for path, norm in zip(at, norms_of(model), strict=True):
            out.append({**about, "layer": path, **told(seen.get(path, {}), norm.eps)})

    descended(trial, model, data, see)
    return out


def measure(rows: Rows) -> list[Verdict]:
    """That they set the moments (the headline); where they go; what they learn alone."""
    out: list[Verdict] = []
    for network in reversed(list(dict.fromkeys(row["activation"] for row in rows))):
        out += _network([r for r in rows if r["activation"] == network], label(network))
    return out


def _network(rows: Rows, name: str) -> list[Verdict]:
    rows, at_ends = at_best(rows)
    seeds = by_seed(rows).values()
    final = {arm: [_accuracy(mine, arm) for mine in seeds] for arm in (ALL, OWN, OUTPUT)}
    ended = "Test accuracy, medians: " + ", ".join(
        f"{median(known):.1f} % {arm} at {_rate(rows, arm):g}"
        for arm, values in final.items()
        if (known := [v for v in values if v is not None])
    )
    early = (
        f"After {rows[0]['steps']} steps: more of them may take gamma and beta further. {at_ends}"
    ).strip()
    moved = Marks(none=STILL, claimed=MOVED, unit="σ")
    return [
        judge(
            NAME,
            f"moments, {name}",
            "In training a hidden unit comes out of batch norm with mean beta and standard "
            f"deviation |gamma| sqrt(var / (var + eps)), at every step ({name}).",
            [_largest(mine, "error") for mine in seeds],
            none=SEEN,
            claimed=EXACT,
            note="The largest error of all units and looks, over the unit's root mean square.",
        ),
        judge(
            NAME,
            f"scale, {name}",
            f"Training takes gamma away from 1 ({name}).",
            [_end(mine, ALL, "gamma") for mine in seeds],
            caution=early,
            note="The median unit's |gamma - 1| at the end, averaged over layers.",
            **moved,
        ),
        judge(
            NAME,
            f"shift, {name}",
            f"Training takes beta away from 0 ({name}).",
            [_end(mine, ALL, "beta") for mine in seeds],
            caution=early,
            note="The median unit's |beta| at the end, averaged over layers.",
            **moved,
        ),
        judge(
            NAME,
            f"share of what is learned, {name}",
            "Gamma and beta alone, all weights as they were drawn, learn half of what all "
            f"parameters learn ({name}).",
            [_share(mine) for mine in seeds],
            none=NOTHING,
            claimed=ENOUGH,
            unit="%",
            caution=early,
            note=f"Of the accuracy gained. {ended}.",
        ),
        judge(
            NAME,
            f"against the output layer, {name}",
            f"Gamma and beta alone learn more than the output layer alone ({name}).",
            [
                None if own is None or output is None else own - output
                for own, output in zip(final[OWN], final[OUTPUT], strict=True)
            ],
            none=0.0,
            claimed=BETTER,
            unit="points",
            caution=early,
            note=f"{ended}.",
        ),
        judge(
            NAME,
            f"units switched off, {name}",
            f"Trained alone, gamma switches about a third of the units off ({name}).",
            [_end(mine, OWN, "off") for mine in seeds],
            none=FEW,
            claimed=THIRD,
            unit="%",
            caution=early,
            note=f"Units with |gamma| below {OFF:g} at the end.",
        ),
    ]


def _largest(rows: Rows, field: str) -> float | None:
    found = [row[field] for row in rows]
    return None if not found or None in found else max(found)


def _rate(rows: Rows, arm: str) -> float:
    return next(row["learning_rate"] for row in rows if row["trained"] == arm)


def _last(rows: Rows, arm: str) -> Rows:
    return [row for row in rows if row["trained"] == arm and row["step"] == row["steps"]]


def _end(rows: Rows, arm: str, field: str) -> float | None:
    """Averaged over layers; None for a run that did not come to its end."""
    found = [row[field] for row in _last(rows, arm)]
    return None if not found or None in found else sum(found) / len(found)


def _accuracy(rows: Rows, arm: str) -> float | None:
    """Per cent at the end; see :data:`LOST`."""
    ends = [r for r in rows if r["trained"] == arm and r["step"] in (0, r["steps"])]
    known = [r["test_accuracy"] for r in ends if r["test_accuracy"] is not None]
    return 100 * known[-1] if known else None


def _share(rows: Rows) -> float | None:
    """Per cent of the accuracy that all parameters gain over the untrained network."""
    start = next((r["test_accuracy"] for r in rows if r["step"] == 0), None)
    every, own = _accuracy(rows, ALL), _accuracy(rows, OWN)
    if start is None or every is None or own is None or every <= 100 * start:
        return None
    return 100 * (own - 100 * start) / (every - 100 * start)


def charts(rows: Rows) -> "dict[str, alt.LayerChart]":
    """Accuracy of the three arms; how far gamma and beta go, layer by layer."""
    from batchnorm.charts import curves

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine, _ = at_best([row for row in rows if row["activation"] == network])
        first = [r | {"arm": r["trained"]} for r in mine if r["layer"] == mine[0]["layer"]]
        out[f"accuracy-{network}"] = curves(
            first, "step", "test_accuracy", title=f"Test accuracy, {phrase(network)}"
        )
        layers = [r | {"arm": f"at {r['layer']}"} for r in mine if r["trained"] == ALL]
        for field, title in (("gamma", "|gamma - 1|"), ("beta", "|beta|")):
            out[f"{field}-{network}"] = curves(
                layers,
                "step",
                field,
                y_title=f"{title}, median unit",
                title=f"Where training takes {field}, {phrase(network)}",
            )
    return out
