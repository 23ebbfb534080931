"""What trains in each arm, at which rate best, and where gamma and beta stand at one look."""

import math
from statistics import fmean, median
from typing import Any

from torch import nn

from batchnorm.studies._norms import norms_of
from batchnorm.studies._race import end_of
from batchnorm.studies._sweep import Rows

OFF = 0.01  # a smaller |gamma| is as good as none: Frankle et al. 2021
ALL, OWN, OUTPUT = "all parameters", "gamma and beta alone", "output layer alone"


def freeze(model: nn.Module, trained: str) -> None:
    """Leave only the arm's own parameters to training."""
    if trained == ALL:
        return
    own = {id(p) for norm in norms_of(model) for p in norm.parameters()}
    holders = [m for m in model.modules() if any(id(p) not in own for p in m.parameters(False))]
    last = {id(p) for p in holders[-1].parameters(False)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in (own if trained == OWN else last))


def told(seen: dict[str, Any], eps: float) -> dict[str, float | None]:
    """How far gamma and beta are from 1 and 0, and the unit's moments from what they say."""
    if "gamma" not in seen or "beta" not in seen:
        return dict.fromkeys(("gamma", "beta", "off", "error"))
    gamma, beta = seen["gamma"], seen["beta"]
    errors: list[float] = []
    for mean, std, g, b, var in zip(
        seen["mean"], seen["std"], gamma, beta, seen["batch_var"], strict=True
    ):
        spread = abs(g) * math.sqrt(var / (var + eps))
        size = math.hypot(spread, b)
        errors += [max(abs(mean - b), abs(std - spread)) / size] if size > 0 else []
    found = {
        "gamma": median(abs(g - 1) for g in gamma),
        "beta": median(map(abs, beta)),
        "off": 100 * sum(abs(g) < OFF for g in gamma) / len(gamma),
        "error": max(errors, default=math.nan),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def at_best(rows: Rows) -> tuple[list[dict[str, Any]], str]:
    """The rows of each arm at the learning rate with its highest validation accuracy at the end.

    Returns:
        The rows; and which rates they are, with a caution where one is the last of those tried.
    """
    ended: dict[str, dict[float, dict[int, float]]] = {}
    for row in rows:
        grid = ended.setdefault(row["trained"], {}).setdefault(row["learning_rate"], {})
        accuracy = row["validation_accuracy"]
        # As it began until its end is known: of a run that diverged it never is.
        if row["step"] in (0, row["steps"]) and accuracy is not None:
            grid[row["seed"]] = accuracy
    best = {
        arm: max(grid, key=lambda rate: fmean(grid[rate].values())) for arm, grid in ended.items()
    }
    words = [end_of(arm, best[arm], grid) for arm, grid in ended.items()]
    told = " ".join(filter(None, words))
    return [row for row in rows if row["learning_rate"] == best[row["trained"]]], told
