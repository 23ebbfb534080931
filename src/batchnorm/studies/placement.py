"""L4: batch norm on z, before the activation, or on a, after it."""

import math
from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from batchnorm.data import Data
from batchnorm.studies._arms import placed
from batchnorm.studies._best import accuracies_at_best
from batchnorm.studies._kept import thinned
from batchnorm.studies._network import EMBEDDED, build, label
from batchnorm.studies._race import race, raced
from batchnorm.studies._range import Bracket
from batchnorm.studies._sweep import LOST, ends, networks, rates, runs, sweep, too_few
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import INCONCLUSIVE, Verdict, bootstrap, decide, interval
from batchnorm.studies._wider import judged
from batchnorm.surgery import is_batch_norm
from batchnorm.train import Row

if TYPE_CHECKING:
    import altair as alt

NAME = "placement"
LECTURE = "L4"
TITLE = "Batch norm belongs before the activation, not after it"
CLAIM = (
    "People debate whether to normalize z, before the activation, or a, after it; normalizing z is "
    "done much more often, and is what to take by default."
)
METHOD = (
    "Batch norm is put before each hidden activation, or after it, into the same network with the "
    "same weights, and trained on the same mini-batches at every learning rate of a grid; each "
    f"place's best rate is chosen on the validation set. {LOST} What batch norm sees is told by "
    "skewness and excess kurtosis of its input, channel by channel over 512 training examples: 0 "
    "for a Gaussian; the median over channels counts, at one learning rate, at the end of training."
)
PUBLISHED = (
    "Before, since z is more Gaussian than a: Ioffe & Szegedy 2015, section 3.2. On ImageNet at "
    "128 pixels it depends on the network: CaffeNet has 0.474 before ReLU and 0.499 after, "
    "GoogLeNet 0.607 before and 0.596 after (ducha-aiki's caffenet-benchmark)."
)
MEANING = (
    "Take the place that your kind of network is usually built with: before is what most tools "
    "expect, since there it can be folded into the layer and the layer's bias can go. If you "
    "change the place, search the learning rate anew before you compare."
)

BEFORE, AFTER = "before the activation", "after the activation"
BETTER = 1.0  # point of accuracy: less decides nothing in practice
MORE_GAUSSIAN = math.log10(1.5)  # times less skewed: less would not be seen in a histogram
EXAMPLES = 512
SHAPES = {"skewness": "symmetric", "kurtosis": "like a Gaussian in its tails"}

Rows = list[dict[str, Any]]


