"""L13: batch norm lets you train even very deep networks; and where it does not."""

import math
from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data
from batchnorm.studies import _deep, _verdict
from batchnorm.studies._range import Bracket
from batchnorm.studies._sweep import SEEDS
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict, bootstrap, decide, finite, interval
from batchnorm.studies._wider import WITH, WITHOUT, judged

if TYPE_CHECKING:
    import altair as alt

NAME = "depth"
LECTURE = "L13"
TITLE = "Batch norm lets you train very deep networks"
CLAIM = (
    "Batch norm lets you train even very deep networks: the activations cannot explode or vanish "
    "from layer to layer."
)
METHOD = (
    "Fully connected ReLU networks of growing depth are trained by gradient descent until one does "
    "not train at any of the learning rates tried; the depth before it is the trainable one, known "
    f"to a step of the grid. To train is to bring the loss over {_deep.RECENT} mini-batches below "
    "half of what guessing costs, in the steps given. The networks are plain or residual, with "
    "He's initial weights or a tenth of these; arms share weights and mini-batches. The growth of "
    "gradients, by each layer's activations, is measured before training on one mini-batch of 256."
)
PUBLISHED = (
    "For: batch norm dramatically increases the largest trainable depth of residual networks, "
    "since it scales the residual branch down by about the square root of the depth (De & Smith "
    "2020). Against: in plain networks batch norm itself makes gradients explode with depth, and "
    "those without skip connections are not trainable at large depths (Yang et al. 2019); with "
    "ReLU gradients grow by sqrt(pi / (pi - 1)) = 1.211 a layer (Luther 2020)."
)
MEANING = (
    "In a network without skip connections, batch norm makes up for initial weights of the wrong "
    "scale, but each layer with it multiplies the gradient. For depth take skip connections, with "
    "batch norm inside the branches; where a deep plain network with batch norm does not start, "
    "look at the gradients of its first layers."
)

GROWTH = math.sqrt(math.pi / (math.pi - 1))  # a layer's: Luther 2020, for wide layers and batches
TOLERANCE = 0.03  # of it: at width and batch 256 the theory for infinite ones is short by 1 %
TWICE = math.log10(2) - 1e-9  # less is not much deeper; short of it, lest rounding decide
VERY_DEEP, SHALLOW = 64, 32  # "even very deep": to the former; not at all so: not to the latter
GRID: dict[str, dict[str, Any]] = {
    "quick": {"depths": (2, 4, 8, 11, 16, 23, 32, 64), "rates": (0.1, 0.03)},
    "full": {
        "depths": (2, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128),
        "rates": (0.3, 0.1, 0.03, 0.01),
    },
}
STEPS = {"quick": 100, "full": 600}
TRAINED = {"quick": 3, "full": 8}  # seeds
KINDS = {  # residual, factor on He's initial weights
    "plain, He weights": (False, 1.0),
    "plain, small weights": (False, 0.1),
    "residual, He weights": (True, 1.0),
    "residual, small weights": (True, 0.1),
}
ARMS = {False: WITHOUT, True: WITH}
PLAIN, RESIDUAL = "plain, He weights", "residual, He weights"
Rows = list[dict[str, Any]]


def trials(setup: Setup) -> list[Trial] | str:
    """One trial a kind, arm and seed: deeper and deeper; and one for gradients an arm and seed."""
    if setup.model is not None:
        return f"{setup.model} has the depth that it has; the study needs networks of any depth"
    base = Trial(data=setup.data, procedure=NAME, depth=0)
    out: list[Trial] = []
    for residual, factor in KINDS.values():
        options: Any = GRID[setup.scale] | {"residual": residual}
        kind = replace(base, width=64, init_scale=factor, steps=STEPS[setup.scale], options=options)
        out += _both_arms(kind, TRAINED[setup.scale])
    options = {"layers": 30, "residual": False}
    wide = replace(base, width=256, batch_size=256, options=options)
    return out + _both_arms(wide, SEEDS[setup.scale])


def _both_arms(base: Trial, seeds: int) -> list[Trial]:
    return [
        replace(base, batch_norm=arm, seed=seed) for arm in (False, True) for seed in range(seeds)
    ]


def rows(trial: Trial, data: Data) -> Rows:
    """A row for each depth that was tried; or, for a trial with "layers", for each of them."""
    given = dict(trial.options)
    return (
        _deep.gradients(trial, data) if "layers" in given else _deep.deeper_and_deeper(trial, data)
    )


def measure(rows: Rows) -> list[Verdict]:
    """Trainable depth of plain networks (the headline), of others, its limits, gradients."""
    tried = [r for r in rows if "trained" in r]
    found = {
        (kind, arm): _deep.depths_of(r for r in tried if (_kind(r), r["batch_norm"]) == (kind, arm))
        for kind in KINDS
        for arm in (False, True)
    }
    limits = _deep.limits(tried)
    out = [
        _deeper(
            found[kind, False],
            found[kind, True],
            f"trainable depth, {kind}",
            f"Deeper networks train with batch norm than without it ({_deep.said(kind)}).",
            limits,
        )
        for kind in KINDS
    ]
    out.insert(1, _very_deep(found[PLAIN, True], limits))
    both = found[PLAIN, True], found[RESIDUAL, True]
    claim = "With batch norm, residual networks can be trained deeper than plain ones."
    metric = "trainable depth, residual to plain"
    out.append(_deeper(*both, metric, claim, limits, ("plain", "residual")))
    return [*out, _growth([row for row in rows if "gradient" in row])]


