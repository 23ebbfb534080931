"""L14 against later work: do gradients stay, is the loss smoother, does noise do harm?"""

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from batchnorm.data import Data
from batchnorm.studies import _noisy
from batchnorm.studies._drift import Moments, drift, moments
from batchnorm.studies._kept import thinned
from batchnorm.studies._looks import EXAMPLES, places
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._race import race
from batchnorm.studies._smoother import FIELDS, less, pictures
from batchnorm.studies._sweep import SEEDS, Rows, networks, rates, runs, sweep
from batchnorm.studies._terrain import Ground, terrain
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._unsettled import NOISY, noise
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._wider import WITH, WITHOUT
from batchnorm.train import Row, train

if TYPE_CHECKING:
    import altair as alt

NAME = "landscape"
LECTURE = "L14"
TITLE = "With batch norm, each layer learns more independently of the others"
CLAIM = (
    "Batch norm weakens the coupling between what the earlier layers' parameters have to do and "
    "what the later layers' have to do: each layer learns by itself, a little more independently "
    "of the others, and that speeds up learning."
)
METHOD = (
    "Every few steps of training, at one learning rate, both arms are looked at on the same "
    "mini-batches. G is the gradient by a layer's weights, G' the one on the same mini-batch after "
    "all layers before it have taken their step: the less they differ, the more independent the "
    "layer; averaged over all layers but the first. Along the gradient by all weights, at 1/2 to "
    "4 times the learning rate, the range of the loss is taken and the change of the gradient: in "
    "itself, for the way gone, and, since batch norm changes the scale of weights and gradients, "
    "relative change for relative way. Arms are compared where their training loss is the same. "
    "In noisy batch norm every unit's output is multiplied and shifted by numbers drawn anew at "
    f"each step, the mean by up to {_noisy.MEAN:g} σ, the spread by up to "
    f"{100 * _noisy.SPREAD:.0f} %, with noise of {_noisy.OWN} for each example: it is raced "
    "against ordinary batch norm to the best accuracy without any. Its size was settled after a "
    "first run with half of it, which moved the distributions little further than they move "
    "without batch norm (1.11 times) and cost no steps (1.0 times, 0.78 to 1.5)."
)
PUBLISHED = (
    "For: batch norm speeds up training by reducing internal covariate shift (Ioffe & Szegedy "
    "2015). Against: stable distributions have little to do with its success; it makes the loss "
    "smoother, while gradients change as much or more, and with noise that unsettles every "
    "distribution networks train almost as well (Santurkar et al. 2018). Against that: a "
    "normalization with all those other properties, but without less covariate shift, performs "
    "poorly (Awais et al. 2020). Disputed, not settled."
)
MEANING = (
    "Why batch norm helps is disputed, and need not be settled to use it. Do not tune a network "
    "for still distributions, and do not drop batch norm because a layer's distributions move: "
    "judge it by the learning rates it allows, and by accuracy on held-out data."
)

STEPS = {"quick": (120, 12), "full": (1000, 20)}  # and steps between looks
DRAWS = 2  # mini-batches at each look
RATES = {"sigmoid": 1.0}  # others 0.1: as in the study of the shift
ARMS = {(False, False): WITHOUT, (True, False): WITH, (True, True): NOISY}