def trials(setup: Setup) -> list[Trial] | str:
    """Both places over the learning rates; what is seen there, at the middle one of them."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    quick = setup.scale == "quick"
    out: list[Trial] = []
    for base in bases[-1:] if quick else bases:
        grid = rates(setup.scale, base)[::2]
        before, after = (
            replace(base, batch_norm=True, procedure=NAME, options=(("place", place),))
            for place in ("before", "after")
        )
        out += sweep(after, setup.scale, grid)
        if base.network in EMBEDDED:
            # Where batch norm stands in other studies: their trials, and one of ours to look into.
            out += sweep(base, setup.scale, grid, batch_norm=True)
            grid = [_looked_at(grid)]
        out += sweep(before, setup.scale, grid)
    return out


def rows(trial: Trial, data: Data) -> list[Row]:
    """Rows of training; the last one also has the moments of what batch norm sees."""
    model = placed(
        trial.network,
        build(replace(trial, batch_norm=False), data),
        data,
        trial.option("place"),
    )
    rows = thinned(descended(trial, model, data))
    rows[-1] |= _moments(model, data)
    return rows


def _moments(model: nn.Module, data: Data) -> Row:
    """Medians over all channels that vary of the skewness's and excess kurtosis's size."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].movedim(1, 0).flatten(1).double())

    handles = [
        module.register_forward_pre_hook(keep)
        for module in model.modules()
        if is_batch_norm(module)
    ]
    like, modes = next(model.parameters()), [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(data.train.x[:EXAMPLES].clone().to(like.device, like.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    shapes: dict[str, list[float]] = {"skewness": [], "kurtosis": []}
    for z in seen:
        centred = z - z.mean(1, keepdim=True)
        var = centred.square().mean(1)
        varied = (var > 0) & var.isfinite()
        unit = centred[varied] / var[varied].sqrt()[:, None]
        shapes["skewness"] += unit.pow(3).mean(1).abs().tolist()
        shapes["kurtosis"] += (unit.pow(4).mean(1) - 3).abs().tolist()
    return {name: median(sizes) if sizes else None for name, sizes in shapes.items()}


def measure(rows: Rows) -> list[Verdict]:
    """Accuracy (the headline) and steps of both places, and what batch norm sees in them."""
    verdicts: list[Verdict] = []
    # The network that trains well without batch norm gives the headline, here as elsewhere.
    for network in sorted(_networks(rows), key=lambda name: name != "relu"):
        mine = [row for row in rows if row["activation"] == network]
        verdicts += _compared(mine, label(network))
        verdicts += [_seen(mine, shape, label(network)) for shape in SHAPES]
    return verdicts


def _compared(rows: Rows, network: str) -> list[Verdict]:
    arms = runs(rows, _arm(rows))
    at = {place: accuracies_at_best(arm) for place, arm in arms.items()}
    points = [100 * (at[BEFORE][1][s] - at[AFTER][1][s]) for s in sorted(at[AFTER][1])]
    value, low, high = bootstrap(points)
    told = "; ".join(
        f"{place} {100 * median(found.values()):.1f} % at {rate:g}"
        for place, (rate, found) in at.items()
    )
    first = next(iter(next(iter(arms[AFTER].values())).values()))
    return [
        Verdict(
            NAME,
            "Batch norm before the activation gives a higher test accuracy than after it, each at "
            f"its best learning rate ({network}).",
            f"accuracy, before less after, {network}",
            value,
            low,
            high,
            decide(low, high, none=0, claimed=BETTER),
            "points",
            f"supported: the whole interval at {BETTER:g} point or above; contradicted: all of it "
            f"below 0; not supported: all of it below {BETTER:g}; inconclusive: otherwise",
            f"Test accuracy at the end (medians): {told}.",
            interval(len(points)),
            too_few(first, median(at[AFTER][1].values())),
        ),
        raced(
            NAME,
            race(arms, (AFTER, BEFORE)),
            f"steps, before against after, {network}",
            "Batch norm before the activation reaches the best accuracy of batch norm after it in "
            f"fewer steps ({network}).",
        ),
    ]


def _seen(rows: Rows, shape: str, network: str) -> Verdict:
    """How much less skewed, or less heavy in its tails, what batch norm sees before is."""
    at = {
        (row["place"], row["seed"]): row[shape]
        for row in rows
        if row.get(shape) and row["learning_rate"] == _looked_at(_rates(rows))
    }
    logs = [
        math.log10(at["after", seed] / at["before", seed])
        for place, seed in at
        if place == "before" and ("after", seed) in at
    ]
    metric = f"{shape} of the input, after to before, {network}"
    claim = f"What batch norm sees is more {SHAPES[shape]} before the activation ({network})."
    if not logs:
        rule = "inconclusive where no channel varies at the end of training"
        return Verdict(NAME, claim, metric, None, None, None, INCONCLUSIVE, "×", rule)
    sizes = ", ".join(
        f"{place} {median(v for (p, _), v in at.items() if p == place):.2f}"
        for place in ("before", "after")
    )
    return judged(
        [Bracket(one, one) for one in logs],
        metric,
        claim,
        study=NAME,
        claimed=MORE_GAUSSIAN,
        note=f"Size of the {shape}, medians at the end of training at the learning rate "
        f"{_looked_at(_rates(rows)):g}: {sizes}.",
    )


def charts(rows: Rows) -> "dict[str, alt.LayerChart]":
    """Accuracy over learning rates, place by place, and the accuracies' difference."""
    from batchnorm.charts import intervals, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in _networks(rows):
        arm = _arm(mine := [row for row in rows if row["activation"] == network])
        drawn = [row | {"arm": arm(row)} for row in ends(mine) if arm(row)]
        drawn.sort(key=lambda row: row["arm"] != BEFORE)
        out[f"rates-{network}"] = sweep(drawn, title=f"Test accuracy at the end, {label(network)}")
    out["differences"] = intervals(
        [asdict(v) | {"label": v.metric} for v in measure(rows) if v.unit == "points"],
        x_title="points of accuracy, before less after",
        title="How much better batch norm before the activation is: median and interval",
        reference=0,
    )
    return out


def _networks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["activation"] for row in rows))


def _arm(rows: Rows) -> Any:
    """Which place a row counts for: of what was run twice, what other studies share."""
    shared = any(row["procedure"] == "train" for row in rows)

    def arm(row: dict[str, Any]) -> str | None:
        if row.get("place") == "after":
            return AFTER
        return BEFORE if (row["procedure"] == "train") == shared else None

    return arm


def _rates(rows: Rows) -> list[float]:
    return sorted({row["learning_rate"] for row in rows})


def _looked_at(grid: list[float]) -> float:
    return grid[len(grid) // 2]