def _deeper(
    fewer: dict[int, Bracket],
    more: dict[int, Bracket],
    metric: str,
    claim: str,
    caution: str,
    names: tuple[str, str] = (WITHOUT, WITH),
) -> Verdict:
    seeds = sorted(fewer.keys() & more.keys())
    told = [_deep.told(arm) for arm in (fewer, more)]
    return judged(
        [more[seed].less(fewer[seed]) for seed in seeds],
        metric,
        claim,
        study=NAME,
        claimed=TWICE,
        note=f"Hidden layers that train, by seed. {names[0]}: {told[0]}; {names[1]}: {told[1]}.",
        caution=caution,
    )


def _very_deep(depths: dict[int, Bracket], caution: str) -> Verdict:
    """Whether plain networks with batch norm train to any depth that deserves the word."""
    seeds = sorted(depths)
    value, low, high = bootstrap(
        [_layers(depths[seed].least) for seed in seeds],
        [_layers(depths[seed].most) for seed in seeds],
    )
    return Verdict(
        NAME,
        f"With batch norm, plain networks of {VERY_DEEP} layers train too.",
        "very deep, plain, He weights",
        value,
        low,
        finite(high),
        decide(low, high, none=SHALLOW, claimed=VERY_DEEP),
        "layers",
        f"supported: the whole interval at {VERY_DEEP} layers or above; contradicted: all of it "
        f"below {SHALLOW}; not supported: all of it below {VERY_DEEP}; inconclusive: otherwise",
        f"Hidden layers that train, by seed: {_deep.told(depths)}.",
        interval(len(seeds)),
        caution,
    )


def _growth(rows: Rows) -> Verdict:
    """The factor by which gradients grow from each layer to the one before it."""
    arms = {
        arm: _deep.growths_of([r for r in rows if r["batch_norm"] == arm]) for arm in (False, True)
    }
    claim = (
        "In an untrained plain network with batch norm the gradient grows by "
        f"sqrt(pi / (pi - 1)) = {GROWTH:.3f} from each layer to the one before it."
    )
    metric = "growth of gradients, plain, He weights"
    rule = (
        f"supported: the whole interval within {100 * TOLERANCE:g} % of {GROWTH:.4f}; "
        "contradicted: all of it further away on one side; inconclusive: otherwise"
    )
    if not arms[True]:
        nothing = (None, None, None, _verdict.INCONCLUSIVE, "×", rule)
        return Verdict(NAME, claim, metric, *nothing, caution="No gradient was above zero.")
    value, low, high = bootstrap(arms[True])
    plain = f"Without batch norm: {median(arms[False]):.3f}. " if arms[False] else ""
    layers = max(row["layer"] for row in rows)
    return Verdict(
        NAME,
        claim,
        metric,
        value,
        low,
        high,
        _verdict.agrees(low, high, expected=GROWTH, tolerance=TOLERANCE * GROWTH),
        "×",
        rule,
        f"{plain}Over {layers} layers {GROWTH:.3f} a layer is {GROWTH**layers:.0f} times.",
        interval(len(arms[True])),
    )


def charts(rows: Rows) -> "dict[str, alt.LayerChart]":
    """Steps that each depth takes, kind by kind; gradients layer by layer; the ratios."""
    from batchnorm.charts import curves, intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    tried = [row for row in rows if "trained" in row]
    for kind in KINDS:
        name = kind.replace(",", "").replace(" ", "-").lower()
        out[name] = sweep(
            [row | {"arm": ARMS[row["batch_norm"]]} for row in tried if _kind(row) == kind],
            "layers",
            "took",
            x_title="hidden layers",
            y_title="steps until it has trained",
            lost="did not train",
            title=f"How deep it trains: {kind}",
        )
    out["gradients"] = curves(
        [row | {"arm": ARMS[row["batch_norm"]]} for row in rows if "gradient" in row],
        "layer",
        "gradient",
        log_y=True,
        x_title="hidden layer (1: next to the inputs)",
        y_title="size of the gradient by its activations",
        title="Gradients of an untrained plain network",
    )
    out["ratios"] = intervals(
        [asdict(v) | {"label": v.metric} for v in measure(rows) if v.metric.startswith("train")],
        x_title="times as many layers",
        title="How many times as deep networks train: median and interval",
        reference=1,
        log_x=True,
    )
    return out


def _kind(row: dict[str, Any]) -> str:
    of = row["residual"], row["init_scale"]
    return next(kind for kind, mine in KINDS.items() if mine == of)


def _layers(power: float) -> float:
    return math.inf if power == math.inf else float(round(10**power))