def trials(setup: Setup) -> list[Trial] | str:
    """Three arms to look at; and the race of them, whose usual arms are other studies' too."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    steps, every = STEPS[setup.scale]
    out: list[Trial] = []
    # A quick look is taken at one network: the one that trains well without batch norm too.
    for base in bases[-1:] if setup.scale == "quick" else bases:
        rate = RATES.get(base.activation, 0.1)
        seen = replace(base, procedure=NAME, steps=steps, every=every, learning_rate=rate)
        for batch_norm, noisy in ARMS:
            options: Any = {"look": True, "noise": noisy}
            arm = replace(seen, batch_norm=batch_norm, options=options)
            out += [replace(arm, seed=seed) for seed in range(SEEDS[setup.scale])]
        grid = _grid(setup.scale, rates(setup.scale, base))
        for batch_norm in (False, True):
            out += sweep(base, setup.scale, grid, batch_norm=batch_norm)
        options = {"look": False, "noise": True}
        out += sweep(
            replace(base, procedure=NAME, options=options), setup.scale, grid, batch_norm=True
        )
    return out


def _grid(scale: str, grid: list[float]) -> list[float]:
    """The rates of the race, for all of its arms: at the quick scale five about the middle."""
    middle = len(grid) // 2
    return grid[middle - 2 : middle + 3] if scale == "quick" else grid[::3]


def rows(trial: Trial, data: Data) -> list[Row]:
    """Rows of training; with "look", each of them also has what is seen around that step."""
    model = build(trial, data)
    if trial.option("noise"):
        _noisy.disturb(model)
    if not trial.option("look"):
        return thinned(descended(trial, model, data))
    at, before = places(trial, data), dict[str, Moments]()
    like = next(model.parameters())
    x, y = data.train.x.to(like.device, like.dtype), data.train.y.to(like.device)

    def see(row: dict[str, Any]) -> None:
        if row.get("diverged"):
            return
        step = row["step"]
        generator = torch.Generator().manual_seed(1000 * trial.seed + step)
        drawn = [
            torch.randperm(len(y), generator=generator)[: trial.batch_size].to(y.device)
            for _ in range(DRAWS)
        ]
        if not trial.option("noise"):
            found = terrain([Ground(model, x[i], y[i], step) for i in drawn], trial.learning_rate)
            row |= found | {
                name[:-1]: _mean(found[name]) for name in ("norms", "changes", "angles")
            }
        now = moments(Ground(model, x[:EXAMPLES], y[:EXAMPLES], step), at)
        row["drift"] = drift(before["last"], now) if before else None
        before["last"] = now

    return train(
        model,
        data,
        optimizer=trial.optimizer,
        learning_rate=trial.learning_rate,
        steps=trial.steps,
        batch_size=trial.batch_size,
        seed=trial.seed,
        every=trial.every,
        on_row=see,
    )


def _mean(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return fmean(kept) if kept and len(kept) == len(values) else None


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Change of gradients (the headline), smoothness, and the race of noisy batch norm."""
    out: list[Verdict] = []
    # The network that trains well without batch norm gives the headline, here as elsewhere.
    for network in sorted(_networks(rows), key=lambda name: name != "relu"):
        mine = [row for row in _with_arms(rows) if row["activation"] == network]
        looks = [row for row in mine if row.get("look")]
        arms = runs(mine, lambda row: None if row.get("look") else row["arm"])
        out += [less(NAME, looks, field, label(network)) for field in FIELDS]
        out += noise(NAME, arms, looks, label(network))
    return out


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """All ratios; the gradients' turn by layer; smoothness over training; the race."""
    verdicts = measure(rows)
    out: dict[str, alt.LayerChart] = {}
    for network in _networks(rows):
        noun = phrase(network).removeprefix("the ")
        mine = [row for row in _with_arms(rows) if row["activation"] == network]
        seen = [row for row in mine if "roughness" in row]
        found = [v for v in verdicts if v.metric.endswith(f", {label(network)}")]
        drawn = pictures(seen, found, noun)
        drawn["race"] = _raced([row for row in mine if not row.get("look")], noun)
        out |= {f"{name}-{network}": chart for name, chart in drawn.items()}
    return out


def _raced(run: list[dict[str, Any]], noun: str) -> "alt.LayerChart":
    from batchnorm.charts import curves

    arms = runs(run, lambda row: row["arm"])
    best = {arm: race(arms, (WITHOUT, arm)).rate for arm in arms}
    return curves(
        [row for row in run if row["learning_rate"] == best[row["arm"]]],
        "step",
        "test_accuracy",
        title=f"Test accuracy, {noun}, each arm at its best learning rate",
    )


def _networks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["activation"] for row in rows))


def _with_arms(rows: Rows) -> list[dict[str, Any]]:
    return [row | {"arm": ARMS[row["batch_norm"], row.get("noise", False)]} for row in rows]
